"""Checks of a data set, one per function; `check_dataset` runs all of them."""

from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from itertools import islice, pairwise

import numpy as np
import torch

from ..image_processing.coco_records import FLOAT32_MAX, MIN_BOX_SIZE
from ..wording import some_of
from .annotation_table import AnnotationTable, Problem, have_area_inside
from .dataset import DetectionDataset
from .image_source import (
    READING_ERRORS,
    read_pixels,
    read_segment_ids,
    size_reason,
    upright_size_hw,
)

BORDER = 1.0  # pixels that a box may extend beyond its image, because annotations are rounded
BLOCK = 20_000  # images whose boxes are checked at once


def class_problems(table: AnnotationTable) -> Iterator[Problem]:
    """Find gaps in the category ids, repeated names and classes without objects.

    Models, evaluation and model cards identify classes by name.
    """
    ids = table.category_ids
    if not ids:
        yield Problem("classes", None, "there are no classes", True)
        return
    # The gaps aren't listed: ids can be anything up to 2 ** 63.
    missing = (i for before, after in pairwise(ids) for i in range(before + 1, after))
    num_missing = ids[-1] - ids[0] + 1 - len(ids)
    if num_missing or ids[0] != 0:
        first = some_of(list(islice(missing, 5)))
        more = f" and {num_missing - 5} more" if num_missing > 5 else ""
        gaps = f", without {first}{more}" if num_missing else ""
        text = f"ids from {ids[0]} to {ids[-1]}{gaps} become labels from 0 to {len(ids) - 1}"
        yield Problem("category ids renumbered", None, text, False)
    for name, count in Counter(table.id2label.values()).items():
        if count > 1:
            text = f"{count} classes have the name {name!r}; names must be unique"
            yield Problem("class names", None, text, True)
    yield from _similar_names(table.id2label.values())
    labels = table.class_labels[(table.class_labels >= 0) & table.are_trained()]
    counts = np.bincount(labels, minlength=len(ids))
    unseen = [table.id2label[label] for label in np.flatnonzero(counts == 0).tolist()]
    if unseen:
        text = f"{len(unseen)} classes have no object: {some_of(unseen)}"
        yield Problem("classes without objects", None, text, False)


def _similar_names(names: Iterable[str]) -> Iterator[Problem]:
    """Find names that differ only in case or in spaces around them."""
    spellings = defaultdict(list)
    for name in dict.fromkeys(names):
        spellings[name.strip().casefold()].append(name)
    for same in spellings.values():
        if len(same) > 1:
            text = f"the names {some_of(list(map(repr, same)))} are nearly the same"
            yield Problem("similar class names", None, f"{text}, but classes of their own", False)


def box_problems(table: AnnotationTable) -> Iterator[Problem]:
    """Find boxes that are invalid, dropped or clipped."""
    for part in _parts(table):
        yield from _box_problems(table, part)


def _parts(table: AnnotationTable) -> Iterator[tuple[slice, np.ndarray]]:
    """Yield the rows of some images' objects and the objects' images, to save memory."""
    counts = np.diff(table.offsets)
    for start in range(0, len(table), BLOCK):
        images = slice(start, start + BLOCK)
        numbers = np.arange(start, min(start + BLOCK, len(table)))
        rows = slice(int(table.offsets[numbers[0]]), int(table.offsets[numbers[-1] + 1]))
        yield rows, np.repeat(numbers, counts[images])


def _box_problems(table: AnnotationTable, part: tuple[slice, np.ndarray]) -> Iterator[Problem]:
    rows, images = part
    boxes, ids = table.boxes_xywh[rows], table.ids[rows]
    image_hw = table.image_hw[images]
    image_wh = np.where(image_hw > 0, image_hw, np.inf)[:, ::-1]
    low, size = boxes[:, :2], boxes[:, 2:]
    high = low + size
    is_finite = (np.abs(boxes) <= FLOAT32_MAX).all(-1)
    is_negative = is_finite & (size < 0).any(-1)
    is_valid = is_finite & ~is_negative
    is_dropped = is_valid & ~have_area_inside(boxes, image_hw)
    is_beyond = (high <= MIN_BOX_SIZE) | (low >= image_wh - MIN_BOX_SIZE)
    is_outside = is_dropped & (size > MIN_BOX_SIZE).all(-1) & is_beyond.any(-1)
    is_past_border = ((low < -BORDER) | (high > image_wh + BORDER)).any(-1)
    for kind, found, is_fatal in (
        ("non-finite box", ~is_finite & ~np.isnan(boxes).any(-1), True),  # NaN is reported already
        ("box with negative size", is_negative, True),
        ("box without area (dropped)", is_dropped & ~is_outside, False),
        ("box outside its image (dropped)", is_outside, False),
        ("box beyond the border (clipped)", is_valid & ~is_dropped & is_past_border, False),
    ):
        for row in np.flatnonzero(found).tolist():
            text = f"object {ids[row]} has the box (left, top, width, height) "
            box = [round(value, 3) for value in boxes[row].tolist()]
            yield Problem(kind, int(images[row]), text + f"{box}", is_fatal)


