"""COCO records to target tensors, and what happens to targets when their image changes.

A target is a dict of one image's tensors: `class_labels` (n,), `boxes` (n, 4), `area` (n,),
`iscrowd` (n,), `image_id` (1,), `orig_size` (2,) and `size` (2,) as (height, width) in pixels.
Boxes are corners (x0, y0, x1, y1) in pixels of `size` until `normalize_target` makes them
(cx, cy, w, h) in [0, 1]. `masks` (n, H, W), where there are any, follow their image.
"""

import math
import numbers
import warnings
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from .box_ops import box_area, box_xyxy_to_cxcywh

FLOAT32_MAX = torch.finfo(torch.float32).max


def prepare_detection_target(
    annotation: Mapping[str, Any], image_hw: tuple[int, int]
) -> dict[str, Tensor]:
    """Turn the COCO detection record of one image into its target.

    Crowd regions are left out. Boxes are clipped to the image; those without any area left are
    dropped with a warning. A missing `area` is the area of the clipped box.

    Args:
        annotation: `{"image_id": int, "annotations": [...]}`; each entry has `bbox` as (left, top,
            width, height) in pixels and `category_id`, and may have `area` in square pixels and
            `iscrowd` (0 or 1).
        image_hw: height and width of the upright image in pixels.

    Returns:
        The target, with boxes (n, 4) as (x0, y0, x1, y1) in pixels.

    Raises:
        ValueError: if a key is missing or a value can't be right; it names image and entry.
        TypeError: if the record isn't a mapping with a list of mappings.
    """
    image_id = _checked_image_id(annotation)
    boxes_xywh, class_labels, areas = [], [], []
    for index, entry in enumerate(_checked_entries(annotation, image_id)):
        name = f"image_id {image_id}, annotation {index}"
        box, class_label, area, is_crowd = _checked_entry(entry, name)
        if not is_crowd:
            boxes_xywh.append(box)
            class_labels.append(class_label)
            areas.append(area)

    boxes_xyxy = _clipped_corners(
        torch.tensor(boxes_xywh, dtype=torch.float32).reshape(-1, 4), image_hw
    )
    area = torch.tensor(areas, dtype=torch.float32)
    area = torch.where(area.isnan(), box_area(boxes_xyxy), area)
    keep = (boxes_xyxy[:, 2:] > boxes_xyxy[:, :2]).all(-1)
    _warn_of_dropped(keep, image_id, image_hw)
    size = torch.tensor(image_hw, dtype=torch.int64)
    return {
        "image_id": torch.tensor([image_id], dtype=torch.int64),
        "class_labels": torch.tensor(class_labels, dtype=torch.int64)[keep],
        "boxes": boxes_xyxy[keep],
        "area": area[keep],
        "iscrowd": torch.zeros(int(keep.sum()), dtype=torch.int64),
        "orig_size": size,
        "size": size.clone(),
    }


def resize_target(target: Mapping[str, Tensor], size_hw: tuple[int, int]) -> dict[str, Tensor]:
    """Follow an image that was resized from `target["size"]` to `size_hw`.

    Args:
        target: boxes (n, 4) in pixels.
        size_hw: new height and width in pixels.

    Returns:
        A new target; boxes and areas are scaled, masks resized by the nearest pixel.
    """
    old_height, old_width = target["size"].tolist()
    ratio_y, ratio_x = size_hw[0] / old_height, size_hw[1] / old_width
    resized = dict(target)
    resized["boxes"] = target["boxes"] * torch.tensor(
        [ratio_x, ratio_y, ratio_x, ratio_y], dtype=torch.float32
    )
    resized["area"] = target["area"] * (ratio_x * ratio_y)
    resized["size"] = torch.tensor(size_hw, dtype=torch.int64)
    if "masks" in target:
        masks = target["masks"][:, None].to(torch.float32)  # (n, 1, H, W)
        resized["masks"] = F.interpolate(masks, size_hw, mode="nearest")[:, 0] > 0.5
    return resized


