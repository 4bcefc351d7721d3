"""Image processors of the variants with sigmoid classification."""

from typing import Any

from torch import Tensor

from .classification import SigmoidFocalClassification
from .image_processing_detr import DetrImageProcessor
from .postprocess import detections_per_image


class ConditionalDetrImageProcessor(DetrImageProcessor):
    """As `DetrImageProcessor`, but computes detections from sigmoid outputs."""

    classification = SigmoidFocalClassification

    def post_process_object_detection(
        self,
        outputs: Any,
        threshold: float = 0.5,
        target_sizes: Tensor | list[tuple[int, int]] | None = None,
        top_k: int = 100,
    ) -> list[dict[str, Tensor]]:
        """Convert the model's outputs to the detections of each image, best first.

        Args:
            outputs: `logits` (B, Q, C) and `pred_boxes` (B, Q, 4) as (cx, cy, w, h) in [0, 1].
            threshold: detections with a higher score are kept.
            target_sizes: (height, width) of each original image in pixels; if None, boxes are
                in [0, 1].
            top_k: number of pairs of a query and a class that are considered per image.

        Returns:
            Per image `scores` (n,), `labels` (n,) and `boxes` (n, 4) as (x0, y0, x1, y1).

        Raises:
            ValueError: if the number of target sizes isn't the number of images.
        """
        scores, labels, queries = self.classification.detections(outputs.logits, top_k)
        boxes = outputs.pred_boxes.gather(1, queries[..., None].expand(-1, -1, 4))
        return detections_per_image(scores, labels, boxes, threshold, target_sizes)


class DeformableDetrImageProcessor(ConditionalDetrImageProcessor):
    """As `ConditionalDetrImageProcessor`, with the class name in Deformable DETR's files."""
