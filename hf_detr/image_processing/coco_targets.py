"""Conversion of COCO detection records to targets, and transforms of targets.

A target is a dict of an image's tensors: `class_labels` (n,), `boxes` (n, 4), `area` (n,),
`iscrowd` (n,), `image_id` (1,), `orig_size` (2,) and `size` (2,) as (height, width) in pixels.
Boxes are corners (x0, y0, x1, y1) in pixels of `size`; `normalize_target` converts them to
(cx, cy, w, h) in [0, 1]. Optional `masks` (n, H, W) bool are resized and padded with the image.
"""

import os
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from ..ops.box_ops import box_area, box_xyxy_to_cxcywh
from .coco_masks import SEGMENTATION, stack_masks
from .coco_panoptic import prepare_panoptic_target
from .coco_records import (
    checked_box,
    checked_fields,
    checked_record,
    prepare_target,
    stack_keypoints,
)

RECORD = (
    "{'image_id': int, 'annotations': [{'bbox': [left, top, width, height], 'category_id': int}, "
    "...]}"
)


def prepare_annotation(
    annotation: Mapping[str, Any],
    image_hw: tuple[int, int],
    format: str,
    return_masks: bool | None = None,
    masks_path: str | os.PathLike[str] | None = None,
) -> dict[str, Tensor]:
    """Convert the record of an image in the format "coco_detection" or "coco_panoptic".

    The other arguments are those of `DetectionImageProcessor.preprocess`.
    """
    is_panoptic = format == "coco_panoptic"
    if is_panoptic != (masks_path is not None):
        raise ValueError(
            f"format is {format!r} and masks_path is {masks_path!r}; pass masks_path, the folder "
            "of the PNG files, if and only if format is 'coco_panoptic'."
        )
    if is_panoptic:
        return prepare_panoptic_target(annotation, image_hw, masks_path, return_masks is not False)
    return prepare_detection_target(annotation, image_hw, bool(return_masks))


def prepare_detection_target(
    annotation: Mapping[str, Any], image_hw: tuple[int, int], return_masks: bool = False
) -> dict[str, Tensor]:
    """Convert the COCO detection record of an image to its target.

    Crowd regions are removed. Boxes are clipped to the image; objects whose box has no area are
    dropped with a warning. A missing `area` is the area of the clipped box.

    `keypoints` of the objects, K each, become (n * K, 3) float32: x, y and visibility. As in
    transformers they stay in pixels of the original image, also when the target is resized. They
    are left out, with a warning, unless every object has the same number.

    Args:
        annotation: `{"image_id" (or "id"): int, "annotations": [...]}`; each entry has `bbox` as
            (left, top, width, height) in pixels and `category_id`, and optionally `area` in square
            pixels, `iscrowd` (0 or 1) and `segmentation` (see `masks_from_segmentation`).
        image_hw: height and width of the upright image in pixels.
        return_masks: whether the target has `masks`, (n, H, W) bool, from `segmentation`.

    Returns:
        The target, with boxes (n, 4) as (x0, y0, x1, y1) in pixels.

    Raises:
        ValueError: if a key is missing or a value is invalid.
        TypeError: if the record isn't a mapping with a list of mappings, or a segmentation is of an
            unknown type.
    """
    image_id, entries = checked_record(annotation, "annotations", RECORD)
    boxes_xywh, fields, objects = [], [], []
    for index, entry in enumerate(entries):
        name = f"image_id {image_id}, annotation {index}"
        entry_fields = checked_fields(entry, ("bbox", "category_id"), name)
        box = checked_box(entry, name)
        if not entry_fields.is_crowd:
            boxes_xywh.append(box)
            fields.append(entry_fields)
            objects.append((entry, name))

    boxes_xyxy = _clipped_corners(
        torch.tensor(boxes_xywh, dtype=torch.float32).reshape(-1, 4), image_hw
    )
    reason = f"inside the image ({image_hw[1]} x {image_hw[0]} pixels, width x height)"
    target, keep = prepare_target(
        image_id, image_hw, fields, boxes_xyxy, box_area(boxes_xyxy), reason
    )
    kept = [pair for pair, is_kept in zip(objects, keep, strict=True) if is_kept]
    keypoints = stack_keypoints([entry.get("keypoints") for entry, _ in kept])
    if keypoints is not None:
        target["keypoints"] = keypoints
    if return_masks:
        segmentations = [(entry.get("segmentation"), name) for entry, name in kept]
        for segmentation, name in segmentations:
            if segmentation is None:
                raise ValueError(
                    f"{name} has no 'segmentation', which return_segmentation_masks=True requires; "
                    f"expected {SEGMENTATION}."
                )
        target["masks"] = stack_masks(segmentations, image_hw)
    return target