def normalize_target(target: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Make pixel corners (x0, y0, x1, y1) relative (cx, cy, w, h) in [0, 1] of `target["size"]`."""
    height, width = target["size"].tolist()
    scale = torch.tensor([width, height, width, height], dtype=torch.float32)
    return {**target, "boxes": box_xyxy_to_cxcywh(target["boxes"]) / scale}


def pad_target(target: Mapping[str, Tensor], canvas_hw: tuple[int, int]) -> dict[str, Tensor]:
    """Follow an image that was padded at the bottom and the right to `canvas_hw`.

    Masks (n, H, W) grow with the canvas.
    """
    # Deviation: transformers makes `boxes` and `size` those of the canvas. Predictions are read
    # relative to the image itself, so targets are too, as in the official code.
    padded = dict(target)
    if "masks" in target:
        height, width = target["masks"].shape[-2:]
        margins = (0, canvas_hw[1] - width, 0, canvas_hw[0] - height)
        padded["masks"] = F.pad(target["masks"], margins)
    return padded


def prepare_labels(
    annotations: Mapping[str, Any] | list[Mapping[str, Any]] | None,
    sizes_hw: list[tuple[int, int]],
    new_sizes_hw: list[tuple[int, int]],
    canvas_hw: tuple[int, int],
    settings: Mapping[str, Any],
) -> list[dict[str, Tensor]] | None:
    """One target per image of a batch, resized and padded as its image is.

    Args:
        annotations: one record per image, or None.
        sizes_hw, new_sizes_hw: (height, width) of each image as it was, and resized.
        canvas_hw: what all images are padded to.
        settings: the processor's `format` and `do_convert_annotations`.

    Raises:
        ValueError, TypeError: for records that can't be used, in words.
    """
    if annotations is None:
        return None
    if settings["format"] != "coco_detection":
        raise ValueError(
            f"annotations of format {settings['format']!r} are not supported yet; pass "
            "format='coco_detection' with boxes."
        )
    annotations = [annotations] if isinstance(annotations, Mapping) else annotations
    if not isinstance(annotations, (list, tuple)):
        raise TypeError(
            f"annotations is a {type(annotations).__name__}; give a list with one dict per image."
        )
    if len(annotations) != len(sizes_hw):
        raise ValueError(
            f"there are {len(annotations)} annotations for {len(sizes_hw)} images; give one dict "
            "per image, {'image_id': int, 'annotations': [...]}, with all objects of that image."
        )
    labels = []
    for annotation, size_hw, new_hw in zip(annotations, sizes_hw, new_sizes_hw, strict=True):
        target = resize_target(prepare_detection_target(annotation, size_hw), new_hw)
        if settings["do_convert_annotations"]:
            target = normalize_target(target)
        labels.append(pad_target(target, canvas_hw))
    return labels


def _checked_image_id(annotation: Any) -> int:
    if not isinstance(annotation, Mapping):
        raise TypeError(
            f"an annotation is a {type(annotation).__name__}; give one dict per image: "
            "{'image_id': int, 'annotations': [{'bbox': [left, top, width, height], "
            "'category_id': int}, ...]}."
        )
    missing = {"image_id", "annotations"} - set(annotation)
    if missing:
        raise ValueError(
            f"an annotation has no {sorted(missing)}, only {sorted(map(str, annotation))}; give "
            "one dict per image with 'image_id' and 'annotations' (a list, empty if there is "
            "nothing in the image)."
        )
    image_id = _integer_or_none(annotation["image_id"])
    if image_id is None:
        raise ValueError(f"image_id is {annotation['image_id']!r}; give an integer.")
    return image_id


def _checked_entries(annotation: Mapping[str, Any], image_id: int) -> list[Mapping[str, Any]]:
    entries = annotation["annotations"]
    if not isinstance(entries, (list, tuple)):
        raise TypeError(
            f"image_id {image_id}: 'annotations' is a {type(entries).__name__}; give a list with "
            "one dict per object."
        )
    return list(entries)


def _checked_entry(entry: Any, name: str) -> tuple[list[float], int, float, bool]:
    """Box (left, top, width, height), class, area (NaN if not given) and whether it's a crowd."""
    if not isinstance(entry, Mapping):
        raise TypeError(
            f"{name} is a {type(entry).__name__}; give a dict with 'bbox' and 'category_id'."
        )
    for key in ("bbox", "category_id"):
        if entry.get(key) is None:
            raise ValueError(
                f"{name} has no '{key}', only {sorted(map(str, entry))}; every object needs "
                "'bbox' and 'category_id'."
            )
    class_label = _integer_or_none(entry["category_id"])
    if class_label is None or class_label < 0:
        raise ValueError(
            f"{name} has category_id {entry['category_id']!r}; give an integer from 0."
        )
    # Datasets that were written as tables hold None where a key was missing.
    is_crowd = 0 if entry.get("iscrowd") is None else entry["iscrowd"]
    if is_crowd not in (0, 1):
        raise ValueError(f"{name} has iscrowd {entry['iscrowd']!r}; give 0 or 1.")
    return _checked_box(entry["bbox"], name), class_label, _checked_area(entry, name), is_crowd == 1


def _checked_box(bbox: Any, name: str) -> list[float]:
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


def _checked_area(entry: Mapping[str, Any], name: str) -> float:
    if entry.get("area") is None:
        return math.nan
    area = _finite_or_none(entry["area"])
    if area is None or area < 0:
        raise ValueError(
            f"{name} has area {entry['area']!r}; give a finite number of square pixels from 0, or "
            "leave it out to take the box's."
        )
    return area


def _integer_or_none(value: Any) -> int | None:
    number = _finite_or_none(value)
    return int(value) if number is not None and number == int(number) else None


def _finite_or_none(value: Any) -> float | None:
    value = value.item() if isinstance(value, Tensor) and value.numel() == 1 else value
    if isinstance(value, bool) or not isinstance(value, numbers.Real):
        return None
    return float(value) if abs(value) <= FLOAT32_MAX else None


def _clipped_corners(boxes_xywh: Tensor, image_hw: tuple[int, int]) -> Tensor:
    """(n, 4) corners inside the image; what lies outside shrinks to nothing at the border."""
    height, width = image_hw
    corners = torch.cat([boxes_xywh[:, :2], boxes_xywh[:, :2] + boxes_xywh[:, 2:]], dim=-1)
    return corners.clamp(min=0).minimum(torch.tensor([width, height, width, height]))


def _warn_of_dropped(keep: Tensor, image_id: int, image_hw: tuple[int, int]) -> None:
    dropped = int((~keep).sum())
    if dropped:
        warnings.warn(
            f"image_id {image_id}: {dropped} of {len(keep)} boxes dropped, because they have no "
            f"area inside the image ({image_hw[1]} x {image_hw[0]} pixels, width x height).",
            stacklevel=2,
        )
