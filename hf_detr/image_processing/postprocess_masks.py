"""Conversion of scored masks to segment maps: semantic, instance and panoptic segmentation.

Arguments and results are those of transformers; `merged_maps` is the panoptic merge of the paper's
code.

In all functions, `target_sizes` are (height, width) per image, by default the size of the masks.
`pixel_mask` (B, H, W), as passed to the model, is used to remove the padding. Without it, the mask
of the whole canvas is resized to the target as in transformers, which is only correct without
padding. Queries whose scores or masks have NaN are left out, with a warning.
"""

from collections.abc import Collection, Sequence
from typing import Any

import torch
from torch import Tensor
from transformers.image_processing_outputs import SemanticSegmentationPostProcessorOutput

from .coco_masks import run_lengths
from .postprocess import above_threshold, check_threshold, warn_about_nan
from .resized_argmax import Resizing, make_resizings, resized_argmax, resized_maps, write_winners

BestClasses = tuple[Tensor, Tensor, Tensor]  # scores, labels, whether it is an object; (B, Q)


@torch.no_grad()
def semantic_maps(
    class_probabilities: Tensor,
    pred_masks: Tensor,
    target_sizes: Sequence[tuple[int, int]] | None = None,
    return_segmentation_scores: bool = False,
    pixel_mask: Tensor | None = None,
) -> list[Tensor] | list[SemanticSegmentationPostProcessorOutput]:
    """Compute the best class of each pixel, (h, w) int64 per image.

    Args:
        class_probabilities: (B, Q, C), without "no object".
        pred_masks: mask logits (B, Q, h, w).
        target_sizes, pixel_mask: see above.
        return_segmentation_scores: whether to return for each image `segmentation`, the map, and
            `segmentation_scores` (C, h, w), the sum over queries of class probability times mask
            probability, which isn't in [0, 1].

    Raises:
        ValueError: if target sizes or pixel masks are invalid or not as many as images.
    """
    results = []
    resizings = make_resizings(pred_masks, target_sizes, pixel_mask)
    for classes, masks, resizing in zip(class_probabilities, pred_masks, resizings, strict=True):
        scores = torch.einsum("qc,qhw->chw", classes, masks.float().sigmoid())
        if scores.sum().isnan():
            warn_about_nan()
            valid = ~(classes.isnan().any(1) | masks.isnan().flatten(1).any(1))
            scores = torch.einsum("qc,qhw->chw", classes[valid], masks[valid].float().sigmoid())
        if not return_segmentation_scores:
            results.append(resized_argmax(scores, resizing)[0])
            continue
        scores = resized_maps(scores, resizing)
        classes_map = scores.new_empty(scores.shape[1:], dtype=torch.long)
        write_winners(scores, range(len(scores)), classes_map)
        data = {"segmentation": classes_map, "segmentation_scores": scores}
        results.append(SemanticSegmentationPostProcessorOutput(data))
    return results


@torch.no_grad()
def segment_maps(
    best_classes: BestClasses,
    pred_masks: Tensor,
    threshold: float | Tensor = 0.5,
    mask_threshold: float = 0.5,
    overlap_mask_area_threshold: float = 0.8,
    label_ids_to_fuse: Collection[int] = (),
    target_sizes: Sequence[tuple[int, int]] | None = None,
    pixel_mask: Tensor | None = None,
) -> list[dict[str, Any]]:
    """Assign each pixel to the query with the largest product of mask probability and score.

    Args:
        best_classes: score in [0, 1] of each query, label, and whether it is an object; (B, Q).
        pred_masks: mask logits (B, Q, h, w).
        threshold: objects with a higher score can become segments; a number, or one for each
            label (C,).
        mask_threshold: minimum product of mask probability and score of a query's own pixels.
        overlap_mask_area_threshold: a query is dropped unless a larger fraction of its own pixels
            is assigned to it.
        label_ids_to_fuse: classes whose segments are fused into one, such as sky.
        target_sizes, pixel_mask: see above.

    Returns:
        For each image `segmentation` (h, w) int32, the ids of segments from 1, 0 for none (-1
        everywhere, float32, if no query was kept), and `segments_info`, the `id`, `label_id`,
        `was_fused` and `score` of each query that became a segment or part of one.

    Raises:
        ValueError: if a threshold isn't a number up to 1, or target sizes or pixel masks are
            invalid or not as many as images.
    """
    check_threshold(mask_threshold, "mask_threshold")
    check_threshold(overlap_mask_area_threshold, "overlap_mask_area_threshold")
    scores, labels, _ = best_classes
    kept_queries = _queries_above(best_classes, pred_masks, threshold)
    results = []
    resizings = make_resizings(pred_masks, target_sizes, pixel_mask)
    for image, (resizing, kept) in enumerate(zip(resizings, kept_queries, strict=True)):
        if not len(kept):
            results.append(_empty_result(resizing))
            continue
        kept_scores = scores[image, kept]
        products = pred_masks[image, kept].float().sigmoid() * kept_scores[:, None, None]
        winners, own = resized_argmax(products, resizing, mask_threshold)
        won = torch.bincount(winners.flatten(), minlength=len(own))
        exists = (won > 0) & (own > 0) & (won / own > overlap_mask_area_threshold)
        segments, ids = _number_segments(
            kept_scores.tolist(), labels[image, kept].tolist(), exists.tolist(), label_ids_to_fuse
        )
        lookup = torch.tensor(ids, dtype=torch.int32, device=winners.device)
        results.append({"segmentation": lookup[winners], "segments_info": segments})
    return results


