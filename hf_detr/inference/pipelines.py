"""`pipeline("object-detection")` and `pipeline("image-segmentation")` on images of several sizes.

transformers concatenates the images of a batch, which fails if their sizes differ. Here the images
stay in a list until the forward pass, where they are padded and masked.
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import ImageSegmentationPipeline, ObjectDetectionPipeline
from transformers.utils import ModelOutput

from ..models.pretrained_model import DetectionPreTrainedModel
from ..models.segmentation import Segmenter
from ..models.variants import check_has_masks
from .score_thresholds import Threshold, threshold_of_labels

IMAGES = ("pixel_values", "pixel_mask")


class DetectionPipeline(ObjectDetectionPipeline):
    """Pipeline for object detection that pads the images of a batch to one size.

    `threshold` is as in `predict`: by default, the model's `class_thresholds`.
    """

    def check_model_type(self, supported_models: Any) -> None:
        if not isinstance(self.model, DetectionPreTrainedModel):  # which transformers may not have
            super().check_model_type(supported_models)

    def preprocess(self, image: Any, *args: Any, **kwargs: Any) -> dict[str, Any]:
        return put_in_lists(super().preprocess(image, *args, **kwargs), self.model)

    def _forward(self, model_inputs: dict[str, Any]) -> ModelOutput:
        return super()._forward(pad_lists(model_inputs))

    def postprocess(
        self, model_outputs: ModelOutput, threshold: Threshold = None
    ) -> list[dict[str, Any]]:
        per_label = threshold_of_labels(threshold, self.model.config)
        return super().postprocess(model_outputs, per_label)


class SegmentationPipeline(ImageSegmentationPipeline):
    """Pipeline for image segmentation that pads the images of a batch to one size."""

    def check_model_type(self, supported_models: Any) -> None:
        """Check that the model has masks; of a type without them, it can be transformers' class.

        Raises:
            ValueError: if it hasn't.
        """
        name = self.model.name_or_path or "The model"
        check_has_masks(self.model.config.model_type, name)
        if not isinstance(self.model, DetectionPreTrainedModel):  # which transformers may not have
            super().check_model_type(supported_models)
        elif not isinstance(self.model, Segmenter):
            raise ValueError(
                f"{name} is a {type(self.model).__name__}, which has no mask head; use "
                'pipeline("object-detection"), or a segmentation model.'
            )

    def preprocess(self, image: Any, *args: Any, **kwargs: Any) -> dict[str, Any]:
        return put_in_lists(super().preprocess(image, *args, **kwargs), self.model)

    def _forward(self, model_inputs: dict[str, Any]) -> ModelOutput:
        return super()._forward(pad_lists(model_inputs))


def put_in_lists(inputs: dict[str, Any], model: nn.Module) -> dict[str, Any]:
    """Put image and mask in lists, which a pipeline doesn't concatenate, for models of hf_detr."""
    if isinstance(model, DetectionPreTrainedModel):
        ones = torch.ones_like(inputs["pixel_values"][:, 0], dtype=torch.int64)
        inputs["pixel_mask"] = [inputs.get("pixel_mask", ones)]
        inputs["pixel_values"] = [inputs["pixel_values"]]
    return inputs


def pad_lists(inputs: dict[str, Any]) -> dict[str, Any]:
    """Replace those lists by padded batches."""
    lists = {name: inputs[name] for name in IMAGES if isinstance(inputs.get(name), list)}
    return {**inputs, **{name: pad_to_batch(tensors) for name, tensors in lists.items()}}


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
