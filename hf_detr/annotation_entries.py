"""Annotations that are written as one dict per object, as COCO's are, to columns of a table."""

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
    """Gather the columns of objects, without their segmentations.

    Args:
        entries: each with `bbox` and `category_id`, and perhaps `id`, `area` and `iscrowd`.
        images: the index of each entry's image.
        problems: what can't be read is added here; in the columns it is NaN, 0 or -1.
    """

    def column(
        key: str, is_right: Callable[[Any], bool], default: Any, expected: str, optional: bool
    ) -> list[Any]:
        values = [entry.get(key) for entry in entries]
        for row, value in enumerate(values):
            if is_right(value):
                continue
            if value is not None or not optional:
                text = f"object {entries[row].get('id', row)} has {key} {value!r}, not {expected}"
                # An id only serves messages; its place stands in for it.
                problems.append(Problem(f"wrong {key}", images[row], text, key != "id"))
            values[row] = row if default is None else default
        return values

    return RawObjects(
        images=images,
        ids=column("id", is_integer, None, "an integer", True),
        category_ids=column("category_id", is_integer, -1, "an integer", False),
        boxes=column("bbox", _is_box, [math.nan] * 4, "4 finite numbers", False),
        areas=column("area", _is_area, math.nan, "a finite number from 0", True),
        is_crowd=column("iscrowd", _is_flag, False, "0 or 1", True),
    )


def is_integer(value: Any) -> bool:
    """Whether a value is an integer of at most 64 bits, and no bool."""
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
    """Segments of one image; boxes that are missing are those of its segment map.

    Raises:
        ValueError: if a segment has no id, the map can't be read, or other boxes have another
            format.
    """
    for segment in segments:
        if not isinstance(segment, Mapping) or not is_integer(segment.get("id")):
            raise ValueError(
                f"{maps.name(index)} has the segment {segment!r}; each needs an integer 'id', the "
                "one in the map."
            )
    if all(segment.get("bbox") is not None for segment in segments):
        return segments
    if box_format != "coco_xywh":
        raise ValueError(
            f"{maps.name(index)} has segments without 'bbox'; these are filled in as 'coco_xywh', "
            f"which can't stand beside box_format={box_format!r}: leave all boxes out, or give all."
        )
    boxes = segment_boxes(read_segment_ids(maps, index), [s["id"] for s in segments])
    return [{**s, "bbox": s.get("bbox") or box} for box, s in zip(boxes, segments, strict=True)]


def segment_boxes(segment_ids: Tensor, ids: Sequence[int]) -> list[list[float]]:
    """The tight box (left, top, width, height) of each segment of a map (H, W), in pixels.

    A segment without pixels has a box of NaN.
    """
    boxes = []
    for own_id in ids:
        rows, columns = torch.nonzero(segment_ids == own_id, as_tuple=True)
        if not len(rows):
            boxes.append([math.nan] * 4)
            continue
        (top, bottom), (left, right) = rows.aminmax(), columns.aminmax()
        boxes.append([int(left), int(top), int(right - left) + 1, int(bottom - top) + 1])
    return boxes
