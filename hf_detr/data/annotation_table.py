"""The annotations of a data set in flat arrays, independent of the data set's format.

Forked data workers copy Python objects, because reference counting writes to their memory. Arrays
of numbers stay shared between the processes.
"""

import functools
import marshal
import math
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from .box_formats import box_format_suspicion, boxes_to_coco_xywh, images_that_fit_turned


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


@dataclass(frozen=True)
class PackedValues:
    """A read-only list of plain Python values (numbers, text, lists, dicts) in two flat arrays."""

    data: np.ndarray  # (bytes,) uint8
    ends: np.ndarray  # (n + 1,) int64

    @classmethod
    def pack(cls, values: Iterable[Any]) -> "PackedValues":
        """Pack values of types that `marshal` supports."""
        # marshal is ten times faster than JSON, and only this program and its workers read the
        # bytes. Version 2 has no references, so equal values have equal bytes.
        packed = [marshal.dumps(value, 2) for value in values]
        ends = np.cumsum([0, *map(len, packed)], dtype=np.int64)
        return cls(np.frombuffer(b"".join(packed), dtype=np.uint8), ends)

    def __len__(self) -> int:
        return len(self.ends) - 1

    def __getitem__(self, index: int) -> Any:
        return marshal.loads(self.data[self.ends[index] : self.ends[index + 1]])


@dataclass(frozen=True)
class AnnotationTable:
    """Annotations of I images with n objects, sorted by image.

    The objects of image i are the rows `offsets[i]` to `offsets[i + 1]`. The values are those of
    the data set, including errors: `hf_detr.data.check` reports them and `DetectionDataset` raises
    an error for them.
    """

    category_ids: tuple[int, ...]  # class label -> id in the data set
    id2label: dict[int, str]  # class label -> name
    image_ids: np.ndarray  # (I,) int64, as in the data set
    image_hw: np.ndarray  # (I, 2) int64, height and width in pixels; 0 if unknown
    offsets: np.ndarray  # (I + 1,) int64
    ids: np.ndarray  # (n,) int64, as in the data set
    class_labels: np.ndarray  # (n,) int64; -1 for an unknown category id
    # Not corners as everywhere else, so that evaluation gets exactly the numbers of a COCO file.
    boxes_xywh: np.ndarray  # (n, 4) float64, left, top, width, height in pixels
    areas: np.ndarray  # (n,) float64 in square pixels; NaN where the data set has none
    is_crowd: np.ndarray  # (n,) bool
    segmentations: PackedValues | None = None  # COCO polygons or RLE, per object
    label_ids_of_stuff: frozenset[int] = frozenset()
    problems: tuple[Problem, ...] = ()

    def __len__(self) -> int:
        return len(self.image_ids)

    def rows(self, image: int) -> range:
        """Return the rows of an image's objects."""
        return range(int(self.offsets[image]), int(self.offsets[image + 1]))

    def image_of_rows(self) -> np.ndarray:
        """Return the index of each object's image, (n,) int64."""
        return np.repeat(np.arange(len(self)), np.diff(self.offsets))


