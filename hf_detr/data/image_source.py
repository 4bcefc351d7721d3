"""Image sources of data sets: image and segment map files in a folder, or similar."""

import bisect
import itertools
import math
import os
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import PIL.Image
import torch
from torch import Tensor
from tqdm.auto import tqdm

from ..image_processing.image_reading import EXIF_ORIENTATION, read_images
from .file_names import are_listed, is_plain, names_inside
from .object_columns import Problem, is_integer
from .packed_values import PackedValues
from .result_cache import file_state

# What PIL raises for files that are missing, truncated, too large or not images. RuntimeError is
# raised by the AVIF reader.
READING_ERRORS = (
    *(OSError, ValueError, SyntaxError, RuntimeError),
    *(PIL.Image.DecompressionBombError, PIL.Image.DecompressionBombWarning),
)
FEW = 256  # images whose sizes are read without a progress bar


class ImageSource(Protocol):
    """Images by index; cheap to send to a worker process."""

    def __len__(self) -> int: ...

    def name(self, index: int) -> str:
        """Return the image's name for messages."""

    def open(self, index: int) -> PIL.Image.Image:
        """Open the image without decoding it."""

    def stamp(self, index: int) -> str:
        """Return a string that changes with the image; raises OSError if it is missing."""


class ImageFolder:
    """Image files in a folder.

    Args:
        folder: the folder.
        file_names: names of the images, relative to the folder. `notes` tells which of them have
            another spelling in the folder, see `names_inside`, and `are_plain` whether all files
            have the given names.

    Raises:
        ValueError: if a file name points outside the folder.
        FileNotFoundError: if the folder doesn't exist.
    """

    def __init__(self, folder: str | os.PathLike[str], file_names: Sequence[str]) -> None:
        self.folder = Path(folder)
        if not self.folder.is_dir():
            raise FileNotFoundError(f"The image folder {str(folder)!r} doesn't exist.")
        are_plain = all(is_plain(name, self.folder) for name in file_names)
        self.are_plain = are_plain and are_listed(self.folder, file_names)
        names, note = (
            (file_names, None) if self.are_plain else names_inside(self.folder, file_names)
        )
        self.file_names = PackedValues.pack(names)
        self.notes = [Problem("file names", None, note, False)] if note else []

    @classmethod
    def of_checked(cls, folder: str | os.PathLike[str], file_names: PackedValues) -> "ImageFolder":
        """Return the images of names that are known to be inside the folder."""
        images = cls(folder, ())
        images.file_names = file_names
        return images

    def __len__(self) -> int:
        return len(self.file_names)

    def name(self, index: int) -> str:
        return str(self.folder / self.file_names[index])

    def open(self, index: int) -> PIL.Image.Image:
        return PIL.Image.open(self.name(index))

    def stamp(self, index: int) -> str:
        return f"{self.file_names[index]} {file_state(self.name(index))}"


class SelectedImages:
    """Some images of another source, by their index in it."""

    def __init__(self, source: ImageSource, indices: Sequence[int]) -> None:
        self._source, self._indices = source, np.array(indices, dtype=np.int64)

    def __len__(self) -> int:
        return len(self._indices)

    def name(self, index: int) -> str:
        return self._source.name(int(self._indices[index]))

    def open(self, index: int) -> PIL.Image.Image:
        return self._source.open(int(self._indices[index]))

    def stamp(self, index: int) -> str:
        return self._source.stamp(int(self._indices[index]))


class JoinedImages:
    """The images of several sources.

    Args:
        sources: the sources.
        lengths: number of images of each source, which are its first ones.
    """

    def __init__(self, sources: Sequence[ImageSource], lengths: Sequence[int]) -> None:
        self._sources, self._ends = list(sources), list(itertools.accumulate(lengths))

    def __len__(self) -> int:
        return self._ends[-1]

    def name(self, index: int) -> str:
        source, index = self._find(index)
        return source.name(index)

    def open(self, index: int) -> PIL.Image.Image:
        source, index = self._find(index)
        return source.open(index)

    def stamp(self, index: int) -> str:
        source, index = self._find(index)
        return source.stamp(index)

    def _find(self, index: int) -> tuple[ImageSource, int]:
        number = bisect.bisect_right(self._ends, index)
        return self._sources[number], index - (self._ends[number - 1] if number else 0)


def read_pixels(source: ImageSource, index: int) -> Tensor:
    """Decode an image.

    Returns:
        (3, H, W) uint8, RGB, with the EXIF orientation applied.

    Raises:
        ValueError: if the image can't be read.
    """
    try:
        with source.open(index) as image:
            pixels = read_images(image, first_index=index)[0]
    except READING_ERRORS as error:
        raise ValueError(f"{source.name(index)} can't be read: {error}") from error
    if pixels.is_floating_point():
        raise ValueError(
            f"{source.name(index)} has 32-bit float pixels; save it with 8 bits per channel."
        )
    return pixels.contiguous()


def image_size_hw(source: ImageSource, index: int, problems: list[Problem]) -> tuple[int, int]:
    """Read the height and width of an upright image from its header.

    An image that can't be opened is added to `problems`; its size is (0, 0).
    """
    try:
        with source.open(index) as image:
            return upright_size_hw(image)
    except READING_ERRORS as error:
        problems.append(Problem("image file", index, f"can't be read: {error}", True))
        return 0, 0


