"""The content of a COCO detection file as columns.

The file is read in parts. A part whose values all have the types that COCO's have is decoded by
msgspec; the others are decoded as plain Python objects, whose errors are reported. Both have the
same result.
"""

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any, Literal
from urllib.parse import urlsplit

import msgspec
import numpy as np

from .json_lists import CannotDivideError, read_lists
from .object_columns import JoinedObjects, ObjectColumns, Problem, is_integer
from .packed_values import PackedValues

StrPath = str | os.PathLike[str]
LISTS = ("images", "annotations", "categories")


class _Image(msgspec.Struct, gc=False):
    id: int
    file_name: str | None = None
    coco_url: str | None = None
    height: int | None = None
    width: int | None = None


class _Object(msgspec.Struct, gc=False):
    image_id: int
    category_id: int
    bbox: tuple[float, float, float, float]
    id: int | None = None
    area: float | None = None
    iscrowd: Literal[0, 1] | bool | None = None


class _Segment(_Object, gc=False):
    segmentation: msgspec.Raw = msgspec.Raw(b"null")


_images = msgspec.json.Decoder(list[_Image])
_objects = {masks: msgspec.json.Decoder(list[_Segment if masks else _Object]) for masks in (0, 1)}


@dataclass
class CocoImages:
    """The images of a COCO file."""

    ids: np.ndarray  # (I,) int64
    names: list[str]
    sizes_hw: np.ndarray  # (I, 2) int64, height and width in pixels; 0 if missing or invalid

    @classmethod
    def of_records(
        cls, file: StrPath, records: Sequence[Mapping[str, Any]], start: int = 0
    ) -> "CocoImages":
        """Check the `images` of a file; `start` is the index of the first record.

        Raises:
            ValueError: if one has no id or name.
        """
        for number, record in enumerate(records, start):
            if not is_integer(record.get("id")) or _file_name(record) is None:
                raise ValueError(
                    f"{file}: image {number} is {record!r}; expected an integer 'id' and a "
                    "'file_name'."
                )
        ids = np.array([record["id"] for record in records], dtype=np.int64)
        sizes = [(record.get("height"), record.get("width")) for record in records]
        sizes = [[v if is_integer(v) else 0 for v in size] for size in sizes]
        sizes_hw = np.array(sizes, dtype=np.int64).reshape(-1, 2)
        return cls(ids, list(map(_file_name, records)), sizes_hw)

    @classmethod
    def of_part(cls, file: StrPath, part: bytes, start: int) -> "CocoImages":
        """Decode some of a file's images."""
        try:
            found = _images.decode(part)
            ids = np.array([image.id for image in found], dtype=np.int64)
            names = [_file_name(image) for image in found]
            sizes = [[image.height or 0 for image in found], [image.width or 0 for image in found]]
            sizes_hw = np.array(sizes, dtype=np.int64).T.copy()
            if None not in names:
                return cls(ids, names, sizes_hw)
        except (msgspec.MsgspecError, OverflowError):
            pass
        return cls.of_records(file, _loads(part), start)

    @classmethod
    def join(cls, file: StrPath, parts: Sequence["CocoImages"]) -> "CocoImages":
        """Return the images of all parts.

        Raises:
            ValueError: if two images have the same id.
        """
        ids = np.concatenate([part.ids for part in parts])
        order = np.argsort(ids, kind="stable")
        is_repeated = ids[order][1:] == ids[order][:-1]
        if is_repeated.any():
            repeated = ids[order[:-1][is_repeated].min()]
            raise ValueError(f"{file}: two images have the id {repeated}; ids must be unique.")
        names = [name for part in parts for name in part.names]
        return cls(ids, names, np.concatenate([part.sizes_hw for part in parts]))


def _file_name(record: Mapping[str, Any] | _Image) -> str | None:
    """Return an image's `file_name`, or for LVIS the last folder and name of its `coco_url`."""
    if isinstance(record, _Image):
        name, url = record.file_name, record.coco_url
    else:
        name, url = record.get("file_name"), record.get("coco_url")
    if name is None and isinstance(url, str):
        name = "/".join(urlsplit(url).path.split("/")[-2:])
    return name if isinstance(name, str) else None