def resize_target(target: Mapping[str, Tensor], size_hw: tuple[int, int]) -> dict[str, Tensor]:
    """Resize a target with its image from `target["size"]` to `size_hw`.

    Args:
        target: boxes (n, 4) in pixels.
        size_hw: new height and width in pixels.

    Returns:
        A new target with scaled boxes and areas, and masks resized to the nearest pixel.
    """
    old_height, old_width = target["size"].tolist()
    ratio_y, ratio_x = size_hw[0] / old_height, size_hw[1] / old_width
    resized = dict(target)
    resized["boxes"] = target["boxes"] * torch.tensor(
        [ratio_x, ratio_y, ratio_x, ratio_y], dtype=torch.float32, device=target["boxes"].device
    )
    if "area" in target:
        resized["area"] = target["area"] * (ratio_x * ratio_y)
    resized["size"] = torch.tensor(size_hw, dtype=torch.int64)
    if "masks" in target:
        # As bytes, a view of the same memory; floats would take four times as much.
        masks = target["masks"].view(torch.uint8)[:, None]  # (n, 1, H, W)
        # Deviation: the mode "nearest" of the official code shifts masks by up to half a pixel
        # relative to their image. As in transformers, the pixel at the centre is used.
        masks = F.interpolate(masks, size_hw, mode="nearest-exact")
        resized["masks"] = masks[:, 0].view(torch.bool)
    return resized


def normalize_target(target: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Convert boxes from pixel corners (x0, y0, x1, y1) to relative (cx, cy, w, h) in [0, 1]."""
    height, width = target["size"].tolist()
    boxes = target["boxes"]
    scale = torch.tensor([width, height, width, height], dtype=torch.float32, device=boxes.device)
    return {**target, "boxes": box_xyxy_to_cxcywh(boxes) / scale}


def pad_target(target: Mapping[str, Tensor], canvas_hw: tuple[int, int]) -> dict[str, Tensor]:
    """Pad the masks of a target with its image, at the bottom and the right, to `canvas_hw`."""
    # Deviation: in transformers `boxes` and `size` become those of the canvas. Here targets are
    # relative to the image, as are predictions, and as in the official code.
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
    """Make a target for each image of a batch, resized and padded with the image.

    Sizes are (height, width) of each image before and after resizing, `canvas_hw` is the size that
    they are padded to, and `settings` are those of the processor. The other arguments are those of
    `DetectionImageProcessor.preprocess`.
    """
    if annotations is None:
        return None
    annotations = [annotations] if isinstance(annotations, Mapping) else annotations
    if not isinstance(annotations, (list, tuple)):
        raise TypeError(
            f"annotations is a {type(annotations).__name__}; expected a list of one dict per image."
        )
    if len(annotations) != len(sizes_hw):
        raise ValueError(
            f"There are {len(annotations)} annotations for {len(sizes_hw)} images; expected one "
            "dict per image with all of its objects."
        )
    labels = []
    for annotation, size_hw, new_hw in zip(annotations, sizes_hw, new_sizes_hw, strict=True):
        target = prepare_annotation(
            annotation, size_hw, settings["format"], return_masks, masks_path
        )
        target = resize_target(target, new_hw)
        if settings["do_convert_annotations"]:
            target = normalize_target(target)
        labels.append(pad_target(target, canvas_hw))
    return labels


def _clipped_corners(boxes_xywh: Tensor, image_hw: tuple[int, int]) -> Tensor:
    """Convert boxes to corners (n, 4) clipped to the image."""
    height, width = image_hw
    corners = torch.cat([boxes_xywh[:, :2], boxes_xywh[:, :2] + boxes_xywh[:, 2:]], dim=-1)
    return corners.clamp(min=0).minimum(torch.tensor([width, height, width, height]))
