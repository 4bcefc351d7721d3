"""Image processor of the variants with sigmoid classification."""

import inspect
import numbers
from typing import Any

from torch import Tensor

from ..losses.classification import SigmoidFocalClassification
from .image_processor import DetectionImageProcessor
from .postprocess import detections_per_image


class SigmoidImageProcessor(DetectionImageProcessor):
    """`DetectionImageProcessor` that computes detections from sigmoid outputs."""

    classification = SigmoidFocalClassification

    @classmethod
    def most_detections(cls, num_queries: int, num_labels: int) -> int:
        """Return how many detections `post_process_object_detection` has at most by default."""
        arguments = inspect.signature(cls.post_process_object_detection).parameters
        return min(arguments["top_k"].default, num_queries * num_labels)

    def post_process_object_detection(
        self,
        outputs: Any,
        threshold: float | Tensor = 0.5,
        target_sizes: Tensor | list[tuple[int, int]] | None = None,
        top_k: int = 100,
    ) -> list[dict[str, Tensor]]:
        """Convert the model's outputs to the detections of each image, best first.

        As in `DetrImageProcessor`, but `logits` are (B, Q, C), and each image has at most `top_k`
        detections, the best pairs of a query and a class.

        Raises:
            ValueError: if `top_k` isn't an integer of at least 1, or another argument is wrong.
        """
        if isinstance(top_k, bool) or not isinstance(top_k, numbers.Integral) or top_k < 1:
            raise ValueError(f"top_k is {top_k!r}; expected an integer of at least 1.")
        self._check_thresholds(threshold, outputs.logits)
        scores, labels, queries = self.classification.detections(outputs.logits, top_k)
        boxes = outputs.pred_boxes.gather(1, queries[..., None].expand(-1, -1, 4))
        return detections_per_image(scores, labels, boxes, threshold, target_sizes)
