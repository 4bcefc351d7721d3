"""Convert annotations with one dict per object, as in COCO files, to columns of a table."""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from .annotation_table import Problem, RawObjects
from .image_source import ImageSource, read_segment_ids


def objects_from_entries(
    entries: Sequence[Mapping[str, Any]], images: Sequence[int], problems: list[Problem]
) -> RawObjects:
    """Collect the columns of objects, without segmentations.

    Args:
        entries: dicts with `bbox` and `category_id`, optionally `id`, `area` and `iscrowd`.
        images: index of each entry's image.
        problems: extended by the invalid values, which are NaN, 0 or -1 in the columns.
    """

    def column(
        key: str, is_valid: Callable[[Any], bool], default: Any, expected: str, optional: bool
    ) -> list[Any]:
        values = [entry.get(key) for entry in entries]
        for row, value in enumerate(values):
            if is_valid(value):
                continue
            if value is not None or not optional:
                name = entries[row].get("id", row)
                text = f"object {name} has {key} {value!r}; expected {expected}"
                # Ids are only used in messages; the index replaces an invalid one.
                problems.append(Problem(f"wrong {key}", images[row], text, key != "id"))
            values[row] = row if default is None else default
        return values

    return RawObjects(
        images=images,
        ids=column("id", is_integer, None, "an integer", True),
        category_ids=column("category_id", is_integer, -1, "an integer", False),
        boxes=column("bbox", _is_box, [math.nan] * 4, "4 finite numbers", False),
        areas=column("area", _is_area, math.nan, "a finite number >= 0", True),
        is_crowd=column("iscrowd", _is_flag, False, "0 or 1", True),
    )


def is_integer(value: Any) -> bool:
    """Whether a value is a signed 64-bit integer and not a bool."""
    return type(value) is int and -(2**63) <= value < 2**63


def _is_box(value: Any) -> bool:
    return type(value) is list and len(value) == 4 and all(map(_is_finite, value))


def _is_area(value: Any) -> bool:
    return _is_finite(value) and value >= 0


def _is_flag(value: Any) -> bool:
    return value == 0 or value == 1


def _is_finite(value: Any) -> bool:
    return is_integer(value) or (type(value) is float and math.isfinite(value))


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
