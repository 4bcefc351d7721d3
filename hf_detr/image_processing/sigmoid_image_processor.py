"""Image processor of the variants with sigmoid classification."""

from typing import Any

from torch import Tensor

from ..losses.classification import SigmoidFocalClassification
from .image_processor import DetectionImageProcessor
from .postprocess import detections_per_image


class SigmoidImageProcessor(DetectionImageProcessor):
    """`DetectionImageProcessor` that computes detections from sigmoid outputs."""

    classification = SigmoidFocalClassification
    default_top_k = 100

    @classmethod
    def most_detections(cls, num_queries: int, num_labels: int) -> int:
        """Return how many detections `post_process_object_detection` has at most by default."""
        return min(cls.default_top_k, num_queries * num_labels)

    def post_process_object_detection(
        self,
        outputs: Any,
        threshold: float | Tensor = 0.5,
        target_sizes: Tensor | list[tuple[int, int]] | None = None,
        top_k: int | None = None,
    ) -> list[dict[str, Tensor]]:
        """Convert the model's outputs to the detections of each image, best first.

        As in `DetrImageProcessor`, but `logits` are (B, Q, C), and each image has at most `top_k`
        detections, the best pairs of a query and a class; None: `default_top_k`.
        """
        self._check_thresholds(threshold, outputs.logits)
        scores, labels, queries = self.classification.detections(
            outputs.logits, self.default_top_k if top_k is None else top_k
        )
        boxes = outputs.pred_boxes.gather(1, queries[..., None].expand(-1, -1, 4))
        return detections_per_image(scores, labels, boxes, threshold, target_sizes)
