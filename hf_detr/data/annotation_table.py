"""The annotations of a data set in flat arrays, independent of the data set's format.

Forked data workers copy Python objects, because reference counting writes to their memory. Arrays
of numbers stay shared between the processes.
"""

import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..image_processing.coco_records import min_box_size
from .box_formats import (
    blocks,
    box_format_suspicion,
    boxes_to_coco_xywh,
    checked_box_format,
    images_that_fit_turned,
)
from .object_columns import INVALID, ObjectColumns, Problem
from .packed_values import PackedValues


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

    def are_trained(self) -> np.ndarray:
        """Return which objects are trained: those with area inside their image, no crowds; (n,)."""
        images = self.image_of_rows()
        have_area = np.empty(len(images), dtype=bool)
        for rows in blocks(len(images)):
            have_area[rows] = have_area_inside(self.boxes_xywh[rows], self.image_hw[images[rows]])
        return have_area & ~self.is_crowd

    def most_objects(self) -> int:
        """Return the number of objects of the image that has most."""
        return int(np.diff(self.offsets).max(initial=0))


def have_area_inside(boxes_xywh: np.ndarray, image_hw: np.ndarray) -> np.ndarray:
    """Return which boxes have an area inside their image; training drops the others.

    Args:
        boxes_xywh: (n, 4) in pixels; boxes that aren't finite or have a negative size have no area.
        image_hw: (n, 2) height and width of each box's image in pixels; 0 if unknown.

    Returns:
        (n,) bool.
    """
    image_wh = np.where(image_hw > 0, image_hw, np.inf)[:, ::-1].astype(np.float32)
    # In float32 as in `prepare_target`, so that both agree.
    with np.errstate(over="ignore", invalid="ignore"):
        low, size = np.split(boxes_xywh.astype(np.float32), 2, axis=1)
        inside = np.minimum(low + size, image_wh) - np.maximum(low, 0)
    return (inside > min_box_size(image_hw)[:, None]).all(-1)


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
    has_fixed_format: bool = False,
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
        has_fixed_format: whether the data's format has this box format only, as that of YOLO.

    Raises:
        ValueError: if `stuff_ids` has ids that aren't in `categories`.
    """
    objects = ObjectColumns.of_entries(entries, images, masks)
    return table_of_objects(
        *(categories, image_ids, image_hw, objects, box_format, stuff_ids, problems, turned_hw),
        has_fixed_format,
    )


def table_of_objects(
    categories: Mapping[int, str],
    image_ids: Sequence[int] | np.ndarray,
    image_hw: Sequence[tuple[int, int]] | np.ndarray,
    objects: ObjectColumns,
    box_format: str,
    stuff_ids: Iterable[int] = (),
    problems: Sequence[Problem] = (),
    turned_hw: Callable[[int], tuple[int, int] | None] | None = None,
    has_fixed_format: bool = False,
) -> AnnotationTable:
    """Make a table of objects in columns, which are sorted; otherwise as `make_table`."""
    stuff_ids = frozenset(stuff_ids)
    if unknown := stuff_ids - set(categories):
        raise ValueError(
            f"stuff_ids has {sorted(unknown)}; expected ids of categories, {sorted(categories)}."
        )
    problems, box_format = [*problems, *objects.problems], checked_box_format(box_format)
    category_ids = np.array(sorted(categories), dtype=np.int64)
    image_hw = np.array(image_hw, dtype=np.int64).reshape(-1, 2)
    if turned_hw is not None:
        _turn_sizes(image_hw, objects, box_format, turned_hw, problems)
    ids, object_category_ids = objects.ids, objects.category_ids
    objects.category_ids = _class_labels(object_category_ids, category_ids)
    is_unknown = (objects.category_ids < 0) & (object_category_ids != INVALID)
    for row in np.flatnonzero(is_unknown):
        text = f"object {ids[row]} has the unknown category id {object_category_ids[row]}"
        problems.append(Problem("unknown category id", int(objects.images[row]), text, True))
    del ids, object_category_ids  # to save memory
    sizes_hw = image_hw[objects.images]
    suspicion = box_format_suspicion(objects.boxes, box_format, sizes_hw, has_fixed_format)
    del sizes_hw
    if suspicion:
        problems.insert(0, Problem("box format", None, suspicion, True))
    objects.sort_by_image()
    for rows in blocks(len(objects)):
        sizes_hw = image_hw[objects.images[rows]]
        objects.boxes[rows] = boxes_to_coco_xywh(objects.boxes[rows], box_format, sizes_hw)
    labels = {int(category_id): label for label, category_id in enumerate(category_ids)}
    table = AnnotationTable(
        category_ids=tuple(labels),
        id2label={label: str(categories[key]) for key, label in labels.items()},
        image_ids=np.array(image_ids, dtype=np.int64),
        image_hw=image_hw,
        offsets=np.searchsorted(objects.images, np.arange(len(image_ids) + 1)),
        ids=objects.ids,
        class_labels=objects.category_ids,
        boxes_xywh=objects.boxes,
        areas=objects.areas,
        is_crowd=objects.is_crowd,
        segmentations=objects.segmentations,
        label_ids_of_stuff=frozenset(labels[stuff_id] for stuff_id in stuff_ids),
        problems=tuple(problems),
    )
    warn_of_problems(table.problems)
    return table


def _class_labels(ids: np.ndarray, category_ids: np.ndarray) -> np.ndarray:
    """Index of each id in the sorted `category_ids`, -1 where it is missing; (n,)."""
    if not len(category_ids):
        return np.full(len(ids), -1, dtype=np.int64)
    index = np.searchsorted(category_ids, ids).clip(max=len(category_ids) - 1)
    return np.where(category_ids[index] == ids, index, -1)


def _turn_sizes(
    image_hw: np.ndarray,
    objects: ObjectColumns,
    box_format: str,
    turned_hw: Callable[[int], tuple[int, int] | None],
    problems: list[Problem],
) -> None:
    """Replace sizes before EXIF orientation in `image_hw` where all boxes fit only upright."""
    turned = []
    fitting = images_that_fit_turned(objects.boxes, objects.images, box_format, image_hw)
    for image in fitting.tolist():
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


def warn_of_problems(problems: Sequence[Problem]) -> None:
    """Warn about fatal problems, and about those of the whole data set."""
    for problem in problems:
        if problem.image is None and not problem.is_fatal:
            warnings.warn(f"{problem.text}.", stacklevel=5)
    fatal = [problem for problem in problems if problem.is_fatal]
    if fatal:
        examples = "\n".join(f"  {problem.text}" for problem in fatal[:3])
        warnings.warn(
            f"The annotations have {len(fatal)} problems that prevent training, such as\n"
            f"{examples}\n`hf-detr check` lists all of them.",
            stacklevel=5,
        )
