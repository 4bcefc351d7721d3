"""Chooses a font that has the letters of labels, of any language."""

import importlib.util
import warnings
from collections.abc import Iterable, Iterator
from pathlib import Path

from PIL import ImageFont

# Fonts of operating systems with many letters, by the names of their files
SYSTEM_FONTS = (
    "DejaVuSans.ttf",
    "NotoSansCJK-Regular.ttc",
    "Arial Unicode.ttf",
    "arial.ttf",
    "msyh.ttc",
)
ABSENT = "\uffff"  # a code that is never a letter: fonts draw it as they draw what they lack


def label_font(size: float, texts: Iterable[str]) -> ImageFont.FreeTypeFont:
    """Return Pillow's own font, or one of this computer if that lacks a letter of the texts.

    If none has all letters, the one with most of them is used, with a warning.
    """
    letters = {letter for text in texts for letter in text if not letter.isascii()}
    best = ImageFont.load_default(size)
    lacking = _lacking(best, letters)
    for font in _other_fonts(size) if lacking else ():
        if len(found := _lacking(font, letters)) < len(lacking):
            best, lacking = font, found
        if not lacking:
            break
    if lacking:
        warnings.warn(
            f"No font here has the letters {''.join(sorted(lacking))!r}, which are drawn as boxes; "
            "install one that has them, such as Noto Sans CJK.",
            stacklevel=3,
        )
    return best


def _other_fonts(size: float) -> Iterator[ImageFont.FreeTypeFont]:
    files = list(SYSTEM_FONTS)
    if (found := importlib.util.find_spec("matplotlib")) is not None and found.origin:
        files.append(str(Path(found.origin).parent / "mpl-data" / "fonts" / "ttf" / files[0]))
    for file in files:
        try:
            yield ImageFont.truetype(file, size)
        except OSError:
            continue  # this computer doesn't have it


def _lacking(font: ImageFont.FreeTypeFont, letters: Iterable[str]) -> set[str]:
    absent = bytes(font.getmask(ABSENT))
    return {letter for letter in letters if bytes(font.getmask(letter)) == absent}
