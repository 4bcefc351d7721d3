"""Conversion of scored queries to detections per image."""

import torch
from torch import Tensor

from ..ops.box_ops import box_cxcywh_to_xyxy


def detections_per_image(
    scores: Tensor,
    labels: Tensor,
    boxes_cxcywh: Tensor,
    threshold: float,
    target_sizes: Tensor | list[Tensor] | list[tuple[int, int]] | None = None,
) -> list[dict[str, Tensor]]:
    """Scale boxes to each image and keep the detections above the threshold.

    Args:
        scores: (B, K) in [0, 1].
        labels: (B, K) class indices.
        boxes_cxcywh: (B, K, 4) in [0, 1], relative to each image without its padding.
        threshold: detections with a higher score are kept.
        target_sizes: (B, 2) as (height, width) in pixels; if None, boxes are in [0, 1].

    Returns:
        For each image a dict of `scores` (n,), `labels` (n,) and `boxes` (n, 4) as (x0, y0, x1,
        y1).

    Raises:
        ValueError: if the number of target sizes isn't the number of images.
    """
    # bfloat16 can't represent all integers above 256.
    boxes = box_cxcywh_to_xyxy(boxes_cxcywh.float())
    if target_sizes is not None:
        sizes_hw = torch.stack([torch.as_tensor(size_hw) for size_hw in target_sizes]).to(boxes)
        if sizes_hw.shape != (len(boxes), 2):
            raise ValueError(
                f"target_sizes has {len(target_sizes)} entries for {len(boxes)} images and shape "
                f"{tuple(sizes_hw.shape)}; expected one (height, width) per image."
            )
        boxes = boxes * sizes_hw.flip(-1).repeat(1, 2)[:, None]
    keep = scores > threshold
    return [
        {"scores": s[k], "labels": c[k], "boxes": b[k]}
        for s, c, b, k in zip(scores, labels, boxes, keep, strict=True)
    ]
