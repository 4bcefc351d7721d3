"""The objects of a data set as columns of numbers, in the order of the data set."""

import gc
import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from .packed_values import PackedValues


@dataclass(frozen=True)
class Problem:
    """An error in a data set.

    `kind` groups problems in reports, `image` is the index of the image (None: the whole data set)
    and `text` describes the problem. Images with a fatal problem can't be used for training.
    """

    kind: str
    image: int | None
    text: str
    is_fatal: bool


@dataclass
class ObjectColumns:
    """The values of n objects; those that are invalid are NaN, 0 or `INVALID`, see `problems`."""

    images: np.ndarray  # (n,) int64, index of the image
    ids: np.ndarray  # (n,) int64, by default the object's index
    category_ids: np.ndarray  # (n,) int64
    boxes: np.ndarray  # (n, 4) float64, in the format of the data set
    areas: np.ndarray  # (n,) float64, NaN where there is none
    is_crowd: np.ndarray  # (n,) bool
    segmentations: PackedValues | None
    problems: list[Problem]

    def __len__(self) -> int:
        return len(self.images)

    @classmethod
    def of_entries(
        cls,
        entries: Sequence[Mapping[str, Any]],
        images: Sequence[int],
        masks: bool = False,
        start: int = 0,
    ) -> "ObjectColumns":
        """Check the values of a dict per object.

        Args:
            entries: dicts with `bbox`, `category_id` and optionally `id`, `area`, `iscrowd` and
                `segmentation`.
            images: index of each entry's image.
            masks: whether to keep the segmentations.
            start: index of the first entry in the data set.
        """
        problems: list[Problem] = []
        column = partial(_column, entries, images, problems, start)
        columns = (
            column("id", is_integer, None, "an integer", np.int64),
            column("category_id", _is_category_id, INVALID, "an integer", np.int64),
            column("bbox", _is_box, [math.nan] * 4, "4 finite numbers", np.float64).reshape(-1, 4),
            column("area", _is_area, math.nan, "a finite number >= 0", np.float64),
            column("iscrowd", lambda value: value in (0, 1), False, "0 or 1", bool),
        )
        packed = None
        if masks:
            texts = [json.dumps(entry.get("segmentation")).encode() for entry in entries]
            packed = PackedValues.pack_json(texts)
        return cls(np.array(images, dtype=np.int64), *columns, packed, problems)

    def sort_by_image(self) -> None:
        """Sort the objects by image, and otherwise keep their order."""
        if (np.diff(self.images) >= 0).all():
            return
        # As `argsort(kind="stable")`, but several times as fast: image and row in one number.
        order = self.images * len(self) + np.arange(len(self))
        order.sort()
        order %= len(self)
        # One column after the other and in place, to save memory.
        for column in (self.images, self.ids, self.category_ids, *self.boxes.T, self.areas):
            column[:] = column[order]
        self.is_crowd[:] = self.is_crowd[order]
        if self.segmentations is not None:
            self.segmentations = self.segmentations.take(order)


class JoinedObjects:
    """Objects that are added in parts, without holding the parts and the result in memory."""

    def __init__(self) -> None:
        self._columns: list[np.ndarray] = []
        self._length = 0
        self._segmentations: list[PackedValues] = []
        self._problems: list[Problem] = []

    def __len__(self) -> int:
        return self._length

    def add(self, part: ObjectColumns, num_expected: int = 0) -> None:
        """Add objects; `num_expected` is about the number of all objects, if it is known."""
        values = [getattr(part, name) for name in COLUMNS]
        if not self._columns:
            self._columns = [np.empty((0, *column.shape[1:]), column.dtype) for column in values]
        end = self._length + len(part)
        for number, column in enumerate(values):
            if end > len(self._columns[number]):
                # Only memory that is written to is really taken.
                length = max(end, num_expected, 2 * self._length)
                room = np.empty((length, *column.shape[1:]), column.dtype)
                room[: self._length] = self._columns[number][: self._length]
                self._columns[number] = room
            self._columns[number][self._length : end] = column
        self._length = end
        self._segmentations += [part.segmentations] if part.segmentations is not None else []
        self._problems += part.problems

    def finish(self, masks: bool) -> ObjectColumns:
        """Return all objects."""
        if not self._columns:
            return ObjectColumns.of_entries([], [], masks)
        columns = [column[: self._length] for column in self._columns]
        packed = PackedValues.join(self._segmentations) if masks else None
        return ObjectColumns(*columns, packed, self._problems)


INVALID = -(2**63)  # a category id that no data set has
COLUMNS = ("images", "ids", "category_ids", "boxes", "areas", "is_crowd")


def _column(
    entries: Sequence[Mapping[str, Any]],
    images: Sequence[int],
    problems: list[Problem],
    start: int,
    key: str,
    is_valid: Callable[[Any], bool],
    default: Any,
    expected: str,
    dtype: type,
) -> np.ndarray:
    """Return the values of a key of all entries; invalid ones are added to `problems`."""
    values = [entry.get(key) for entry in entries]
    for row, value in enumerate(values):
        if is_valid(value):
            continue
        if value is not None or key in ("bbox", "category_id"):
            given = entries[row].get("id")
            name = start + row if given is None else given
            text = f"object {name} has {key} {value!r}; expected {expected}"
            # Ids are only used in messages; the index replaces an invalid one.
            problems.append(Problem(f"wrong {key}", images[row], text, key != "id"))
        values[row] = start + row if default is None else default
    return np.array(values, dtype=dtype)


def is_integer(value: Any) -> bool:
    """Whether a value is a signed 64-bit integer and not a bool."""
    return type(value) is int and -(2**63) <= value < 2**63


def _is_category_id(value: Any) -> bool:
    return is_integer(value) and value != INVALID


def _is_box(value: Any) -> bool:
    return type(value) is list and len(value) == 4 and all(map(_is_finite, value))


def _is_area(value: Any) -> bool:
    return _is_finite(value) and value >= 0


def _is_finite(value: Any) -> bool:
    return is_integer(value) or (type(value) is float and math.isfinite(value))


@contextmanager
def without_garbage_collection() -> Iterator[None]:
    """Don't look for cycles in the millions of objects that are made and have none."""
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()
