"""Image processor of DINO."""

from typing import Any

from torch import Tensor

from ...image_processing.sigmoid_image_processor import SigmoidImageProcessor


class DinoDetrImageProcessor(SigmoidImageProcessor):
    """`SigmoidImageProcessor` with the class name in DINO's files, and more detections."""

    def post_process_object_detection(
        self,
        outputs: Any,
        threshold: float | Tensor = 0.5,
        target_sizes: Tensor | list[tuple[int, int]] | None = None,
        top_k: int = 300,
    ) -> list[dict[str, Tensor]]:
        """As in the base class, but up to 300 detections, as the paper's code."""
        return super().post_process_object_detection(outputs, threshold, target_sizes, top_k)
