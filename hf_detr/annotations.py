"""COCO detection records to target tensors, and what happens to targets when their image changes.

A target is a dict of one image's tensors: `class_labels` (n,), `boxes` (n, 4), `area` (n,),
`iscrowd` (n,), `image_id` (1,), `orig_size` (2,) and `size` (2,) as (height, width) in pixels.
Boxes are corners (x0, y0, x1, y1) in pixels of `size` until `normalize_target` makes them
(cx, cy, w, h) in [0, 1]. `masks` (n, H, W) bool, where there are any, follow their image.
"""

import os
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from .box_ops import box_area, box_xyxy_to_cxcywh
from .coco_masks import SEGMENTATION, masks_from_segmentation
from .coco_records import (
    check_entry,
    checked_box,
    checked_fields,
    checked_record,
    prepare_target,
)
from .panoptic_annotations import prepare_panoptic_target

RECORD = (
    "{'image_id': int, 'annotations': [{'bbox': [left, top, width, height], 'category_id': int}, "
    "...]}"
)


def prepare_detection_target(
    annotation: Mapping[str, Any], image_hw: tuple[int, int], return_masks: bool = False
) -> dict[str, Tensor]:
    """Turn the COCO detection record of one image into its target.

    Crowd regions are left out. Boxes are clipped to the image; those without any area left are
    dropped with a warning, and their masks with them. A missing `area` is the area of the clipped
    box.

    Args:
        annotation: `{"image_id" (or "id"): int, "annotations": [...]}`; each entry has `bbox` as
            (left, top, width, height) in pixels and `category_id`, and may have `area` in square
            pixels, `iscrowd` (0 or 1) and `segmentation` (see `masks_from_segmentation`).
        image_hw: height and width of the upright image in pixels.
        return_masks: also give `masks`, (n, H, W) bool, from the entries' `segmentation`.

    Returns:
        The target, with boxes (n, 4) as (x0, y0, x1, y1) in pixels.

    Raises:
        ValueError: if a key is missing or a value can't be right; it names image and entry.
        TypeError: if the record isn't a mapping with a list of mappings, or a segmentation is none.
    """
    image_id, entries = checked_record(annotation, "annotations", RECORD)
    boxes_xywh, fields, segmentations = [], [], []
    for index, entry in enumerate(entries):
        name = f"image_id {image_id}, annotation {index}"
        check_entry(entry, ("bbox", "category_id"), name)
        box, entry_fields = checked_box(entry, name), checked_fields(entry, name)
        if not entry_fields.is_crowd:
            boxes_xywh.append(box)
            fields.append(entry_fields)
            segmentations.append((entry.get("segmentation"), name))

    boxes_xyxy = _clipped_corners(
        torch.tensor(boxes_xywh, dtype=torch.float32).reshape(-1, 4), image_hw
    )
    reason = f"inside the image ({image_hw[1]} x {image_hw[0]} pixels, width x height)"
    target, keep = prepare_target(
        image_id, image_hw, fields, boxes_xyxy, box_area(boxes_xyxy), reason
    )
    if return_masks:
        kept = [pair for pair, is_kept in zip(segmentations, keep, strict=True) if is_kept]
        target["masks"] = _stacked_masks(kept, image_hw)
    return target


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
        # As bytes, which are the same memory: floats would be four times as much.
        masks = target["masks"].view(torch.uint8)[:, None]  # (n, 1, H, W)
        # Deviation: mode "nearest" of the official code shifts masks by up to half a pixel against
        # their image. Here, as in transformers, the pixel under the centre counts.
        masks = F.interpolate(masks, size_hw, mode="nearest-exact")
        resized["masks"] = masks[:, 0].view(torch.bool)
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
    return_masks: bool | None = None,
    masks_path: str | os.PathLike[str] | None = None,
) -> list[dict[str, Tensor]] | None:
    """One target per image of a batch, resized and padded as its image is.

    Args:
        annotations: one record per image, or None.
        sizes_hw, new_sizes_hw: (height, width) of each image as it was, and resized.
        canvas_hw: what all images are padded to.
        settings: the processor's `format` and `do_convert_annotations`.
        return_masks: whether targets get `masks`; None means with panoptic records only.
        masks_path: the folder of the PNGs of panoptic records.

    Raises:
        ValueError, TypeError: for records that can't be used, in words.
    """
    if annotations is None:
        return None
    is_panoptic = settings["format"] == "coco_panoptic"
    if is_panoptic != (masks_path is not None):
        raise ValueError(
            f"format is {settings['format']!r} and masks_path is {masks_path!r}; give masks_path, "
            "the folder of the PNGs, with format='coco_panoptic' and only then."
        )
    annotations = [annotations] if isinstance(annotations, Mapping) else annotations
    if not isinstance(annotations, (list, tuple)):
        raise TypeError(
            f"annotations is a {type(annotations).__name__}; give a list with one dict per image."
        )
    if len(annotations) != len(sizes_hw):
        raise ValueError(
            f"there are {len(annotations)} annotations for {len(sizes_hw)} images; give one dict "
            "per image with all objects of that image."
        )
    labels = []
    for annotation, size_hw, new_hw in zip(annotations, sizes_hw, new_sizes_hw, strict=True):
        if is_panoptic:
            with_masks = return_masks is not False
            target = prepare_panoptic_target(annotation, size_hw, masks_path, with_masks)
        else:
            target = prepare_detection_target(annotation, size_hw, bool(return_masks))
        target = resize_target(target, new_hw)
        if settings["do_convert_annotations"]:
            target = normalize_target(target)
        labels.append(pad_target(target, canvas_hw))
    return labels


def _clipped_corners(boxes_xywh: Tensor, image_hw: tuple[int, int]) -> Tensor:
    """(n, 4) corners inside the image; what lies outside shrinks to nothing at the border."""
    height, width = image_hw
    corners = torch.cat([boxes_xywh[:, :2], boxes_xywh[:, :2] + boxes_xywh[:, 2:]], dim=-1)
    return corners.clamp(min=0).minimum(torch.tensor([width, height, width, height]))


def _stacked_masks(segmentations: list[tuple[Any, str]], image_hw: tuple[int, int]) -> Tensor:
    """(n, H, W) bool of segmentations and the names of their objects."""
    masks = torch.zeros(len(segmentations), *image_hw, dtype=torch.bool)
    for mask, (segmentation, name) in zip(masks, segmentations, strict=True):
        if segmentation is None:
            raise ValueError(
                f"{name} has no 'segmentation', which return_segmentation_masks=True needs; give "
                f"{SEGMENTATION}."
            )
        mask.copy_(masks_from_segmentation(segmentation, image_hw, name))
    return masks