def make_table(
    categories: Mapping[int, str],
    image_ids: Sequence[int],
    image_hw: Sequence[tuple[int, int]],
    entries: Sequence[Mapping[str, Any]],
    images: Sequence[int],
    box_format: str,
    stuff_ids: Iterable[int] = (),
    problems: Sequence[Problem] = (),
    masks: bool = False,
    turned_hw: Callable[[int], tuple[int, int] | None] | None = None,
) -> AnnotationTable:
    """Sort objects by image, number the classes from 0 without gaps, and convert the boxes.

    Warns about fatal problems, such as boxes that seem to have another format, and about problems
    of the whole data set.

    Args:
        categories: category ids and names of the data set. The class labels follow the sorted ids.
        image_ids: id of each image in the data set.
        image_hw: height and width of each image in pixels.
        entries: a dict per object, in any order, with `bbox`, `category_id` and optionally `id`,
            `area`, `iscrowd` and `segmentation`. Invalid values are problems, and NaN, 0 or -1 in
            the table.
        images: index of each entry's image.
        box_format: format of `bbox`, one of `hf_detr.data.box_formats.BOX_FORMATS`.
        stuff_ids: ids of the stuff categories.
        problems: problems found while reading the data set.
        masks: whether to keep the segmentations.
        turned_hw: returns the upright height and width of an image that its EXIF orientation turns.
            They replace those before turning if all boxes of an image fit only them.

    Raises:
        ValueError: if `stuff_ids` has ids that aren't in `categories`.
    """
    stuff_ids = frozenset(stuff_ids)
    if unknown := stuff_ids - set(categories):
        raise ValueError(
            f"stuff_ids has {sorted(unknown)}; expected ids of categories, {sorted(categories)}."
        )
    problems = list(problems)
    column = functools.partial(_column, entries, images, problems)
    ids = column("id", is_integer, None, "an integer", np.int64)
    object_category_ids = column("category_id", is_integer, -1, "an integer", np.int64)
    boxes = column("bbox", _is_box, [math.nan] * 4, "4 finite numbers", np.float64).reshape(-1, 4)
    areas = column("area", _is_area, math.nan, "a finite number >= 0", np.float64)
    is_crowd = column("iscrowd", lambda value: value in (0, 1), False, "0 or 1", bool)

    category_ids = np.array(sorted(categories), dtype=np.int64)
    image_hw = np.array(image_hw, dtype=np.int64).reshape(-1, 2)
    images = np.array(images, dtype=np.int64)
    if turned_hw is not None:
        _turn_sizes(image_hw, boxes, images, box_format, turned_hw, problems)
    class_labels = _class_labels(object_category_ids, category_ids)
    for row in np.flatnonzero(class_labels < 0):
        text = f"object {ids[row]} has the unknown category id {object_category_ids[row]}"
        problems.append(Problem("unknown category id", int(images[row]), text, True))
    suspicion = box_format_suspicion(boxes, box_format, image_hw[images])
    if suspicion:
        problems.insert(0, Problem("box format", None, suspicion, True))
    _warn_of_problems(problems)

    order = np.argsort(images, kind="stable")
    packed = PackedValues.pack(entries[row].get("segmentation") for row in order) if masks else None
    labels = {int(category_id): label for label, category_id in enumerate(category_ids)}
    return AnnotationTable(
        category_ids=tuple(labels),
        id2label={label: str(categories[key]) for key, label in labels.items()},
        image_ids=np.array(image_ids, dtype=np.int64),
        image_hw=image_hw,
        offsets=np.searchsorted(images[order], np.arange(len(image_ids) + 1)),
        ids=ids[order],
        class_labels=class_labels[order],
        boxes_xywh=boxes_to_coco_xywh(boxes, box_format, image_hw[images])[order],
        areas=areas[order],
        is_crowd=is_crowd[order],
        segmentations=packed,
        label_ids_of_stuff=frozenset(labels[stuff_id] for stuff_id in stuff_ids),
        problems=tuple(problems),
    )


def _column(
    entries: Sequence[Mapping[str, Any]],
    images: Sequence[int],
    problems: list[Problem],
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
            name = entries[row].get("id", row)
            text = f"object {name} has {key} {value!r}; expected {expected}"
            # Ids are only used in messages; the index replaces an invalid one.
            problems.append(Problem(f"wrong {key}", images[row], text, key != "id"))
        values[row] = row if default is None else default
    return np.array(values, dtype=dtype)


def is_integer(value: Any) -> bool:
    """Whether a value is a signed 64-bit integer and not a bool."""
    return type(value) is int and -(2**63) <= value < 2**63


def _is_box(value: Any) -> bool:
    return type(value) is list and len(value) == 4 and all(map(_is_finite, value))


def _is_area(value: Any) -> bool:
    return _is_finite(value) and value >= 0


def _is_finite(value: Any) -> bool:
    return is_integer(value) or (type(value) is float and math.isfinite(value))


def _class_labels(ids: np.ndarray, category_ids: np.ndarray) -> np.ndarray:
    """Index of each id in the sorted `category_ids`, -1 where it is missing; (n,)."""
    if not len(category_ids):
        return np.full(len(ids), -1, dtype=np.int64)
    index = np.searchsorted(category_ids, ids).clip(max=len(category_ids) - 1)
    return np.where(category_ids[index] == ids, index, -1)


def _turn_sizes(
    image_hw: np.ndarray,
    boxes: np.ndarray,
    images: np.ndarray,
    box_format: str,
    turned_hw: Callable[[int], tuple[int, int] | None],
    problems: list[Problem],
) -> None:
    """Replace sizes before EXIF orientation in `image_hw` where all boxes fit only upright."""
    turned = []
    for image in images_that_fit_turned(boxes, images, box_format, image_hw).tolist():
        upright_hw = image_hw[image, ::-1].copy()
        if turned_hw(image) == tuple(upright_hw.tolist()):
            image_hw[image] = upright_hw
            turned.append(image)
    if turned:
        text = (
            f"{len(turned)} images, such as image {turned[0]}, have the width and height of the "
            "file before its EXIF orientation, but boxes that fit only the upright image; the "
            "upright size is used"
        )
        problems.append(Problem("size before EXIF orientation", None, text, False))


def _warn_of_problems(problems: Sequence[Problem]) -> None:
    for problem in problems:
        if problem.image is None and not problem.is_fatal:
            warnings.warn(f"{problem.text}.", stacklevel=4)
    fatal = [problem for problem in problems if problem.is_fatal]
    if fatal:
        examples = "\n".join(f"  {problem.text}" for problem in fatal[:3])
        warnings.warn(
            f"The annotations have {len(fatal)} problems that prevent training, such as\n"
            f"{examples}\n`hf-detr check` lists all of them.",
            stacklevel=4,
        )
