"""Common parts of COCO detection and panoptic records: checks of values, and targets.

Errors name image and object, such as "image_id 7, annotation 3".
"""

import math
import numbers
import warnings
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

FLOAT32_MAX = torch.finfo(torch.float32).max
MIN_BOX_SIZE = 0.01  # pixels; narrower boxes are errors of rounding
# Of an image's longest edge. Corners of boxes are rounded in float32, by half of its epsilon each
# time that they are flipped or resized.
MIN_BOX_FRACTION = 8 * torch.finfo(torch.float32).eps


class ObjectFields(NamedTuple):
    """Fields of an object besides its box or mask."""

    class_label: int
    area: float  # in square pixels, NaN if the record has none
    is_crowd: bool  # whether it is a region around a group of objects


def checked_record(record: Any, list_key: str, example: str) -> tuple[int, list[Any]]:
    """Return the image's id, from "image_id" or "id", and the list of its objects.

    Args:
        record: the annotation of an image.
        list_key: key of the list of objects.
        example: a valid record, for the messages.

    Raises:
        ValueError: if a key is missing, or the image's id isn't an integer.
        TypeError: if the record isn't a mapping with a list.
    """
    if not isinstance(record, Mapping):
        raise TypeError(
            f"an annotation is a {type(record).__name__}; expected a dict per image, {example}."
        )
    id_key = "id" if "id" in record and "image_id" not in record else "image_id"
    missing = {id_key, list_key} - set(record)
    if missing:
        raise ValueError(
            f"an annotation has the keys {sorted(map(str, record))}, but no {sorted(missing)}; "
            f"expected a dict per image, {example}, with an empty list for an image without "
            "objects. The format 'coco_detection' requires 'annotations', 'coco_panoptic' requires "
            "'segments_info'."
        )
    image_id = integer_or_none(record[id_key])
    if image_id is None:
        raise ValueError(f"{id_key} is {record[id_key]!r}; expected an integer.")
    entries = record[list_key]
    if not isinstance(entries, (list, tuple)):
        raise TypeError(
            f"image_id {image_id}: '{list_key}' is a {type(entries).__name__}; expected a list of "
            "one dict per object."
        )
    return image_id, list(entries)


def checked_fields(entry: Any, keys: Sequence[str], name: str) -> ObjectFields:
    """Check that an object is a mapping with all `keys`, and read its fields.

    Args:
        entry: the object, with `category_id` and the optional `area` and `iscrowd`.
        keys: the required keys.
        name: the object's name in messages.

    Raises:
        ValueError, TypeError: if a key is missing or a value is invalid.
    """
    required = " and ".join(map(repr, keys))
    if not isinstance(entry, Mapping):
        raise TypeError(f"{name} is a {type(entry).__name__}; expected a dict with {required}.")
    for key in keys:
        # Data sets in tables have None for a missing key.
        if entry.get(key) is None:
            raise ValueError(
                f"{name} has the keys {sorted(map(str, entry))}, but no '{key}'; every object "
                f"requires {required}."
            )
    class_label = integer_or_none(entry["category_id"])
    if class_label is None or class_label < 0:
        raise ValueError(
            f"{name} has category_id {entry['category_id']!r}; expected an integer >= 0."
        )
    is_crowd = 0 if entry.get("iscrowd") is None else entry["iscrowd"]
    if is_crowd not in (0, 1):
        raise ValueError(f"{name} has iscrowd {entry['iscrowd']!r}; expected 0 or 1.")
    given = entry.get("area")
    area = math.nan if given is None else _finite_or_none(given)
    if area is None or area < 0:
        raise ValueError(
            f"{name} has area {given!r}; expected a finite number >= 0, or no area, which is "
            "computed then."
        )
    return ObjectFields(class_label, area, bool(is_crowd == 1))


def checked_box(entry: Mapping[str, Any], name: str) -> list[float]:
    """Return an object's `bbox`, (left, top, width, height) in pixels.

    Raises:
        ValueError: if it isn't four finite numbers, or has a negative size.
    """
    bbox = entry["bbox"]
    values = bbox.tolist() if hasattr(bbox, "tolist") else bbox
    box = [_finite_or_none(v) for v in values] if isinstance(values, (list, tuple)) else []
    if len(box) != 4 or None in box:
        raise ValueError(
            f"{name} has bbox {bbox!r}; expected 4 finite numbers (left, top, width, height)."
        )
    if box[2] < 0 or box[3] < 0:
        raise ValueError(
            f"{name} has bbox {bbox!r} of negative size; expected (left, top, width, height)."
        )
    return box


def stack_keypoints(keypoints: Sequence[Any]) -> Tensor | None:
    """Stack the keypoints of an image's objects, (n * K, 3) float32.

    Args:
        keypoints: of each object a flat list of x, y and visibility, or None.

    Returns:
        None if no object has keypoints, or, with a warning, if they can't be stacked.
    """
    if all(values is None for values in keypoints):
        return None
    try:
        array = np.asarray(keypoints, dtype=np.float32)
        return torch.from_numpy(array.reshape(len(keypoints), -1, 3).reshape(-1, 3))
    except (ValueError, TypeError):
        # The same text for all images, so that Python shows it once.
        warnings.warn(
            "'keypoints' are left out of the labels of an image; expected a flat list of x, y and "
            "visibility, of the same length, for every object of the image.",
            stacklevel=3,
        )
        return None


def integer_or_none(value: Any) -> int | None:
    """Return an integer value of Python, NumPy or torch as int, None for anything else."""
    number = _finite_or_none(value)
    return int(value) if number is not None and number == int(number) else None


def min_box_size(image_hw: tuple[int, int] | np.ndarray) -> np.ndarray:
    """Return the width and height in pixels that boxes have to exceed, or they are dropped.

    Flips and resizing can't round larger boxes to empty ones, which the loss refuses.

    Args:
        image_hw: (..., 2) height and width of images in pixels; 0 if unknown.

    Returns:
        (...) float32.
    """
    longest = np.max(image_hw, axis=-1)
    return np.maximum(MIN_BOX_SIZE, MIN_BOX_FRACTION * longest).astype(np.float32)


def prepare_target(
    image_id: int,
    image_hw: tuple[int, int],
    fields: list[ObjectFields],
    boxes_xyxy: Tensor,
    areas: Tensor,
    reason: str,
) -> tuple[dict[str, Tensor], Tensor]:
    """Make the target of an image. Objects whose box has no area are dropped with a warning.

    Those up to `min_box_size` wide or high count as boxes without area.

    Args:
        image_id: id of the image.
        image_hw: height and width of the upright image in pixels.
        fields: fields of each object.
        boxes_xyxy: (n, 4) as (x0, y0, x1, y1) in pixels.
        areas: (n,) in square pixels, for objects without `area`.
        reason: end of the warning "… dropped, because they have no area".

    Returns:
        The target, and which objects were kept, (n,) bool.
    """
    keep = (boxes_xyxy[:, 2:] - boxes_xyxy[:, :2] > float(min_box_size(image_hw))).all(-1)
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


def _finite_or_none(value: Any) -> float | None:
    value = value.item() if isinstance(value, Tensor) and value.numel() == 1 else value
    if isinstance(value, bool) or not isinstance(value, numbers.Real):
        return None
    return float(value) if abs(value) <= FLOAT32_MAX else None