@torch.no_grad()
def merged_maps(
    best_classes: BestClasses,
    pred_masks: Tensor,
    threshold: float | Tensor = 0.85,
    label_ids_to_fuse: Collection[int] = (),
    min_area: int = 5,
    target_sizes: Sequence[tuple[int, int]] | None = None,
    pixel_mask: Tensor | None = None,
) -> list[dict[str, Any]]:
    """Assign each pixel to the query with the largest mask logit (DETR, Section 4.4).

    Queries of the same stuff class are fused, and small segments are dropped. Then, as in the
    official code, pixels are assigned again to the remaining queries, of which each fused class has
    only the first.

    Args:
        best_classes, pred_masks, threshold: as in `segment_maps`.
        label_ids_to_fuse: the stuff classes.
        min_area: segments with fewer pixels are dropped.
        target_sizes, pixel_mask: see above. With a mask, pixels are assigned at the size of the
            image in the model and resized to the nearest pixel, as in the official code.

    Returns:
        For each image `segmentation` (h, w) int32, ids from 1 (-1 everywhere, float32, if no query
        is kept), and `segments_info`: `id`, `label_id`, `was_fused`, `score` and `area` in pixels.

    Raises:
        ValueError: if a threshold isn't a number up to 1, or target sizes or pixel masks are
            invalid or not as many as images.
    """
    scores, labels, _ = best_classes
    kept_queries = _queries_above(best_classes, pred_masks, threshold)
    results = []
    # Deviation: the official code resizes the mask of the whole canvas to the image's size, which
    # is only correct for single images.
    resizings = make_resizings(pred_masks, target_sizes, pixel_mask, nearest=True)
    for image, (resizing, queries) in enumerate(zip(resizings, kept_queries, strict=True)):
        groups = _first_of_stuff(labels[image, queries].tolist(), label_ids_to_fuse)
        masks = pred_masks[image, queries].float()
        segmentation, area, remaining = _merge(masks, groups, min_area, resizing)
        if not len(remaining):
            results.append(_empty_result(resizing))
            continue
        queries = queries[remaining]
        columns = scores[image, queries], labels[image, queries], area
        segments = [
            {
                "id": number,
                "label_id": label,
                "was_fused": label in label_ids_to_fuse,
                "score": round(score, 6),
                "area": pixels,
            }
            for number, (score, label, pixels) in enumerate(
                zip(*(column.tolist() for column in columns), strict=True), start=1
            )
        ]
        results.append({"segmentation": (segmentation + 1).int(), "segments_info": segments})
    return results


def encode_segments(results: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Replace the map of each result by the run lengths of its segments; see `run_lengths`.

    Pixels without segment, 0, have run lengths too. Maps without segments are kept.
    """
    encoded = []
    for result in results:
        segmentation = result["segmentation"]
        if result["segments_info"]:
            values = segmentation.unique()
            segmentation = [run_lengths(segmentation == value) for value in values]
        encoded.append({**result, "segmentation": segmentation})
    return encoded


def _queries_above(
    best_classes: BestClasses, pred_masks: Tensor, threshold: float | Tensor
) -> list[Tensor]:
    """Return the indices of the objects of each image with a score above the threshold."""
    scores, labels, is_object = best_classes
    keep = is_object & above_threshold(scores, labels.where(is_object, 0), threshold)
    queries = [kept.nonzero()[:, 0] for kept in keep]
    is_nan = [
        masks[kept].isnan().flatten(1).any(1)
        for masks, kept in zip(pred_masks, queries, strict=True)
    ]
    if scores.isnan().any() or any(flags.any() for flags in is_nan):
        warn_about_nan()
    return [kept[~flags] for kept, flags in zip(queries, is_nan, strict=True)]


def _number_segments(
    scores: list[float], labels: list[int], exists: list[bool], label_ids_to_fuse: Collection[int]
) -> tuple[list[dict[str, Any]], list[int]]:
    """Return the records of the segments, and each query's segment id, 0 for none."""
    segments, ids, fused_ids, count = [], [0] * len(scores), {}, 0
    for query, (score, label, is_segment) in enumerate(zip(scores, labels, exists, strict=True)):
        if not is_segment:
            continue
        is_fused = label in label_ids_to_fuse
        # Deviation: transformers continues to count from a fused id and so uses an id twice.
        number = fused_ids.get(label, count + 1)
        count = max(count, number)
        if is_fused:
            fused_ids[label] = number
        ids[query] = number
        record = {"id": number, "label_id": label, "was_fused": is_fused, "score": round(score, 6)}
        segments.append(record)
    return segments, ids


def _merge(
    masks: Tensor, groups: list[int], min_area: int, resizing: Resizing
) -> tuple[Tensor | None, Tensor | None, Tensor]:
    """Merge mask logits (n, h, w) to segments; masks of the same group are fused.

    Returns:
        Map (H, W) of segments from 0, area (m,) and mask index (m,) of each segment; map and area
        are None if there is no segment.
    """
    remaining = torch.arange(len(masks), device=masks.device)
    while len(remaining):
        winners, _ = resized_argmax(masks[remaining], resizing)
        segmentation = torch.tensor(groups, device=masks.device)[winners]
        area = torch.bincount(segmentation.flatten(), minlength=len(remaining))
        if (area >= min_area).all():
            return segmentation, area, remaining
        remaining = remaining[area >= min_area]
        groups = list(range(len(remaining)))
    return None, None, remaining


def _first_of_stuff(labels: list[int], label_ids_to_fuse: Collection[int]) -> list[int]:
    """Return for each query the first one of its class, or itself if the class isn't fused."""
    return [
        labels.index(label) if label in label_ids_to_fuse else index
        for index, label in enumerate(labels)
    ]


def _empty_result(resizing: Resizing) -> dict[str, Any]:
    return {"segmentation": torch.full(resizing.size_hw, -1.0), "segments_info": []}
