"""Chooses a font that has the letters of labels, of any language."""

import functools
import importlib.util
import warnings
from collections.abc import Iterable
from pathlib import Path

from PIL import ImageFont

# Fonts of operating systems with many letters, by the names of their files
SYSTEM_FONTS = (
    "DejaVuSans.ttf",
    "NotoSans-Regular.ttf",
    "NotoSansCJK-Regular.ttc",
    "Arial Unicode.ttf",
    "arial.ttf",
    "msyh.ttc",
    "malgun.ttf",
    "seguisym.ttf",
)
ABSENT = "\uffff"  # a code that is never a letter: fonts draw it as they draw what they lack


def label_font(size: float, texts: Iterable[str]) -> ImageFont.FreeTypeFont:
    """Return Pillow's own font, or one of this computer if that lacks a letter of the texts.

    If none has all letters, the one with most of them is used, with one warning.
    """
    letters = {letter for text in texts for letter in text if not letter.isascii()}
    best = ImageFont.load_default(size)
    lacking = _lacking(best, letters)
    for path in _other_fonts() if lacking else ():
        font = ImageFont.truetype(path, size)
        if len(found := _lacking(font, letters)) < len(lacking):
            best, lacking = font, found
        if not lacking:
            break
    if lacking:
        _warn("".join(sorted(lacking)))
    return best


@functools.cache  # drawing many images warns once
def _warn(letters: str) -> None:
    warnings.warn(
        f"No font that was found has the letters {letters!r}, which are drawn as boxes; looked for "
        f"{', '.join(SYSTEM_FONTS)}. Install one of these that has them.",
        stacklevel=4,
    )


@functools.cache  # looking for a font walks through the folders of all fonts
def _other_fonts() -> tuple[str, ...]:
    files = list(SYSTEM_FONTS)
    if (found := importlib.util.find_spec("matplotlib")) is not None and found.origin:
        files.append(str(Path(found.origin).parent / "mpl-data" / "fonts" / "ttf" / files[0]))
    paths = []
    for file in files:
        try:
            paths.append(str(ImageFont.truetype(file).path))
        except OSError:
            continue  # this computer doesn't have it
    return tuple(paths)


def _lacking(font: ImageFont.FreeTypeFont, letters: Iterable[str]) -> set[str]:
    absent = bytes(font.getmask(ABSENT))
    return {letter for letter in letters if bytes(font.getmask(letter)) == absent}
