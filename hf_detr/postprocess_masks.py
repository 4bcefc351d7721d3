"""From scored masks to segment maps: semantic, instance and panoptic segmentation.

Settings and results are transformers'; `merged_maps` is the panoptic merge of the paper's code.

Everywhere `target_sizes` are (height, width) per image, None for the masks' own. `pixel_mask` is
(B, H, W) as the model got it: with it, the padding is cut off. Without it the mask of the whole
canvas is resized to the target, as in transformers, which is right only where nothing was padded.
"""

from collections.abc import Collection, Sequence
from typing import Any

import torch
from torch import Tensor
from transformers.image_processing_outputs import SemanticSegmentationPostProcessorOutput

from .coco_masks import run_lengths
from .resized_argmax import Resizing, make_resizings, resized_argmax, resized_maps, write_winners

BestClasses = tuple[Tensor, Tensor, Tensor]  # scores, labels, whether they are objects' (B, Q)


@torch.no_grad()
def semantic_maps(
    class_probabilities: Tensor,
    pred_masks: Tensor,
    target_sizes: Sequence[tuple[int, int]] | None = None,
    return_segmentation_scores: bool = False,
    pixel_mask: Tensor | None = None,
) -> list[Tensor] | list[SemanticSegmentationPostProcessorOutput]:
    """The best class of every pixel, (h, w) int64 per image.

    Args:
        class_probabilities: (B, Q, C), without "no object".
        pred_masks: mask logits (B, Q, h, w).
        target_sizes, pixel_mask: see above.
        return_segmentation_scores: give, per image, `segmentation`, the map, and
            `segmentation_scores` (C, h, w), not in [0, 1]: the sum over queries of the class's
            probability times the mask's.

    Raises:
        ValueError: if there isn't one target size, and one pixel mask, per image.
    """
    results = []
    resizings = make_resizings(pred_masks, target_sizes, pixel_mask)
    for classes, masks, resizing in zip(class_probabilities, pred_masks, resizings, strict=True):
        scores = torch.einsum("qc,qhw->chw", classes, masks.float().sigmoid())
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
    threshold: float = 0.5,
    mask_threshold: float = 0.5,
    overlap_mask_area_threshold: float = 0.8,
    label_ids_to_fuse: Collection[int] = (),
    target_sizes: Sequence[tuple[int, int]] | None = None,
    pixel_mask: Tensor | None = None,
) -> list[dict[str, Any]]:
    """Give every pixel to the query with the largest product of mask and score, per image.

    Args:
        best_classes: per query (B, Q) its score in [0, 1], its label, and whether that's an object.
        pred_masks: mask logits (B, Q, h, w).
        threshold: objects that score higher may become segments.
        mask_threshold: from which product of mask and score on a pixel counts as the query's own.
        overlap_mask_area_threshold: a query that wins no larger part of its own pixels is dropped.
        label_ids_to_fuse: classes whose segments are one, such as sky.
        target_sizes, pixel_mask: see above.

    Returns:
        Per image `segmentation` (h, w), int32, segments' ids from 1 and 0 for none (-1 everywhere,
        float32, if no query was kept), and `segments_info`, per query that became a segment, or a
        part of one, its `id`, `label_id`, `was_fused` and `score`.

    Raises:
        ValueError: if there isn't one target size, and one pixel mask, per image.
    """
    scores, labels, is_object = best_classes
    keep = is_object & (scores > threshold)
    results = []
    resizings = make_resizings(pred_masks, target_sizes, pixel_mask)
    for image, resizing in enumerate(resizings):
        kept = keep[image]
        if not kept.any():
            results.append(_nothing(resizing))
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
    threshold: float = 0.85,
    label_ids_to_fuse: Collection[int] = (),
    min_area: int = 5,
    target_sizes: Sequence[tuple[int, int]] | None = None,
    pixel_mask: Tensor | None = None,
) -> list[dict[str, Any]]:
    """Give every pixel to the query with the largest mask logit (DETR, Section 4.4), per image.

    Queries of the same stuff class become one, and the smallest segments go; then, as in the
    original, pixels are given anew to the queries that are left: those that stood first for their
    class, and were large enough.

    Args:
        best_classes, pred_masks, threshold: as for `segment_maps`.
        label_ids_to_fuse: the stuff classes.
        min_area: segments of fewer pixels are dropped.
        target_sizes, pixel_mask: see above; with the mask, pixels are given at the size that the
            image had in the model, and the nearest ones taken for the target, as in the original.

    Returns:
        Per image `segmentation` (h, w), int32, ids from 1 (-1 everywhere, float32, if no query is
        left), and `segments_info`: `id`, `label_id`, `was_fused`, `score` and `area` in pixels.

    Raises:
        ValueError: if there isn't one target size, and one pixel mask, per image.
    """
    scores, labels, is_object = best_classes
    keep = is_object & (scores > threshold)
    results = []
    # Deviation: the original resizes the mask of the whole canvas to the image's size, so that it
    # is right for one image at a time only.
    resizings = make_resizings(pred_masks, target_sizes, pixel_mask, nearest=True)
    for image, resizing in enumerate(resizings):
        queries = keep[image].nonzero()[:, 0]
        names = _first_of_stuff(labels[image, queries].tolist(), label_ids_to_fuse)
        masks = pred_masks[image, queries].float()
        segmentation, area, left = _merge(masks, names, min_area, resizing)
        if not len(left):
            results.append(_nothing(resizing))
            continue
        queries = queries[left]
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
    """The same results with the run lengths of each segment, see `run_lengths`, for a map.

    Pixels of no segment, 0, have theirs, too; a map without segments stays.
    """
    encoded = []
    for result in results:
        segmentation = result["segmentation"]
        if result["segments_info"]:
            values = segmentation.unique()
            segmentation = [run_lengths(segmentation == value) for value in values]
        encoded.append({**result, "segmentation": segmentation})
    return encoded


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


def _merge(
    masks: Tensor, names: list[int], min_area: int, resizing: Resizing
) -> tuple[Tensor | None, Tensor | None, Tensor]:
    """Segments of mask logits (n, h, w), of which those with the same name are one.

    Returns:
        Map (H, W) of numbers from 0, area (m,) of each number, and the mask (m,) that it stands
        for; no map and area if no mask is left.
    """
    left = torch.arange(len(masks), device=masks.device)
    while len(left):
        winners, _ = resized_argmax(masks[left], resizing)
        segmentation = torch.tensor(names, device=masks.device)[winners]
        area = torch.bincount(segmentation.flatten(), minlength=len(left))
        if (area >= min_area).all():
            return segmentation, area, left
        left = left[area >= min_area]
        names = list(range(len(left)))
    return None, None, left


def _first_of_stuff(labels: list[int], label_ids_to_fuse: Collection[int]) -> list[int]:
    """Per query the first of its class, if that is stuff, else itself."""
    return [
        labels.index(label) if label in label_ids_to_fuse else index
        for index, label in enumerate(labels)
    ]


def _nothing(resizing: Resizing) -> dict[str, Any]:
    return {"segmentation": torch.full(resizing.size_hw, -1.0), "segments_info": []}
