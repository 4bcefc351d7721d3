"""The metrics of a model in training on the validation data."""

from typing import Any

from transformers import PreTrainedModel

from ..data.dataset import DetectionDataset
from ..evaluation.coco_evaluator import MAX_DETECTIONS
from ..evaluation.evaluate import evaluate, evaluate_panoptic
from .options import TrainingOptions


def validate(
    model: PreTrainedModel, processor: Any, data: DetectionDataset, options: TrainingOptions
) -> dict[str, Any]:
    """Compute COCO's metrics, and panoptic quality if a mask head is trained.

    With tiles, as many detections count as an image has objects, because large photographs can have
    more than COCO's 100.
    """
    batch_size = options.eval_batch_size or options.micro_batch_size
    given = model, processor, data, batch_size, options.workers
    tiles: dict[str, Any] = {"tiles": options.tiles, "overlap": options.overlap}
    most = MAX_DETECTIONS
    if options.tiles is not None:
        most = max(most, data.table.most_objects())
    metrics = evaluate(*given, max_detections=most, **tiles)
    if options.panoptic:
        quality = evaluate_panoptic(*given, **tiles)
        metrics |= {name: quality[name] for name in ("pq", "sq", "rq")}
    return metrics


def rank(history: list[dict[str, Any]], metric: str) -> list[dict[str, Any]]:
    """Evaluations from the best on, of equal ones the first before; the last first without values.

    A metric is -1 in all evaluations if the validation data have no objects for it.
    """
    known = [entry for entry in history if entry[metric] >= 0]
    return sorted(known, key=lambda entry: entry[metric], reverse=True) or history[::-1]