def duplicate_problems(table: AnnotationTable) -> Iterator[Problem]:
    """Find objects with the same image, class and box."""
    for rows, images in _parts(table):
        columns = [images, table.class_labels[rows], *table.boxes_xywh[rows].T]
        order, ids = np.lexsort(columns), table.ids[rows]
        sorted_columns = np.stack([column[order] for column in columns])
        is_same = (sorted_columns[:, 1:] == sorted_columns[:, :-1]).all(0)
        for index in np.flatnonzero(is_same).tolist():
            first, second = order[index : index + 2]
            text = f"objects {ids[first]} and {ids[second]} have the same class and box"
            yield Problem("duplicate annotation", int(images[first]), text, False)


def count_problems(table: AnnotationTable, num_queries: int | None) -> Iterator[Problem]:
    """Find images without objects, or with more objects than the model has queries."""
    if len(table) == 0:
        yield Problem("no images", None, "there are no images", True)
        return
    counts = np.bincount(table.image_of_rows()[table.are_trained()], minlength=len(table))
    if not counts.any():
        yield Problem("no objects at all", None, "no image has an object for training", True)
    for image in np.flatnonzero(counts == 0).tolist():
        yield Problem("image without objects", image, "it is trained as background", False)
    if num_queries is not None:
        for image in np.flatnonzero(counts > num_queries).tolist():
            text = f"{counts[image]} objects, but only {num_queries} queries"
            yield Problem("more objects than queries", image, text, False)


def repeated_image_problems(dataset: DetectionDataset) -> Iterator[Problem]:
    """Find images with the file of another image."""
    first: dict[str, int] = {}
    for image in range(len(dataset)):
        name = dataset.images.name(image)
        if first.setdefault(name, image) != image:
            yield Problem("image twice", image, f"the same file as image {first[name]}", False)


def image_problems(
    dataset: DetectionDataset, image: int, decode: bool, with_masks: bool = True
) -> list[Problem]:
    """Check an image's file, and its masks if the data set has masks.

    Args:
        decode: whether to decode the image as in training, which finds truncated files and kinds
            of pixels that can't be used, or to read only its header.
        with_masks: whether to check the masks.
    """
    size_hw = dataset.image_hw(image)
    try:
        with dataset.images.open(image) as opened:
            found_hw = upright_size_hw(opened)
        if decode:
            found_hw = tuple(read_pixels(dataset.images, image).shape[1:])
    except FileNotFoundError:
        return [Problem("missing image", image, "the file doesn't exist", True)]
    except READING_ERRORS as error:
        text = str(error).removeprefix(f"{dataset.images.name(image)} ")
        return [Problem("unreadable image", image, text, True)]
    if found_hw != size_hw:
        text = f"it has {found_hw} pixels (height, width), but its annotations are for {size_hw}"
        text += size_reason(dataset.images, image, size_hw)
        return [Problem("image of another size", image, text, True)]
    return _mask_problems(dataset, image) if dataset.masks and with_masks else []


def _mask_problems(dataset: DetectionDataset, image: int) -> list[Problem]:
    if dataset.segment_maps is not None:
        return _map_problems(dataset, image)
    problems = []
    for row in dataset.table.rows(image):
        try:
            is_empty = not dataset.object_masks(image, [row]).any()
        except (ValueError, TypeError) as error:
            problems.append(Problem("bad mask", image, str(error), True))
            continue
        if is_empty:
            text = f"object {dataset.table.ids[row]} has a mask without a pixel"
            problems.append(Problem("empty mask", image, text, False))
    return problems


def _map_problems(dataset: DetectionDataset, image: int) -> list[Problem]:
    rows = dataset.table.rows(image)
    if not rows:
        return []
    try:
        segment_ids = read_segment_ids(dataset.segment_maps, image)
    except ValueError as error:
        return [Problem("segment map", image, str(error), True)]
    if segment_ids.shape != dataset.image_hw(image):
        text = f"{dataset.segment_maps.name(image)} has {tuple(segment_ids.shape)} pixels"
        return [Problem("segment map", image, text + " (height, width)", True)]
    in_map, listed = set(torch.unique(segment_ids).tolist()), set(dataset.table.ids[rows].tolist())
    problems, name = [], dataset.segment_maps.name(image)
    if missing := sorted(listed - in_map):
        text = f"segments {some_of(missing)} have no pixel in {name}"
        problems.append(Problem("empty mask", image, text, False))
    if unlisted := sorted(in_map - listed - {0}):
        text = f"{name} has pixels of {some_of(unlisted)}, which aren't listed and are ignored"
        problems.append(Problem("unlisted segments", image, text, False))
    return problems
