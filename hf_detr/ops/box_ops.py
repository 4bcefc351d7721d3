"""Box formats, overlaps and the one formula that turns head outputs into boxes.

Boxes are `(cx, cy, w, h)` or `(x0, y0, x1, y1)`; the suffix of a name says which.
"""

import torch
from torch import Tensor


def box_cxcywh_to_xyxy(boxes_cxcywh: Tensor) -> Tensor:
    """Turn centre and size (..., 4) into the two corners (..., 4), in the same unit."""
    center, size = boxes_cxcywh[..., :2], boxes_cxcywh[..., 2:]
    return torch.cat([center - 0.5 * size, center + 0.5 * size], dim=-1)


def box_xyxy_to_cxcywh(boxes_xyxy: Tensor) -> Tensor:
    """Turn the two corners (..., 4) into centre and size (..., 4), in the same unit."""
    top_left, bottom_right = boxes_xyxy[..., :2], boxes_xyxy[..., 2:]
    return torch.cat([(top_left + bottom_right) / 2, bottom_right - top_left], dim=-1)


def box_area(boxes_xyxy: Tensor) -> Tensor:
    """Area (...,) of boxes (..., 4) given by their corners."""
    x0, y0, x1, y1 = boxes_xyxy.unbind(-1)
    return (x1 - x0) * (y1 - y0)


def box_iou(boxes1_xyxy: Tensor, boxes2_xyxy: Tensor) -> tuple[Tensor, Tensor]:
    """Intersection over union, and the union, of boxes that broadcast against each other.

    Args:
        boxes1_xyxy: (..., 4) corners; give (..., N, 1, 4) against (..., 1, M, 4) for all pairs.
        boxes2_xyxy: (..., 4) corners, in the same unit.

    Returns:
        IoU and union area, both of the broadcast shape without the last axis. 0/0 is NaN.
    """
    # Corner by corner: no temporary with a trailing axis of 2, several times faster for all pairs.
    ax0, ay0, ax1, ay1 = boxes1_xyxy.unbind(-1)
    bx0, by0, bx1, by1 = boxes2_xyxy.unbind(-1)
    width = (torch.minimum(ax1, bx1) - torch.maximum(ax0, bx0)).clamp_(min=0)
    height = (torch.minimum(ay1, by1) - torch.maximum(ay0, by0)).clamp_(min=0)
    intersection = width * height
    union = (ax1 - ax0) * (ay1 - ay0) + (bx1 - bx0) * (by1 - by0) - intersection
    return intersection / union, union


def generalized_box_iou(boxes1_xyxy: Tensor, boxes2_xyxy: Tensor) -> Tensor:
    """Generalised IoU in [-1, 1] (arXiv 1902.09630) of boxes that broadcast, as in `box_iou`."""
    iou, union = box_iou(boxes1_xyxy, boxes2_xyxy)
    ax0, ay0, ax1, ay1 = boxes1_xyxy.unbind(-1)
    bx0, by0, bx1, by1 = boxes2_xyxy.unbind(-1)
    width = torch.maximum(ax1, bx1) - torch.minimum(ax0, bx0)
    height = torch.maximum(ay1, by1) - torch.minimum(ay0, by0)
    hull = width * height
    return iou - (hull - union) / hull


def masks_to_boxes(masks: Tensor) -> Tensor:
    """Corners (n, 4) float32, in pixels, from the first to the last pixel of masks (n, H, W) bool.

    As in the official code the last pixel isn't added to the box: a mask of one pixel has no area.

    Raises:
        ValueError: if a mask has no pixel.
    """
    columns, rows = masks.any(1), masks.any(2)  # (n, W), (n, H)
    if not columns.any(1).all():
        raise ValueError(
            f"masks {(~columns.any(1)).nonzero()[:, 0].tolist()} have no pixel and so no box; "
            "remove them."
        )
    # argmax returns the first maximum.
    first = [line.int().argmax(1) for line in (columns, rows)]
    last = [line.shape[1] - 1 - line.flip(1).int().argmax(1) for line in (columns, rows)]
    return torch.stack([*first, *last], dim=1).to(torch.float32)


def inverse_sigmoid(probabilities: Tensor, eps: float = 1e-5) -> Tensor:
    """Logit of values in [0, 1], which are kept `eps` away from both ends."""
    probabilities = probabilities.clamp(0, 1)
    return torch.log(probabilities.clamp(min=eps) / (1 - probabilities).clamp(min=eps))


def points_from_logits(logits: Tensor) -> Tensor:
    """Points or boxes in [0, 1], the sigmoid of logits, at least in float32."""
    return _at_least_float32(logits).sigmoid()


def boxes_from_deltas(
    deltas: Tensor, reference_points: Tensor | None = None, eps: float = 1e-5
) -> Tensor:
    """The box formula of all variants: `sigmoid(delta + logit(reference))`.

    Args:
        deltas: (..., 4) outputs of the box head.
        reference_points: (..., 2) as (x, y) or (..., 4) as (cx, cy, w, h), in [0, 1]; None is
            DETR's plain `sigmoid(delta)`.
        eps: as in `inverse_sigmoid`, for the references.

    Returns:
        (..., 4) boxes as (cx, cy, w, h) in [0, 1], relative to the image without its padding; at
        least in float32.
    """
    deltas = _at_least_float32(deltas)
    if reference_points is None:
        return deltas.sigmoid()
    offset = inverse_sigmoid(reference_points.to(deltas.dtype), eps)
    if offset.shape[-1] == 2:
        offset = torch.cat([offset, torch.zeros_like(offset)], dim=-1)
    return (deltas + offset).sigmoid()


def _at_least_float32(logits: Tensor) -> Tensor:
    # bfloat16 has steps of 1/256 below 1, more than a pixel of an image, and the sigmoid of 6.5
    # would become 1, with no way back.
    return logits.to(torch.promote_types(logits.dtype, torch.float32))
