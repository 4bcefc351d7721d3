"""What COCO's detection and panoptic records have in common: checked values, and their target.

Mistakes are named by image and object, such as "image_id 7, annotation 3".
"""

import math
import numbers
import warnings
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

FLOAT32_MAX = torch.finfo(torch.float32).max


class ObjectFields(NamedTuple):
    """What an object has besides its place.

    Attributes:
        class_label: from 0.
        area: in square pixels, NaN if the record has none.
        is_crowd: whether it is a region around a group.
    """

    class_label: int
    area: float
    is_crowd: bool


def checked_record(record: Any, list_key: str, example: str) -> tuple[int, list[Any]]:
    """The image's id, which stands under "image_id" or "id", and the list of its objects.

    Args:
        record: what was given as one image's annotation.
        list_key: where the list stands in it.
        example: a good record, for the messages.

    Raises:
        ValueError: if a key is missing, or the image's id isn't an integer.
        TypeError: if the record isn't a mapping with a list.
    """
    if not isinstance(record, Mapping):
        raise TypeError(
            f"an annotation is a {type(record).__name__}; give one dict per image: {example}."
        )
    id_key = "id" if "id" in record and "image_id" not in record else "image_id"
    missing = {id_key, list_key} - set(record)
    if missing:
        raise ValueError(
            f"an annotation has no {sorted(missing)}, only {sorted(map(str, record))}; give one "
            f"dict per image, {example}, the list empty if there is nothing in the image. Format "
            "'coco_detection' reads 'annotations', 'coco_panoptic' reads 'segments_info'."
        )
    image_id = integer_or_none(record[id_key])
    if image_id is None:
        raise ValueError(f"{id_key} is {record[id_key]!r}; give an integer.")
    entries = record[list_key]
    if not isinstance(entries, (list, tuple)):
        raise TypeError(
            f"image_id {image_id}: '{list_key}' is a {type(entries).__name__}; give a list with "
            "one dict per object."
        )
    return image_id, list(entries)


def check_entry(entry: Any, keys: Sequence[str], name: str) -> None:
    """Refuse an object that isn't a mapping or lacks one of `keys`.

    Raises:
        ValueError, TypeError: naming the object as `name`, such as "image_id 7, annotation 3".
    """
    needed = " and ".join(map(repr, keys))
    if not isinstance(entry, Mapping):
        raise TypeError(f"{name} is a {type(entry).__name__}; give a dict with {needed}.")
    for key in keys:
        # Datasets that were written as tables hold None where a key was missing.
        if entry.get(key) is None:
            raise ValueError(
                f"{name} has no '{key}', only {sorted(map(str, entry))}; every object needs "
                f"{needed}."
            )


def checked_fields(entry: Mapping[str, Any], name: str) -> ObjectFields:
    """Read `category_id`, and `area` and `iscrowd` where there are any.

    Raises:
        ValueError: if a value can't be right.
    """
    class_label = integer_or_none(entry["category_id"])
    if class_label is None or class_label < 0:
        raise ValueError(
            f"{name} has category_id {entry['category_id']!r}; give an integer from 0."
        )
    is_crowd = 0 if entry.get("iscrowd") is None else entry["iscrowd"]
    if is_crowd not in (0, 1):
        raise ValueError(f"{name} has iscrowd {entry['iscrowd']!r}; give 0 or 1.")
    return ObjectFields(class_label, _checked_area(entry, name), bool(is_crowd == 1))


def checked_box(entry: Mapping[str, Any], name: str) -> list[float]:
    """The object's `bbox`, (left, top, width, height) in pixels; ValueError if it can't be one."""
    bbox = entry["bbox"]
    values = bbox.tolist() if hasattr(bbox, "tolist") else bbox
    if not isinstance(values, (list, tuple)) or len(values) != 4:
        raise ValueError(f"{name} has bbox {bbox!r}; give 4 numbers (left, top, width, height).")
    box = [_finite_or_none(value) for value in values]
    if None in box:
        raise ValueError(f"{name} has bbox {bbox!r}; all 4 values must be finite numbers.")
    if box[2] < 0 or box[3] < 0:
        raise ValueError(
            f"{name} has bbox {bbox!r} of negative size; COCO boxes are (left, top, width, height)."
        )
    return box


def integer_or_none(value: Any) -> int | None:
    """A whole number of Python, NumPy or torch as int, None for anything else."""
    number = _finite_or_none(value)
    return int(value) if number is not None and number == int(number) else None


def prepare_target(
    image_id: int,
    image_hw: tuple[int, int],
    fields: list[ObjectFields],
    boxes_xyxy: Tensor,
    areas: Tensor,
    reason: str,
) -> tuple[dict[str, Tensor], Tensor]:
    """Make the target of one image, without boxes that have no area; warns of those.

    Args:
        image_hw: height and width of the upright image in pixels.
        fields: of each object.
        boxes_xyxy: (n, 4) as (x0, y0, x1, y1) in pixels.
        areas: (n,) in square pixels, for objects that don't say.
        reason: ends the warning "… dropped, because they have no area".

    Returns:
        The target, and which objects were kept, (n,) bool.
    """
    keep = (boxes_xyxy[:, 2:] > boxes_xyxy[:, :2]).all(-1)
    dropped = int((~keep).sum())
    if dropped:
        warnings.warn(
            f"image_id {image_id}: {dropped} of {len(keep)} boxes dropped, because they have no "
            f"area {reason}.",
            stacklevel=3,
        )
    given = torch.tensor([field.area for field in fields], dtype=torch.float32)
    class_labels = torch.tensor([field.class_label for field in fields], dtype=torch.int64)
    are_crowds = torch.tensor([field.is_crowd for field in fields], dtype=torch.int64)
    size = torch.tensor(image_hw, dtype=torch.int64)
    target = {
        "image_id": torch.tensor([image_id], dtype=torch.int64),
        "class_labels": class_labels[keep],
        "boxes": boxes_xyxy[keep],
        "area": torch.where(given.isnan(), areas, given)[keep],
        "iscrowd": are_crowds[keep],
        "orig_size": size,
        "size": size.clone(),
    }
    return target, keep


def _checked_area(entry: Mapping[str, Any], name: str) -> float:
    if entry.get("area") is None:
        return math.nan
    area = _finite_or_none(entry["area"])
    if area is None or area < 0:
        raise ValueError(
            f"{name} has area {entry['area']!r}; give a finite number of square pixels from 0, or "
            "leave it out to have it computed."
        )
    return area


def _finite_or_none(value: Any) -> float | None:
    value = value.item() if isinstance(value, Tensor) and value.numel() == 1 else value
    if isinstance(value, bool) or not isinstance(value, numbers.Real):
        return None
    return float(value) if abs(value) <= FLOAT32_MAX else None