def read_sizes_hw(
    source: ImageSource, indices: Sequence[int], problems: list[Problem]
) -> list[tuple[int, int]]:
    """Return `image_size_hw` of several images, whose files are read in threads."""

    def read(index: int) -> tuple[tuple[int, int], list[Problem]]:
        found: list[Problem] = []
        return image_size_hw(source, index, found), found

    sizes = []
    with (
        ThreadPoolExecutor(8) as pool,
        tqdm(total=len(indices), desc="image sizes", unit="image", disable=None) as bar,
    ):
        for start in range(0, len(indices), 10_000):  # queueing all would take memory
            for size_hw, found in pool.map(read, indices[start : start + 10_000]):
                sizes.append(size_hw)
                problems += found
                bar.update()
    return sizes


def fill_in_sizes_hw(
    sizes_hw: Iterable[tuple[Any, Any]], source: ImageSource, problems: list[Problem]
) -> list[tuple[int, int]]:
    """Return heights and widths, replacing missing or invalid ones by `image_size_hw`."""
    bar = tqdm(
        sizes_hw,
        total=len(source),
        desc="image sizes",
        unit="image",
        disable=True if len(source) <= FEW else None,
    )
    return [
        (height, width)
        if all(type(value) is int and 0 < value < 2**63 for value in (height, width))
        else image_size_hw(source, index, problems)
        for index, (height, width) in enumerate(bar)
    ]


def upright_size_hw(image: PIL.Image.Image) -> tuple[int, int]:
    """Return the height and width of an image with its EXIF orientation applied."""
    if image.format == "TIFF" or not _is_turned(image):
        return image.height, image.width  # PIL applies the orientation of TIFF files
    return image.width, image.height


def turned_size_hw(source: ImageSource, index: int) -> tuple[int, int] | None:
    """Return the upright size of an image that its EXIF orientation turns by 90°, else None."""
    try:
        with source.open(index) as image:
            return upright_size_hw(image) if _is_turned(image) else None
    except READING_ERRORS:
        return None


def size_reason(source: ImageSource, index: int, annotated_hw: tuple[int, int]) -> str:
    """Explain an annotated size that is that of the image before its EXIF orientation; or ""."""
    if turned_size_hw(source, index) != annotated_hw[::-1]:
        return ""
    return (
        "; its EXIF orientation turns it by 90°, and the annotated size is that before it. If the "
        "boxes are those of the upright image, swap width and height in the annotations; "
        "otherwise remove the orientation from the file"
    )


def _is_turned(image: PIL.Image.Image) -> bool:
    # Not image.getexif(): for PNG it decodes the whole file to find EXIF data at the end.
    tags = image.tag_v2 if image.format == "TIFF" else PIL.Image.Image.getexif(image)
    return tags.get(EXIF_ORIENTATION, 1) in (5, 6, 7, 8)


def read_segment_ids(source: ImageSource, index: int) -> Tensor:
    """Decode a segment map.

    Ids of RGB maps are red + 256 * green + 65536 * blue, as in COCO. Gray and palette maps contain
    the ids.

    Returns:
        (H, W) int64, each pixel's segment id.

    Raises:
        ValueError: if the map can't be read.
    """
    try:
        with source.open(index) as image:
            is_gray = image.mode in ("L", "P") or image.mode.startswith("I")
            array = np.asarray(image if is_gray else image.convert("RGB")).astype(np.int64)
    except READING_ERRORS as error:
        raise ValueError(f"{source.name(index)} can't be read: {error}") from error
    return torch.from_numpy(array if is_gray else array @ [1, 256, 256**2])


def with_boxes(
    segments: Sequence[Mapping[str, Any]], maps: ImageSource, index: int, box_format: str
) -> Sequence[Mapping[str, Any]]:
    """Fill in the missing boxes of an image's segments from its segment map.

    Raises:
        ValueError: if a segment has no id, the map can't be read, or boxes are missing and
            `box_format` isn't "coco_xywh".
    """
    for segment in segments:
        if not isinstance(segment, Mapping) or not is_integer(segment.get("id")):
            raise ValueError(
                f"{maps.name(index)} has the segment {segment!r}; expected a dict with the integer "
                "'id' that the segment has in the map."
            )
    if all(segment.get("bbox") is not None for segment in segments):
        return segments
    if box_format != "coco_xywh":
        raise ValueError(
            f"{maps.name(index)} has segments without 'bbox', which are filled in as 'coco_xywh', "
            f"but box_format is {box_format!r}; add the missing boxes, or remove all boxes and use "
            "box_format='coco_xywh'."
        )
    boxes = segment_boxes(read_segment_ids(maps, index), [s["id"] for s in segments])
    return [{**s, "bbox": s.get("bbox") or box} for box, s in zip(boxes, segments, strict=True)]


def segment_boxes(segment_ids: Tensor, ids: Sequence[int]) -> list[list[float]]:
    """Compute the box (left, top, width, height) of each segment of a map (H, W), in pixels.

    The box of a segment without pixels is NaN.
    """
    boxes = []
    for segment_id in ids:
        rows, columns = torch.nonzero(segment_ids == segment_id, as_tuple=True)
        if not len(rows):
            boxes.append([math.nan] * 4)
            continue
        (top, bottom), (left, right) = rows.aminmax(), columns.aminmax()
        boxes.append([int(left), int(top), int(right - left) + 1, int(bottom - top) + 1])
    return boxes
