"""The steps of the image processor as methods of their own, with transformers' arguments.

`DetectionImageProcessor` itself works on whole batches; these methods are for code that was written
for transformers and calls single steps.
"""

import os
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from transformers.image_processing_backends import TorchvisionBackend
from transformers.image_processing_utils import BatchFeature
from transformers.image_utils import ChannelDimension, PILImageResampling, get_image_size
from transformers.image_utils import pil_torch_interpolation_mapping as interpolations

from .coco_targets import normalize_target, pad_target, prepare_annotation, resize_target
from .image_settings import FORMATS


class ImageProcessorSteps(TorchvisionBackend):
    """Padding of images, and the conversion of annotations in steps."""

    def pad(
        self,
        image: Tensor | list[Tensor],
        padded_size: tuple[int, int] | None = None,
        annotation: dict[str, Any] | list[dict[str, Any]] | None = None,
        update_bboxes: bool = True,
        fill: int = 0,
        **settings: Any,
    ) -> BatchFeature | tuple[Tensor, Tensor, Any]:
        """Pad images at the bottom and the right, in the form of transformers 4 or 5.

        Args:
            image: transformers 4: a list of images (C, H, W), which are padded to the largest.
                transformers 5: an image (C, H, W) or a batch (B, C, H, W).
            padded_size: (height, width), for a tensor only.
            annotation: targets of the tensor. Masks are padded. As everywhere in hf_detr, boxes
                and `size` stay relative to the image without its padding.
            update_bboxes: without effect, because boxes don't change.
            fill: value of the padding of a tensor.
            **settings: for a list only, `return_tensors` and other settings of `preprocess`.

        Returns:
            For a list `pixel_values` (B, C, H, W) and `pixel_mask` (B, H, W), 1 for real pixels.
            For a tensor the padded tensor, its mask (…, H, W), and the padded `annotation`.

        Raises:
            TypeError: if arguments of the two forms are mixed.
            ValueError: if an image is larger than the padded size.
        """
        if isinstance(image, (list, tuple)):
            if padded_size is not None or annotation is not None or fill != 0:
                raise TypeError(
                    "pad takes padded_size, annotation and fill for a tensor only; pass a tensor, "
                    "or pad_size={'height': ..., 'width': ...} with a list of images."
                )
            steps = ("do_resize", "do_rescale", "do_normalize")
            return self.preprocess(image, **dict.fromkeys(steps, False), do_pad=True, **settings)
        if padded_size is None or settings:
            raise TypeError(
                f"pad was called with a {type(image).__name__}, padded_size={padded_size} and "
                f"{sorted(settings)}; expected a tensor and padded_size=(height, width), or a list "
                "of images."
            )
        image_hw = tuple(image.shape[-2:])
        bottom, right = (padded_size[axis] - image_hw[axis] for axis in (0, 1))
        if bottom < 0 or right < 0:
            raise ValueError(
                f"padded_size is {tuple(padded_size)}, but the image is {image_hw} (height, "
                "width); expected a size that isn't smaller."
            )
        margins = (0, right, 0, bottom)
        mask_shape = (*image.shape[:-3], *image_hw)
        mask = F.pad(torch.ones(mask_shape, dtype=torch.int64, device=image.device), margins)
        if isinstance(annotation, Mapping):
            annotation = pad_target(annotation, padded_size)
        elif annotation is not None:
            annotation = [pad_target(target, padded_size) for target in annotation]
        return F.pad(image, margins, value=fill), mask, annotation

    def prepare_annotation(
        self,
        image: Any,
        target: Mapping[str, Any],
        format: str | None = None,
        return_segmentation_masks: bool | None = None,
        masks_path: str | os.PathLike[str] | None = None,
        input_data_format: str | ChannelDimension | None = None,
    ) -> dict[str, Tensor]:
        """Convert the annotation of an image to a target, with boxes as corners in pixels.

        Arguments are those of `preprocess`, for one upright image, an array or tensor whose layout
        is inferred unless `input_data_format` is given.
        """
        format = getattr(format, "value", format) or self.format
        if format not in FORMATS:
            raise ValueError(f"format is {format!r}; expected one of {FORMATS}.")
        image_hw = get_image_size(image, channel_dim=input_data_format)
        return prepare_annotation(target, image_hw, format, return_segmentation_masks, masks_path)

    def resize_annotation(
        self,
        annotation: Mapping[str, Any],
        orig_size: tuple[int, int],
        target_size: tuple[int, int],
        threshold: float = 0.5,
        resample: Any = PILImageResampling.NEAREST,
    ) -> dict[str, Any]:
        """Resize a target from (height, width) `orig_size` to `target_size` with its image.

        Boxes are corners in pixels. Masks are resized to the nearest pixel, where `threshold` has
        no effect; another `resample` is a ValueError.
        """
        if interpolations.get(resample, resample) != interpolations[PILImageResampling.NEAREST]:
            raise ValueError(f"resample is {resample!r}; masks are resized to the nearest pixel.")
        target = {**annotation, "size": torch.tensor(tuple(orig_size))}
        return resize_target(target, tuple(target_size))

    def normalize_annotation(
        self, annotation: Mapping[str, Any], image_size: tuple[int, int]
    ) -> dict[str, Any]:
        """Convert boxes from corners in pixels to (cx, cy, w, h) in [0, 1].

        `image_size` is the (height, width) of the image that boxes refer to.
        """
        target = {**annotation, "size": torch.tensor(tuple(image_size))}
        return {**annotation, "boxes": normalize_target(target)["boxes"]}
