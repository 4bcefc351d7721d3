"""COCO metrics for transformers' `Trainer`."""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor
from transformers import EvalPrediction

from ..image_processing.image_processor import DetectionImageProcessor
from ..models.outputs import ObjectDetectionOutput
from .coco_evaluator import MAX_DETECTIONS, CocoEvaluator
from .evaluate import every_detection


def make_compute_metrics(
    processor: DetectionImageProcessor,
    ground_truth: Mapping[str, Any],
    per_class: bool = False,
    max_detections: int = MAX_DETECTIONS,
) -> Callable[[EvalPrediction], dict[str, float]]:
    """Make `compute_metrics` for transformers' `Trainer`: COCO AP and AR of boxes.

    Also pass `preprocess_logits_for_metrics=keep_detections` to the Trainer. It adds the image
    ids to the predictions, whose order changes in distributed runs, and removes unused outputs.

    Args:
        processor: post-processes the outputs.
        ground_truth: `dataset.ground_truth()` of the evaluation data; its category ids are the
            model's labels.
        per_class: whether to add `AP_<class>` of each class, or `AP_class_<class>` where a metric
            has that name, such as `AP_small`.
        max_detections: as in `evaluate`.

    Raises:
        ValueError: when called with predictions that weren't prepared by `keep_detections`.
    """

    def compute_metrics(prediction: EvalPrediction) -> dict[str, float]:
        evaluator = CocoEvaluator(ground_truth, max_detections=max_detections)
        batches = prediction.predictions
        # A tuple for the whole data set, or a list of batches (`eval_do_concat_batches=False`).
        for batch in batches if isinstance(batches, list) else [batches]:
            if len(batch) != 4:
                raise ValueError(
                    f"The predictions have {len(batch)} parts, expected 4; pass "
                    "preprocess_logits_for_metrics=keep_detections to the Trainer."
                )
            logits, boxes, image_ids, sizes_hw = map(torch.from_numpy, batch)
            outputs = ObjectDetectionOutput(logits=logits, pred_boxes=boxes)
            detections = every_detection(processor, outputs, sizes_hw, max_detections)
            evaluator.update(image_ids, detections)
        metrics = evaluator.compute()
        classes = metrics.pop("per_class")
        for name, one in classes.items() if per_class else ():
            key = f"AP_{name}"
            metrics[f"AP_class_{name}" if key in metrics else key] = one["AP"]
        return metrics

    return compute_metrics


def keep_detections(
    outputs: tuple[Any, ...], labels: list[dict[str, Tensor]]
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """`preprocess_logits_for_metrics` for transformers' `Trainer`; see `make_compute_metrics`.

    Args:
        outputs: outputs of the model, without the loss.
        labels: one dict per image. All entries except `image_id` and `orig_size` are removed,
            because the Trainer can't gather labels with different numbers of objects.

    Returns:
        `logits` (B, Q, C'), `pred_boxes` (B, Q, 4), image ids (B,) and original sizes (B, 2).
    """
    outputs = tuple(entry for entry in outputs if not isinstance(entry, Mapping))  # loss_dict
    for label in labels:
        for key in set(label) - {"image_id", "orig_size"}:
            del label[key]
    image_ids = torch.cat([label["image_id"].reshape(1) for label in labels])
    return *outputs[:2], image_ids, torch.stack([label["orig_size"] for label in labels])
