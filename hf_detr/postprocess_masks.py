"""From scored masks to segment maps: semantic, instance and panoptic segmentation.

Settings and results are transformers'. Masks are probabilities times their query's score; a pixel
goes to the query whose product is largest.
"""

from collections.abc import Collection, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from .coco_masks import run_lengths


def semantic_maps(
    class_probabilities: Tensor,
    pred_masks: Tensor,
    target_sizes: Sequence[tuple[int, int]] | None = None,
) -> list[Tensor]:
    """The best class of every pixel, (h, w) per image.

    Args:
        class_probabilities: (B, Q, C), without "no object".
        pred_masks: mask logits (B, Q, h, w).
        target_sizes: (height, width) per image; None leaves the masks' size.

    Raises:
        ValueError: if the number of target sizes isn't the number of images.
    """
    _check_sizes(target_sizes, len(pred_masks))
    scores = torch.einsum("bqc,bqhw->bchw", class_probabilities, pred_masks.sigmoid())
    if target_sizes is None:
        return list(scores.argmax(1))
    return [
        _resize(image, size).argmax(0) for image, size in zip(scores, target_sizes, strict=True)
    ]


def segment_maps(
    scores: Tensor,
    labels: Tensor,
    keep: Tensor,
    pred_masks: Tensor,
    mask_threshold: float = 0.5,
    overlap_mask_area_threshold: float = 0.8,
    label_ids_to_fuse: Collection[int] = (),
    target_sizes: Sequence[tuple[int, int]] | None = None,
) -> list[dict[str, Any]]:
    """Give every pixel to one segment at most, per image.

    Args:
        scores: (B, Q) in [0, 1].
        labels: (B, Q) class indices.
        keep: (B, Q), True for queries that may become segments.
        pred_masks: mask logits (B, Q, h, w).
        mask_threshold: from which product of mask and score on a pixel counts as the query's own.
        overlap_mask_area_threshold: a query that wins no larger part of its own pixels is dropped.
        label_ids_to_fuse: classes whose segments are one, such as sky.
        target_sizes: (height, width) per image; None leaves the masks' size.

    Returns:
        Per image `segmentation` (h, w), int32, segments' ids from 1 and 0 for none (-1 everywhere,
        float32, if no query was kept), and `segments_info`, per query that became a segment, or a
        part of one, its `id`, `label_id`, `was_fused` and `score`.

    Raises:
        ValueError: if the number of target sizes isn't the number of images.
    """
    _check_sizes(target_sizes, len(pred_masks))
    sizes = target_sizes if target_sizes is not None else [None] * len(pred_masks)
    results = []
    for image_scores, image_labels, kept, masks, size in zip(
        scores, labels, keep, pred_masks, sizes, strict=True
    ):
        if not kept.any():
            empty = torch.full(masks.shape[-2:] if size is None else tuple(size), -1.0)
            results.append({"segmentation": empty, "segments_info": []})
            continue
        winners, own = _find_winners(masks[kept], image_scores[kept], mask_threshold, size)
        won = torch.bincount(winners.flatten(), minlength=len(own))
        exists = (won > 0) & (own > 0) & (won / own > overlap_mask_area_threshold)
        segments, ids = _number_segments(
            image_scores[kept].tolist(),
            image_labels[kept].tolist(),
            exists.tolist(),
            label_ids_to_fuse,
        )
        lookup = torch.tensor(ids, dtype=torch.int32, device=winners.device)
        results.append({"segmentation": lookup[winners], "segments_info": segments})
    return results


def encode_segments(segmentation: Tensor) -> list[list[int]]:
    """Run lengths, see `run_lengths`, of every value of a map (h, w), 0 and -1 included."""
    return [run_lengths(segmentation == value) for value in segmentation.unique()]


def _find_winners(
    masks: Tensor, scores: Tensor, mask_threshold: float, size: tuple[int, int] | None
) -> tuple[Tensor, Tensor]:
    """Which of the masks (n, h, w) wins each pixel, (H, W), and how many are each one's own, (n,).

    Mask by mask: all at full size would take more memory than the model, and more time.
    """
    best, winners, own = None, None, []
    for index, (mask, score) in enumerate(zip(masks, scores, strict=True)):
        product = _resize(mask.sigmoid()[None], size)[0] * score
        own.append((product >= mask_threshold).sum())
        if best is None:
            best, winners = product, torch.zeros_like(product, dtype=torch.int32)
            continue
        winners.masked_fill_(product > best, index)
        torch.maximum(best, product, out=best)
    return winners, torch.stack(own)


def _number_segments(
    scores: list[float], labels: list[int], exists: list[bool], label_ids_to_fuse: Collection[int]
) -> tuple[list[dict[str, Any]], list[int]]:
    """Records of the segments, and each query's id, 0 where it became none."""
    segments, ids, fused_ids, current = [], [0] * len(scores), {}, 0
    for query, (score, label, is_segment) in enumerate(zip(scores, labels, exists, strict=True)):
        if not is_segment:
            continue
        is_fused = label in label_ids_to_fuse
        if label in fused_ids:
            # Deviation: transformers goes on counting from here and so gives an id twice.
            number = fused_ids[label]
        else:
            current += 1
            number = current
        if is_fused:
            fused_ids[label] = number
        ids[query] = number
        record = {"id": number, "label_id": label, "was_fused": is_fused, "score": round(score, 6)}
        segments.append(record)
    return segments, ids


def _resize(masks: Tensor, size: tuple[int, int] | None) -> Tensor:
    """(n, h, w) to another size, bilinearly."""
    if size is None:
        return masks
    size = tuple(int(length) for length in size)
    return F.interpolate(masks[None], size=size, mode="bilinear", align_corners=False)[0]


def _check_sizes(target_sizes: Sequence[tuple[int, int]] | None, batch_size: int) -> None:
    if target_sizes is not None and len(target_sizes) != batch_size:
        raise ValueError(
            f"target_sizes has {len(target_sizes)} entries for {batch_size} images; give one "
            "(height, width) per image."
        )
