"""The images of a COCO file as columns."""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

import msgspec
import numpy as np

from .json_lists import load_part
from .object_columns import Problem, is_integer

StrPath = str | os.PathLike[str]


class _Image(msgspec.Struct, gc=False):
    id: int
    file_name: str | None = None
    coco_url: str | None = None
    height: int | None = None
    width: int | None = None


IMAGE_DECODER = msgspec.json.Decoder(list[_Image])  # decodes images that are as in COCO


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
    def of_part(
        cls, file: StrPath, part: bytes, found: list[_Image] | None, start: int
    ) -> "CocoImages":
        """Return some of a file's images; `found` is of `IMAGE_DECODER`, None if it failed."""
        if found is None:
            return cls.of_records(file, load_part(part), start)
        try:
            ids = np.array([image.id for image in found], dtype=np.int64)
            names = [image.file_name or _file_name(image) for image in found]
            sizes = [[image.height or 0 for image in found], [image.width or 0 for image in found]]
            sizes_hw = np.array(sizes, dtype=np.int64).T.copy()
            if None not in names:
                return cls(ids, names, sizes_hw)
        except OverflowError:
            pass
        return cls.of_records(file, load_part(part), start)

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
