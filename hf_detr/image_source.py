"""Where a data set's images and segment maps lie: files of a folder, or anything alike."""

import os
from collections.abc import Iterable, Sequence
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any, Protocol

import numpy as np
import PIL.Image
import torch
from torch import Tensor
from tqdm.auto import tqdm

from .annotation_table import PackedValues, Problem
from .image_reading import EXIF_ORIENTATION, read_images

IMAGE_ENDINGS = {".bmp", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp"}
# What PIL raises for files that aren't there, aren't images, break off or are far too large; the
# fourth by its AVIF reader.
READING_ERRORS = (
    OSError,
    ValueError,
    SyntaxError,
    RuntimeError,
    PIL.Image.DecompressionBombError,
)


class ImageSource(Protocol):
    """Images by index; cheap to hand to a worker process."""

    def __len__(self) -> int: ...

    def name(self, index: int) -> str:
        """What messages call the image."""

    def open(self, index: int) -> PIL.Image.Image:
        """The image, not decoded yet."""

    def stamp(self, index: int) -> str:
        """Changes when the image does; raises OSError if it isn't there."""


class ImageFolder:
    """Image files of one folder.

    Args:
        folder: the folder.
        file_names: of the images, relative to the folder.

    Raises:
        ValueError: if a file name leaves the folder.
        FileNotFoundError: if there is no such folder.
    """

    def __init__(self, folder: str | os.PathLike[str], file_names: Sequence[str]) -> None:
        self.folder = Path(folder)
        if not self.folder.is_dir():
            raise FileNotFoundError(f"there is no image folder {str(folder)!r}.")
        check_stays_inside(file_names)
        self._file_names = PackedValues.pack(file_names)

    def __len__(self) -> int:
        return len(self._file_names)

    def name(self, index: int) -> str:
        return str(self.folder / self._file_names[index])

    def open(self, index: int) -> PIL.Image.Image:
        return PIL.Image.open(self.name(index))

    def stamp(self, index: int) -> str:
        stat = os.stat(self.name(index))
        return f"{self._file_names[index]} {stat.st_size} {stat.st_mtime_ns}"


def check_stays_inside(file_names: Sequence[str]) -> None:
    """Refuse names that a data set could use to read files outside its folder.

    Raises:
        ValueError: for absolute paths and `..`, by the rules of Linux and of Windows.
    """
    for name in file_names:
        # PureWindowsPath splits at both kinds of slash and knows drives.
        path = PureWindowsPath(name) if isinstance(name, str) else None
        if (
            path is None
            or not path.parts
            or path.anchor
            or ".." in path.parts
            or PurePosixPath(name).is_absolute()
            or "\0" in name
        ):
            raise ValueError(
                f"file name {name!r} in the annotations is no path inside the image folder; write "
                "file names relative to that folder, without '..', and give the folder itself."
            )


def read_pixels(source: ImageSource, index: int) -> Tensor:
    """Decode one image.

    Returns:
        (3, H, W) uint8, RGB, upright.

    Raises:
        ValueError: if it can't be read; the message names the image.
    """
    try:
        with source.open(index) as image:
            pixels = read_images(image)[0]
    except READING_ERRORS as error:
        raise ValueError(f"{source.name(index)} can't be read: {error}") from error
    if pixels.is_floating_point():
        raise ValueError(
            f"{source.name(index)} has pixels of 32-bit floats; write it with 8 bits per channel."
        )
    return pixels.contiguous()


def image_size_hw(source: ImageSource, index: int, problems: list[Problem]) -> tuple[int, int]:
    """Height and width of one upright image, from its header alone.

    An image that can't be opened has (0, 0) and is added to `problems`.
    """
    try:
        with source.open(index) as image:
            return upright_size_hw(image)
    except READING_ERRORS as error:
        problems.append(Problem("image file", index, f"can't be read: {error}", True))
        return 0, 0


def fill_in_sizes_hw(
    sizes_hw: Iterable[tuple[Any, Any]], source: ImageSource, problems: list[Problem]
) -> list[tuple[int, int]]:
    """Heights and widths as the data say; where they don't, from the image as `image_size_hw`."""
    bar = tqdm(sizes_hw, total=len(source), desc="image sizes", unit="image", disable=None)
    return [
        (height, width)
        if all(type(value) is int and 0 < value < 2**63 for value in (height, width))
        else image_size_hw(source, index, problems)
        for index, (height, width) in enumerate(bar)
    ]


def upright_size_hw(image: PIL.Image.Image) -> tuple[int, int]:
    """Height and width of an image after its EXIF orientation is applied."""
    if image.format == "TIFF":
        return image.height, image.width  # PIL has turned it
    # Not image.getexif(): PNG's decodes the whole file, for the case that the orientation ends it.
    lies_on_side = PIL.Image.Image.getexif(image).get(EXIF_ORIENTATION, 1) in (5, 6, 7, 8)
    return (image.width, image.height) if lies_on_side else (image.height, image.width)


def read_segment_ids(source: ImageSource, index: int) -> Tensor:
    """Decode one segment map: each pixel's segment id.

    Colour maps are COCO's, red + 256 green + 65536 blue; gray and palette maps hold the ids
    themselves.

    Returns:
        (H, W) int64.

    Raises:
        ValueError: if it can't be read; the message names the map.
    """
    try:
        with source.open(index) as image:
            is_plain = image.mode in ("L", "P") or image.mode.startswith("I")
            array = np.asarray(image if is_plain else image.convert("RGB")).astype(np.int64)
    except READING_ERRORS as error:
        raise ValueError(f"{source.name(index)} can't be read: {error}") from error
    return torch.from_numpy(array if is_plain else array @ [1, 256, 256**2])
