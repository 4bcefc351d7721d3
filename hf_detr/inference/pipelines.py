"""`pipeline("object-detection")` and `pipeline("image-segmentation")` on images of several sizes.

transformers concatenates the images of a batch, which fails if their sizes differ. Here the images
stay in a list until the forward pass, where they are padded and masked.
"""

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from transformers import ImageSegmentationPipeline, ObjectDetectionPipeline
from transformers.utils import ModelOutput

from ..models.pretrained_model import DetectionPreTrainedModel


class _PaddedBatches:
    """Pads the images of a batch to one size for the models of hf_detr."""

    def preprocess(self, image: Any, *args: Any, **kwargs: Any) -> dict[str, Any]:
        inputs = super().preprocess(image, *args, **kwargs)
        if isinstance(self.model, DetectionPreTrainedModel):
            pixel_values = inputs["pixel_values"]
            ones = torch.ones_like(pixel_values[:, 0], dtype=torch.int64)
            # A pipeline batches lists without concatenating their tensors.
            inputs["pixel_mask"] = [inputs.get("pixel_mask", ones)]
            inputs["pixel_values"] = [pixel_values]
        return inputs

    def _forward(self, model_inputs: dict[str, Any]) -> ModelOutput:
        if isinstance(self.model, DetectionPreTrainedModel):
            images = ("pixel_values", "pixel_mask")
            model_inputs = {**model_inputs, **{n: pad_to_batch(model_inputs[n]) for n in images}}
        return super()._forward(model_inputs)


class DetectionPipeline(_PaddedBatches, ObjectDetectionPipeline):
    """Pipeline for object detection that pads the images of a batch to one size."""


class SegmentationPipeline(_PaddedBatches, ImageSegmentationPipeline):
    """Pipeline for image segmentation that pads the images of a batch to one size."""


def pad_to_batch(tensors: list[Tensor] | list[list[Tensor]]) -> Tensor:
    """Pad tensors (1, …, h_i, w_i) with zeros at the bottom and right, and concatenate them.

    Args:
        tensors: one per image, or a list of such lists, as in batches of a pipeline.

    Returns:
        (B, …, H, W) with the largest height and width.
    """
    flat = [t for item in tensors for t in (item if isinstance(item, list) else [item])]
    height = max(t.shape[-2] for t in flat)
    width = max(t.shape[-1] for t in flat)
    return torch.cat([F.pad(t, (0, width - t.shape[-1], 0, height - t.shape[-2])) for t in flat])
