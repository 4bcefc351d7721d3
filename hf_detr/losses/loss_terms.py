"""The terms of the loss as functions of matched predictions and targets, and their normalizers.

A batch may be spread over processes, and over several backward passes when gradients are
accumulated. Its loss doesn't depend on that as long as every part is divided by the counts of the
whole batch. They follow from the labels alone: every object of an image gets a query, while there
are queries.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from ..distributed import num_processes
from ..ops.box_ops import box_cxcywh_to_xyxy, generalized_box_iou


@dataclass(frozen=True)
class LossNormalizers:
    """Counts of a whole batch, divided by the number of processes; scalars, float32.

    Attributes:
        num_boxes: objects, at least one in the whole batch.
        num_matched: queries with an object, in one decoder layer.
        num_unmatched: queries without.
    """

    num_boxes: Tensor
    num_matched: Tensor
    num_unmatched: Tensor


def count_loss_normalizers(
    counts: Sequence[int], num_queries: int, device: torch.device
) -> LossNormalizers:
    """Counts over all processes; every one of them must call this at the same time.

    Args:
        counts: number of objects of each image of this process's share.
        num_queries: queries per image.
        device: device of the result.
    """
    matched = sum(min(count, num_queries) for count in counts)
    sums = torch.tensor(
        [sum(counts), matched, len(counts) * num_queries - matched], dtype=torch.float32
    )
    sums = sums.to(device, non_blocking=True)
    if num_processes() > 1:
        torch.distributed.all_reduce(sums)
    # The same everywhere: gradients are averaged over the processes, and only then belong to the
    # loss of the whole batch.
    num_boxes, num_matched, num_unmatched = (sums / num_processes()).unbind()
    # Deviation: the original asks for one object per process, so the loss of a batch with fewer
    # depends on the number of processes.
    return LossNormalizers(num_boxes.clamp(min=1 / num_processes()), num_matched, num_unmatched)


def box_l1_loss(pred_boxes: Tensor, target_boxes: Tensor) -> Tensor:
    """L1 distance (..., ) of matched boxes (..., 4), summed over (cx, cy, w, h)."""
    return (pred_boxes - target_boxes).abs().sum(-1)


def box_giou_loss(pred_boxes: Tensor, target_boxes: Tensor) -> Tensor:
    """`1 - GIoU` (...,), in [0, 2], of matched boxes (..., 4) given as (cx, cy, w, h)."""
    return 1 - generalized_box_iou(box_cxcywh_to_xyxy(pred_boxes), box_cxcywh_to_xyxy(target_boxes))


def sigmoid_focal_loss(logits: Tensor, targets: Tensor, alpha: float, gamma: float) -> Tensor:
    """Focal loss of every logit (arXiv 1708.02002, Eq. 5), of the logits' shape.

    Args:
        logits: any shape.
        targets: the same shape, 0 or 1.
        alpha: weight of ones; zeros weigh 1 - alpha.
        gamma: how much less a logit counts that is right already.
    """
    probabilities = logits.sigmoid()
    cross_entropy = F.binary_cross_entropy_with_logits(logits, targets, reduction="none")
    wrong = probabilities * (1 - targets) + (1 - probabilities) * targets
    weight = alpha * targets + (1 - alpha) * (1 - targets)
    return weight * wrong**gamma * cross_entropy


def mask_focal_loss(mask_logits: Tensor, target_masks: Tensor) -> Tensor:
    """Focal loss (P,) of matched masks (P, pixels), averaged over their pixels."""
    return sigmoid_focal_loss(mask_logits, target_masks, alpha=0.25, gamma=2.0).mean(-1)


def mask_dice_loss(mask_logits: Tensor, target_masks: Tensor) -> Tensor:
    """Dice loss (P,) in [0, 1] of matched masks (P, pixels): small objects count like large ones.

    One is added above and below (V-Net, arXiv 1606.04797, Eq. 2, squares the sums' terms): two
    empty masks agree.
    """
    probabilities = mask_logits.sigmoid()
    common = (probabilities * target_masks).sum(-1)
    return 1 - (2 * common + 1) / (probabilities.sum(-1) + target_masks.sum(-1) + 1)
