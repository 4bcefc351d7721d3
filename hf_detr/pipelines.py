"""`pipeline("object-detection")` and `pipeline("image-segmentation")` on mixed image sizes.

transformers concatenates the images of a batch, which fails when their sizes differ. In lists they
stay apart until the forward pass, which pads them and masks the padding.
"""

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from transformers import ImageSegmentationPipeline, ObjectDetectionPipeline
from transformers.utils import ModelOutput

from .pretrained_model import DetectionPreTrainedModel


class DetectionPipeline(ObjectDetectionPipeline):
    """transformers' pipeline; for our models it pads the images of a batch to one size."""

    def preprocess(self, image: Any, timeout: float | None = None) -> dict[str, Any]:
        inputs = super().preprocess(image, timeout)
        return keep_apart(inputs) if isinstance(self.model, DetectionPreTrainedModel) else inputs

    def _forward(self, model_inputs: dict[str, Any]) -> ModelOutput:
        if isinstance(self.model, DetectionPreTrainedModel):
            model_inputs = pad_together(model_inputs)
        return super()._forward(model_inputs)


class SegmentationPipeline(ImageSegmentationPipeline):
    """transformers' pipeline; for our models it pads the images of a batch to one size."""

    def preprocess(
        self, image: Any, subtask: str | None = None, timeout: float | None = None
    ) -> dict[str, Any]:
        inputs = super().preprocess(image, subtask, timeout)
        return keep_apart(inputs) if isinstance(self.model, DetectionPreTrainedModel) else inputs

    def _forward(self, model_inputs: dict[str, Any]) -> ModelOutput:
        if isinstance(self.model, DetectionPreTrainedModel):
            model_inputs = pad_together(model_inputs)
        return super()._forward(model_inputs)


def keep_apart(inputs: dict[str, Any]) -> dict[str, Any]:
    """Inputs of one image whose tensors of its size are in lists, which are batched as lists."""
    pixel_values = inputs["pixel_values"]
    # Without a mask the padding of a batch would pass as real pixels.
    ones = torch.ones_like(pixel_values[:, 0], dtype=torch.int64)
    inputs["pixel_mask"] = [inputs.get("pixel_mask", ones)]
    inputs["pixel_values"] = [pixel_values]
    return inputs


def pad_together(model_inputs: dict[str, Any]) -> dict[str, Any]:
    """Inputs of a batch whose images, kept apart until now, are padded to one size."""
    images = {key: pad_to_batch(model_inputs[key]) for key in ("pixel_values", "pixel_mask")}
    return {**model_inputs, **images}


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
