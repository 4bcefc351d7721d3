"""DETR's image processor: images and COCO annotations to model inputs, outputs to detections.

Reads and writes transformers' `preprocessor_config.json`. Same pixels as transformers' processor
for the same settings, within rounding; differs in that targets are relative to each image without
its padding.
"""

import os
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers.image_processing_backends import TorchvisionBackend
from transformers.image_processing_utils import BatchFeature
from transformers.image_utils import ImageInput, PILImageResampling, SizeDict
from transformers.processing_utils import Unpack

from .annotations import prepare_labels
from .classification import Classification, SoftmaxClassification
from .image_canvas import (
    empty_canvas,
    group_by_shape,
    make_pixel_mask,
    stack_images,
    write_pixels,
    zero_margins,
)
from .image_reading import read_images
from .image_settings import (
    DEFAULT_LONGEST_EDGE,
    DEFAULT_SHORTEST_EDGE,
    DetectionImageKwargs,
    check_settings,
    padded_hw,
    resized_hw,
    standard_size,
)
from .postprocess import detections_per_image
from .postprocess_masks import encode_segments, merged_maps, segment_maps, semantic_maps
from .whole_saving import atomic_folder


class DetrImageProcessor(TorchvisionBackend):
    """Resize, rescale, normalise and pad images, and turn COCO annotations into targets.

    Args:
        size: `{"shortest_edge", "longest_edge"}` (default 800 and 1333) or `{"shortest_edge"}`
            keep the aspect ratio, as does `{"max_height", "max_width"}`; `{"height", "width"}`
            doesn't. Old files give the shortest edge as an int, and `max_size` for the longest.
        do_resize, do_rescale, do_normalize, do_pad: steps to take, all True by default.
        resample: filter for resizing, default bilinear.
        rescale_factor: what uint8 pixels are multiplied by, default 1/255.
        image_mean, image_std: three numbers each for rescaled RGB, default ImageNet's.
        pad_size: `{"height", "width"}` to pad to; None takes the largest of the batch.
        do_convert_rgb: blend transparent images onto white; otherwise alpha is dropped.
        do_convert_annotations: boxes (cx, cy, w, h) in [0, 1], else (x0, y0, x1, y1) in pixels of
            the resized image; as in transformers, `do_normalize=False` alone turns this off too.
        format: of the annotations, "coco_detection" (default) or "coco_panoptic".

    Raises:
        ValueError: if a setting can't be right.
    """

    valid_kwargs = DetectionImageKwargs
    model_input_names = ["pixel_values", "pixel_mask"]
    classification: type[Classification] = SoftmaxClassification
    default_to_square = False
    do_resize = True
    size = {"shortest_edge": DEFAULT_SHORTEST_EDGE, "longest_edge": DEFAULT_LONGEST_EDGE}
    resample = PILImageResampling.BILINEAR
    do_rescale = True
    do_normalize = True
    image_mean = (0.485, 0.456, 0.406)
    image_std = (0.229, 0.224, 0.225)
    do_pad = True
    format = "coco_detection"

    def __init__(self, **kwargs: Unpack[DetectionImageKwargs]) -> None:
        # Names of transformers 4 and older, as they still stand in files on the Hub.
        if "pad_and_return_pixel_mask" in kwargs:
            kwargs.setdefault("do_pad", kwargs.pop("pad_and_return_pixel_mask"))
        kwargs["size"] = standard_size(
            kwargs.get("size"), kwargs.pop("max_size", DEFAULT_LONGEST_EDGE)
        )
        if kwargs.get("do_convert_annotations") is None:
            do_normalize = kwargs.get("do_normalize")
            kwargs["do_convert_annotations"] = do_normalize is not False
        super().__init__(**kwargs)

    def preprocess(
        self,
        images: ImageInput,
        annotations: Mapping[str, Any] | list[Mapping[str, Any]] | None = None,
        return_segmentation_masks: bool | None = None,
        masks_path: str | os.PathLike[str] | None = None,
        **kwargs: Unpack[DetectionImageKwargs],
    ) -> BatchFeature:
        """Turn images, and their annotations in training, into what the model takes.

        Args:
            images: one image or a list: PIL, arrays, tensors, paths or URLs. PIL images and files
                are turned upright by their EXIF orientation, and annotations refer to that.
            annotations: per image `{"image_id", "annotations": [{"bbox": [left, top, width,
                height] in pixels, "category_id", "area"?, "iscrowd"?, "segmentation"?}, ...]}`; or
                in format "coco_panoptic" `{"image_id", "file_name", "segments_info": [{"id",
                "category_id", "area"?, "iscrowd"?}, ...]}`, whose crowd segments are kept.
            return_segmentation_masks: give `masks`; None means with panoptic annotations only. In
                detection annotations `segmentation` is polygons or run lengths, packed or not.
            masks_path: the folder of the PNGs that panoptic annotations name.
            **kwargs: settings for this call only, as in the constructor, and `return_tensors`
                ("pt", "np"), `device`, `input_data_format`.

        Returns:
            `pixel_values` (B, 3, H, W) float32, padded at the bottom and the right with 0;
            `pixel_mask` (B, H, W) int64, 1 = real, if padded; with annotations `labels`, per image
            a dict of `class_labels`, `boxes`, `area`, `iscrowd`, `image_id`, `orig_size` (the
            upright input) and `size` (resized, without padding), sizes as (height, width), and
            `masks` (n, H, W) bool, padded as the image.

        Raises:
            ValueError: if an image, an annotation or a setting can't be right; it says which.
            TypeError: if something isn't an image or an annotation.
        """
        # transformers takes None for False; only for `pad_size` does it mean something.
        kwargs = {k: v for k, v in kwargs.items() if v is not None or k == "pad_size"}
        return super().preprocess(
            images, annotations, return_segmentation_masks, masks_path, **kwargs
        )

    def to_json_file(self, json_file_path: str | os.PathLike) -> None:
        """Write `preprocessor_config.json`, completely or not at all."""
        path = Path(json_file_path)
        with atomic_folder(path.parent) as folder:
            super().to_json_file(folder / path.name)

    def post_process_object_detection(
        self,
        outputs: Any,
        threshold: float = 0.5,
        target_sizes: Tensor | list[tuple[int, int]] | None = None,
    ) -> list[dict[str, Tensor]]:
        """Turn the model's outputs into the detections of each image.

        Args:
            outputs: `logits` (B, Q, C + 1) and `pred_boxes` (B, Q, 4) as (cx, cy, w, h) in [0, 1].
            threshold: keep detections that score higher.
            target_sizes: (height, width) of each original image in pixels; None leaves boxes in
                [0, 1].

        Returns:
            Per image `scores` (n,), `labels` (n,) and `boxes` (n, 4) as (x0, y0, x1, y1).

        Raises:
            ValueError: if the number of target sizes isn't the number of images.
        """
        # One detection per query and in their order, so the boxes are in place already.
        scores, labels, _ = self.classification.detections(outputs.logits)
        return detections_per_image(scores, labels, outputs.pred_boxes, threshold, target_sizes)

    def post_process_semantic_segmentation(
        self,
        outputs: Any,
        target_sizes: list[tuple[int, int]] | None = None,
        return_segmentation_scores: bool = False,
    ) -> list[Any]:
        """Turn the model's outputs into a map (height, width) of classes; see `semantic_maps`.

        Args, also of the methods below:
            outputs: `logits` (B, Q, C'), `pred_masks` (B, Q, h, w), and `pixel_mask` (B, H, W), by
                which padding is cut off; without it, it isn't.
            target_sizes: (height, width) of each map; None leaves the masks' size.
        """
        return semantic_maps(
            self.classification.probabilities(outputs.logits),
            outputs.pred_masks,
            target_sizes,
            return_segmentation_scores,
            getattr(outputs, "pixel_mask", None),
        )

    def post_process_instance_segmentation(
        self,
        outputs: Any,
        threshold: float = 0.5,
        mask_threshold: float = 0.5,
        overlap_mask_area_threshold: float = 0.8,
        target_sizes: list[tuple[int, int]] | None = None,
        return_coco_annotation: bool | None = False,
    ) -> list[dict[str, Any]]:
        """As below, nothing fused; `return_coco_annotation` gives each segment's run lengths."""
        settings = threshold, mask_threshold, overlap_mask_area_threshold, (), target_sizes
        results = self.post_process_panoptic_segmentation(outputs, *settings)
        return encode_segments(results) if return_coco_annotation else results

    def post_process_panoptic_segmentation(
        self,
        outputs: Any,
        threshold: float = 0.5,
        mask_threshold: float = 0.5,
        overlap_mask_area_threshold: float = 0.8,
        label_ids_to_fuse: Collection[int] | None = None,
        target_sizes: list[tuple[int, int]] | None = None,
    ) -> list[dict[str, Any]]:
        """Turn queries that score above `threshold` into segments; see `segment_maps`."""
        return segment_maps(
            self.classification.best_classes(outputs.logits),
            outputs.pred_masks,
            threshold,
            mask_threshold,
            overlap_mask_area_threshold,
            label_ids_to_fuse or (),
            target_sizes,
            getattr(outputs, "pixel_mask", None),
        )

    def post_process_panoptic_merge(
        self,
        outputs: Any,
        threshold: float = 0.85,
        label_ids_to_fuse: Collection[int] | None = None,
        min_area: int = 5,
        target_sizes: list[tuple[int, int]] | None = None,
    ) -> list[dict[str, Any]]:
        """The same by the paper's own rules, with which its PQ was measured; see `merged_maps`."""
        return merged_maps(
            self.classification.best_classes(outputs.logits),
            outputs.pred_masks,
            threshold,
            label_ids_to_fuse or (),
            min_area,
            target_sizes,
            getattr(outputs, "pixel_mask", None),
        )

    def _standardize_kwargs(self, **kwargs: Any) -> dict[str, Any]:
        kwargs["size"] = standard_size(kwargs.get("size"))
        format = kwargs.get("format")
        kwargs["format"] = getattr(format, "value", format)
        settings = super()._standardize_kwargs(**kwargs)
        check_settings(settings)
        return settings

    def _prepare_image_like_inputs(
        self, images: ImageInput, *args: Any, **kwargs: Any
    ) -> list[Tensor]:
        do_rescale, device = kwargs["do_rescale"], kwargs.get("device")
        tensors = read_images(
            images,
            kwargs.get("input_data_format"),
            unit_floats=do_rescale,
            # Images that are only resized and padded may hold anything, normalised values too.
            check_range=do_rescale or kwargs["do_normalize"],
            blend_alpha=bool(kwargs.get("do_convert_rgb")),
        )
        return tensors if device is None else [tensor.to(device) for tensor in tensors]

    def _preprocess(
        self,
        images: list[Tensor],
        annotations: Mapping[str, Any] | list[Mapping[str, Any]] | None = None,
        return_masks: bool | None = None,
        masks_path: str | os.PathLike[str] | None = None,
        *,
        return_tensors: str | None,
        **settings: Any,
    ) -> BatchFeature:
        sizes_hw = [tuple(image.shape[-2:]) for image in images]
        new_sizes_hw = sizes_hw
        if settings["do_resize"]:
            new_sizes_hw = [resized_hw(size_hw, settings["size"]) for size_hw in sizes_hw]
        canvas_hw = padded_hw(new_sizes_hw, settings["do_pad"], settings["pad_size"])
        # Targets first: a bad annotation should be reported before the images cost time.
        labels = prepare_labels(
            annotations, sizes_hw, new_sizes_hw, canvas_hw, settings, return_masks, masks_path
        )

        inputs = {"pixel_values": self._pixel_values(images, new_sizes_hw, canvas_hw, settings)}
        if settings["do_pad"]:
            inputs["pixel_mask"] = make_pixel_mask(new_sizes_hw, canvas_hw, images[0].device)
        to_device = "cpu" if return_tensors == "np" else images[0].device
        inputs = {key: value.to(to_device) for key, value in inputs.items()}
        features = BatchFeature(inputs, tensor_type=return_tensors)
        if labels is not None:
            features["labels"] = [
                BatchFeature(
                    {key: value.to(to_device) for key, value in target.items()},
                    tensor_type=return_tensors,
                )
                for target in labels
            ]
        return features

    def _pixel_values(
        self,
        images: list[Tensor],
        new_sizes_hw: list[tuple[int, int]],
        canvas_hw: tuple[int, int],
        settings: Mapping[str, Any],
    ) -> Tensor:
        """(B, 3, H, W): every image resized, rescaled, normalised and written into the canvas."""
        if settings["do_rescale"] or settings["do_normalize"] or len({i.dtype for i in images}) > 1:
            dtype = torch.float32
        else:
            dtype = images[0].dtype
        canvas = empty_canvas((len(images), 3, *canvas_hw), dtype, images[0].device)
        for indices in group_by_shape(images, settings["disable_grouping"]):
            height, width = new_sizes_hw[indices[0]]
            group = stack_images([images[index] for index in indices])
            if settings["do_resize"]:
                size = SizeDict(height=height, width=width)
                group = self.resize(group, size=size, resample=settings["resample"])
            for index, image in zip(indices, group, strict=True):
                write_pixels(image, canvas[index, :, :height, :width], settings)
                zero_margins(canvas[index], height, width)
        return canvas
