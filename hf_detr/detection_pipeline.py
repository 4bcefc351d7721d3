"""`pipeline("object-detection")` with batches of images of different sizes."""

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from transformers import ObjectDetectionPipeline
from transformers.utils import ModelOutput

from .detection_transformer import ObjectDetector


class DetectionPipeline(ObjectDetectionPipeline):
    """transformers' pipeline; for our models it pads the images of a batch to one size.

    transformers concatenates the images of a batch, which fails when their sizes differ. In
    lists they stay apart until the forward pass.
    """

    def preprocess(self, image: Any, timeout: float | None = None) -> dict[str, Any]:
        inputs = super().preprocess(image, timeout)
        if isinstance(self.model, ObjectDetector):
            pixel_values = inputs["pixel_values"]
            # Without it the padding of a batch would pass as real pixels.
            ones = torch.ones_like(pixel_values[:, 0], dtype=torch.int64)
            inputs["pixel_mask"] = [inputs.get("pixel_mask", ones)]
            inputs["pixel_values"] = [pixel_values]
        return inputs

    def _forward(self, model_inputs: dict[str, Any]) -> ModelOutput:
        if isinstance(self.model, ObjectDetector):
            for key in ("pixel_values", "pixel_mask"):
                model_inputs[key] = pad_to_batch(model_inputs[key])
        return super()._forward(model_inputs)


def pad_to_batch(tensors: list[Tensor] | list[list[Tensor]]) -> Tensor:
    """Pad tensors (1, …, h_i, w_i) with zeros at the bottom and right, and concatenate them.

    Args:
        tensors: one per image, or a list of such lists, as batches of a pipeline come.

    Returns:
        (B, …, H, W) with the largest height and width.
    """
    flat = [t for item in tensors for t in (item if isinstance(item, list) else [item])]
    height = max(t.shape[-2] for t in flat)
    width = max(t.shape[-1] for t in flat)
    return torch.cat([F.pad(t, (0, width - t.shape[-1], 0, height - t.shape[-2])) for t in flat])