class ImageIndex:
    """Finds the indices of images by their ids."""

    def __init__(self, ids: np.ndarray) -> None:
        self._order = np.argsort(ids, kind="stable")
        self._ids = ids[self._order]
        self._first, last = map(int, self._ids[[0, -1]]) if len(ids) else (0, -1)
        self._index_of_id = None
        if last - self._first < 16 * len(ids):  # faster than a search
            self._index_of_id = np.full(last - self._first + 1, -1)
            self._index_of_id[ids - self._first] = np.arange(len(ids))

    def find(self, ids: np.ndarray) -> np.ndarray:
        """Return the index of each id's image, -1 for an unknown id; (n,)."""
        if not len(self._ids):
            return np.full(len(ids), -1, dtype=np.int64)
        if self._index_of_id is not None:
            is_inside = (ids >= self._ids[0]) & (ids <= self._ids[-1])
            places = np.where(is_inside, ids - self._first, 0)
            return np.where(is_inside, self._index_of_id[places], -1)
        places = np.searchsorted(self._ids, ids).clip(max=len(self._ids) - 1)
        return np.where(self._ids[places] == ids, self._order[places], -1)

    def entries(
        self, entries: Sequence[Mapping[str, Any]], start: int, problems: list[Problem]
    ) -> tuple[list[Mapping[str, Any]], list[int]]:
        """Return the entries of known images and the images' indices; others are problems.

        Args:
            entries: dicts with `image_id`.
            start: index of the first entry in the data set.
            problems: receives the problems.
        """
        ids = [entry.get("image_id") for entry in entries]
        known = self.find(np.array([i if is_integer(i) else 0 for i in ids], dtype=np.int64))
        kept, images = [], []
        for number, (entry, image_id, image) in enumerate(
            zip(entries, ids, known.tolist(), strict=True), start
        ):
            if image >= 0 and is_integer(image_id):
                kept.append(entry)
                images.append(image)
            else:
                text = f"annotation {number} has the unknown image_id {image_id!r}"
                problems.append(Problem("annotation without image", None, text, True))
        return kept, images


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
    for name, part in read_lists(file):
        names.add(name)
        if name == "images":
            images.append(CocoImages.of_part(file, part, sum(len(found.ids) for found in images)))
        elif name == "categories":
            categories += _loads(part)
        elif name == "annotations" and images:
            objects = objects or _Objects(file, CocoImages.join(file, images), masks)
            objects.add(part)
    if not names.issuperset(LISTS):
        raise CannotDivideError(f"{file} has no lists {LISTS}")
    if objects is None:  # the annotations come before the images
        objects = _Objects(file, CocoImages.join(file, images), masks)
        for name, part in read_lists(file):
            if name == "annotations":
                objects.add(part)
    found = objects.joined.finish(masks)
    return CocoColumns(objects.images, found, categories, objects.problems)


def _loads(part: bytes) -> list[dict[str, Any]]:
    try:
        return json.loads(part)
    except (ValueError, RecursionError) as error:
        raise CannotDivideError(str(error)) from error


class _Objects:
    """The annotations of a COCO file that were read so far."""

    def __init__(self, file: StrPath, images: CocoImages, masks: bool) -> None:
        self.images, self.masks, self.joined = images, masks, JoinedObjects()
        self.problems: list[Problem] = []  # annotations without image
        self._index = ImageIndex(images.ids)
        self._num_bytes_left, self._num_read = os.stat(file).st_size, 0

    def add(self, part: bytes) -> None:
        """Add some annotations of the file."""
        columns, number = self._decoded(part), len(self.joined)
        if columns is not None:
            self._num_read += len(columns)
        else:
            entries = _loads(part)
            kept = self._index.entries(entries, self._num_read, self.problems)
            columns = ObjectColumns.of_entries(*kept, self.masks, number)
            self._num_read += len(entries)
        num_left = len(columns) * self._num_bytes_left / len(part)
        self.joined.add(columns, number + int(1.05 * num_left) + 1000)
        self._num_bytes_left -= len(part)

    def _decoded(self, part: bytes) -> ObjectColumns | None:
        """Decode annotations that are all as in COCO; None if some aren't."""
        try:
            found = _objects[self.masks].decode(part)
            images = np.array([one.image_id for one in found], dtype=np.int64)
            category_ids = np.array([one.category_id for one in found], dtype=np.int64)
            ids = [one.id for one in found]
            if None in ids:
                ids = [n if i is None else i for n, i in enumerate(ids, len(self.joined))]
            ids = np.array(ids, dtype=np.int64)
        except (msgspec.MsgspecError, OverflowError):
            return None
        images = self._index.find(images)
        boxes = chain.from_iterable([one.bbox for one in found])
        boxes = np.fromiter(boxes, np.float64, 4 * len(found)).reshape(-1, 4)
        areas = np.array([one.area for one in found], dtype=np.float64)  # None becomes NaN
        # msgspec also reads integers of more than 64 bits as floats.
        if (
            (images < 0).any()
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
