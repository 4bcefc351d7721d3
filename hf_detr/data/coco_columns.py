"""The content of a COCO detection file as columns.

The file is read in parts. A part whose values all have the types that COCO's have is decoded by
msgspec; the others are decoded as plain Python objects, whose errors are reported. Both have the
same result.
"""

import json
import os
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any, Literal

import msgspec
import numpy as np

from .coco_images import IMAGE_DECODER, CocoImages, ImageIndex, StrPath
from .json_lists import CannotDivideError, load_part, read_lists
from .object_columns import (
    INVALID,
    JoinedObjects,
    ObjectColumns,
    Problem,
    without_garbage_collection,
)
from .packed_values import PackedValues

LISTS = ("images", "annotations", "categories")


class _Object(msgspec.Struct, gc=False):
    image_id: int
    category_id: int
    bbox: tuple[float, float, float, float]
    id: int | None = None
    area: float | None = None
    iscrowd: Literal[0, 1] | bool | None = None


class _Segment(_Object, gc=False):
    segmentation: msgspec.Raw = msgspec.Raw(b"null")


_decoders = [
    {"images": IMAGE_DECODER, "annotations": msgspec.json.Decoder(list[kind])}
    for kind in (_Object, _Segment)
]  # without and with masks


@dataclass
class CocoColumns:
    """The content of a COCO detection file."""

    images: CocoImages
    objects: ObjectColumns
    categories: list[dict[str, Any]]
    problems: list[Problem]  # annotations without image


def read_coco_columns(file: StrPath, masks: bool) -> CocoColumns:
    """Read a COCO detection file.

    Args:
        file: the JSON file.
        masks: whether to keep the segmentations.

    Raises:
        ValueError: if the structure of the file is wrong.
    """
    try:
        with without_garbage_collection():
            return _read_parts(file, masks)
    except CannotDivideError:
        return _read_whole(file, masks)  # which also finds the line of an error


def _read_whole(file: StrPath, masks: bool) -> CocoColumns:
    content = read_json(file)
    images = CocoImages.join(file, [CocoImages.of_records(file, content["images"])])
    problems: list[Problem] = []
    kept = ImageIndex(images.ids).entries(content["annotations"], 0, problems)
    objects = ObjectColumns.of_entries(*kept, masks)
    return CocoColumns(images, objects, content["categories"], problems)


def _read_parts(file: StrPath, masks: bool) -> CocoColumns:
    images: list[CocoImages] = []
    categories: list[dict[str, Any]] = []
    objects, names = None, set()
    for name, part, decoded in read_lists(file, _decoders[masks]):
        names.add(name)
        if name == "images":
            start = sum(len(found.ids) for found in images)
            images.append(CocoImages.of_part(file, part, decoded, start))
        elif name == "categories":
            categories += load_part(part)
        elif name == "annotations" and images:
            objects = objects or _Objects(file, CocoImages.join(file, images), masks)
            objects.add(part, decoded)
        del decoded  # before the next part is decoded
    if not names.issuperset(LISTS):
        raise CannotDivideError(f"{file} has no lists {LISTS}")
    if objects is None:  # the annotations come before the images
        objects = _Objects(file, CocoImages.join(file, images), masks)
        for name, part, decoded in read_lists(file, _decoders[masks]):
            if name == "annotations":
                objects.add(part, decoded)
            del decoded
    found = objects.joined.finish(masks)
    return CocoColumns(objects.images, found, categories, objects.problems)


class _Objects:
    """The annotations of a COCO file that were read so far."""

    def __init__(self, file: StrPath, images: CocoImages, masks: bool) -> None:
        self.images, self.masks, self.joined = images, masks, JoinedObjects()
        self.problems: list[Problem] = []  # annotations without image
        self._index = ImageIndex(images.ids)
        self._num_bytes_left, self._num_read = os.stat(file).st_size, 0

    def add(self, part: bytes, decoded: list[_Object] | None) -> None:
        """Add some annotations of the file, and what msgspec decoded of them."""
        columns, number = self._columns(decoded), len(self.joined)
        if columns is not None:
            self._num_read += len(columns)
        else:
            entries = load_part(part)
            kept = self._index.entries(entries, self._num_read, self.problems)
            columns = ObjectColumns.of_entries(*kept, self.masks, number)
            self._num_read += len(entries)
        num_left = len(columns) * self._num_bytes_left / len(part)
        self.joined.add(columns, number + int(1.05 * num_left) + 1000)
        self._num_bytes_left -= len(part)

    def _columns(self, found: list[_Object] | None) -> ObjectColumns | None:
        """Return annotations that are all as in COCO; None if some aren't."""
        if found is None:
            return None
        try:
            images = np.array([one.image_id for one in found], dtype=np.int64)
            category_ids = np.array([one.category_id for one in found], dtype=np.int64)
            ids = [one.id for one in found]
            if None in ids:
                ids = [n if i is None else i for n, i in enumerate(ids, len(self.joined))]
            ids = np.array(ids, dtype=np.int64)
        except OverflowError:
            return None
        images = self._index.find(images)
        boxes = chain.from_iterable([one.bbox for one in found])
        boxes = np.fromiter(boxes, np.float64, 4 * len(found)).reshape(-1, 4)
        areas = np.array([one.area for one in found], dtype=np.float64)  # None becomes NaN
        # msgspec also reads integers of more than 64 bits as floats.
        if (
            (images < 0).any()
            or (category_ids == INVALID).any()
            or (areas < 0).any()
            or max(_largest(boxes), _largest(areas)) >= 2**63
        ):
            return None
        is_crowd = np.array([one.iscrowd for one in found], dtype=bool)
        packed = None
        if self.masks:
            packed = PackedValues.pack_json([bytes(one.segmentation) for one in found])
        return ObjectColumns(images, ids, category_ids, boxes, areas, is_crowd, packed, [])


def _largest(values: np.ndarray) -> float:
    """Return the largest absolute value, leaving out NaN."""
    return float(np.nanmax(np.abs(values), initial=0.0))


def read_json(file: StrPath) -> dict[str, list[dict[str, Any]]]:
    """Read a COCO file as Python objects.

    Raises:
        ValueError: if the file isn't a COCO file.
    """
    try:
        content = json.loads(Path(file).read_bytes())
    except (ValueError, RecursionError) as error:  # ValueError for invalid UTF-8 too
        raise ValueError(f"{file} is not a JSON file: {error}.") from error
    for key in LISTS:
        values = content.get(key) if isinstance(content, dict) else None
        if not isinstance(values, list) or not all(isinstance(value, dict) for value in values):
            raise ValueError(
                f"{file} has no list of objects {key!r}; expected a COCO file, "
                '{"images": [...], "annotations": [...], "categories": [...]}.'
            )
    return content
