"""The image files that `hf-detr predict` writes, which never replace an image of the user.

An input's name isn't always known before it is read, as in lists on stdin. So drawn pictures and
segment maps carry a mark, and a file without it stays.
"""

import io
import os
import shutil
from pathlib import Path, PurePosixPath

import PIL.Image
from PIL.PngImagePlugin import PngInfo

from ..data.file_names import image_endings

KEY, MARK = "Software", "hf_detr predict"  # PNG's text, in the first bytes of a file
HEAD = 128  # bytes, in which the mark is


def save_picture(
    picture: PIL.Image.Image, file: str, source: Path | bytes, compress_level: int = 6
) -> None:
    """Write a picture of an input's results as a PNG file.

    Args:
        picture: the picture.
        file: its file, which can be there from an earlier run.
        source: the input's file or bytes.
        compress_level: PNG's, 0 to 9.

    Raises:
        ValueError: if the file is the input, or isn't one that an earlier run wrote.
    """
    is_file = isinstance(source, Path) and os.path.lexists(file)
    if is_file and os.path.samestat(os.lstat(file), os.lstat(source)):
        raise ValueError(_refusal(file, "is the input itself"))
    make_way(file)
    if os.path.exists(file) and not _is_ours(file):
        what = "has no mark of hf-detr predict, which earlier versions didn't write"
        raise ValueError(_refusal(file, what))
    mark = PngInfo()
    mark.add_text(KEY, MARK)
    picture.save(file, pnginfo=mark, compress_level=compress_level)


def _refusal(file: str, what: str) -> str:
    return f"{file} would be overwritten, which {what}; give another --output, or move it."


def _is_ours(file: str) -> bool:
    with open(file, "rb") as content:
        head = content.read(HEAD)
    return not head or f"{KEY}\0{MARK}".encode() in head  # empty after a kill


def opened(content: Path | bytes) -> Path | PIL.Image.Image:
    """Return a file, or the image of a file's bytes."""
    return content if isinstance(content, Path) else PIL.Image.open(io.BytesIO(content))


def make_way(file: str) -> None:
    """Make a file's folder, and remove a link of its name, which could lead to an input image."""
    os.makedirs(os.path.dirname(file), exist_ok=True)
    if os.path.islink(file):
        os.unlink(file)


def keep_image(folder: Path, place: str, content: Path | bytes) -> str:
    """Link a file or write the bytes of one to a data set's image folder; return the name there."""
    if PurePosixPath(place).suffix.lower() not in image_endings():
        source = io.BytesIO(content) if isinstance(content, bytes) else content
        with PIL.Image.open(source) as image:
            place += f".{image.format.lower()}"
    target = folder / place
    make_way(str(target))
    if isinstance(content, bytes):
        target.write_bytes(content)
        return place
    try:
        target.symlink_to(os.path.realpath(content))
    except OSError:  # a file system or a user without links
        shutil.copyfile(content, target)
    return place
