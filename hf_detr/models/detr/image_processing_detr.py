"""Image processor of DETR."""

from typing import Any

from torch import Tensor

from ...image_processing.image_processor import DetectionImageProcessor
from ...image_processing.postprocess import detections_per_image
from ...losses.classification import SoftmaxClassification


class DetrImageProcessor(DetectionImageProcessor):
    """`DetectionImageProcessor` that computes detections from softmax outputs."""

    classification = SoftmaxClassification
    other_families = ("TableTransformer",)

    def post_process_object_detection(
        self,
        outputs: Any,
        threshold: float | Tensor = 0.5,
        target_sizes: Tensor | list[tuple[int, int]] | None = None,
    ) -> list[dict[str, Tensor]]:
        """Convert the model's outputs to the detections of each image.

        Args:
            outputs: `logits` (B, Q, C + 1) and `pred_boxes` (B, Q, 4) as (cx, cy, w, h) in [0, 1].
            threshold: detections with a higher score are kept; a number, or one for each label
                (C,).
            target_sizes: (height, width) of each original image in pixels; if None, boxes are
                in [0, 1].

        Returns:
            Per image `scores` (n,), `labels` (n,) and `boxes` (n, 4) as (x0, y0, x1, y1).

        Raises:
            ValueError: if a threshold isn't a number up to 1, or the number of thresholds isn't 1
                or that of labels, or the number of target sizes isn't the number of images.
        """
        self._check_thresholds(threshold, outputs.logits)
        # One detection per query in their order, so the boxes are in the right order.
        scores, labels, _ = self.classification.detections(outputs.logits)
        return detections_per_image(scores, labels, outputs.pred_boxes, threshold, target_sizes)
