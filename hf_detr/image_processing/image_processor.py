"""The image processor: images and COCO annotations to model inputs, outputs to detections.

Reads and writes transformers' `preprocessor_config.json`. Gives the same pixels as transformers'
processor for the same settings, within rounding. Unlike there, targets are relative to each image
without its padding.
"""

import os
import warnings
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from torch import Tensor
from transformers.image_processing_utils import BatchFeature
from transformers.image_utils import ImageInput, PILImageResampling
from transformers.processing_utils import Unpack

from ..atomic_saving import atomic_folder
from ..losses.classification import Classification
from .coco_targets import prepare_labels
from .image_canvas import make_pixel_mask, make_pixel_values
from .image_processor_steps import ImageProcessorSteps
from .image_reading import read_images
from .image_settings import (
    DEFAULT_LONGEST_EDGE,
    DEFAULT_SHORTEST_EDGE,
    DetectionImageKwargs,
    check_settings,
    number_of_channels,
    padded_hw,
    resized_hw,
    standard_size,
    warn_about_misspelt_settings,
)
from .mixed_models import warn_of_mixed_models
from .postprocess import check_number_of_thresholds
from .postprocess_masks import encode_segments, merged_maps, segment_maps, semantic_maps


class DetectionImageProcessor(ImageProcessorSteps):
    """Resizes, rescales, normalizes and pads images, and converts COCO annotations to targets.

    Args:
        size: `{"shortest_edge", "longest_edge"}` (default 800 and 1333), `{"shortest_edge"}`,
            `{"longest_edge"}` and `{"max_height", "max_width"}` keep the aspect ratio; `{"height",
            "width"}` doesn't. In old files, an int is the shortest edge and `max_size` the longest.
            The other form that transformers reads, `{"min_pixels", "max_pixels"}`, is an error when
            an image is resized.
        do_resize, do_rescale, do_normalize, do_pad: whether to do these steps, True by default.
        resample: filter for resizing, by default bilinear.
        rescale_factor: factor for uint8 pixels, by default 1/255.
        image_mean, image_std: a number per channel for the rescaled pixels, by default those of
            ImageNet for RGB. Images must have as many channels; with three, gray and transparent
            images are converted to RGB. With one number for all channels, images keep their own.
        pad_size: `{"height", "width"}` to pad to. Defaults to the largest of the batch.
        do_convert_rgb: whether to convert images to RGB, blending transparent ones onto white
            instead of dropping alpha.
        do_convert_annotations: whether to convert boxes to (cx, cy, w, h) in [0, 1]; otherwise they
            are (x0, y0, x1, y1) in pixels of the resized image. As in transformers, defaults to
            False if `do_normalize` is False.
        format: format of the annotations, "coco_detection" (default) or "coco_panoptic".

    Raises:
        ValueError: if a setting is invalid.
    """

    valid_kwargs = DetectionImageKwargs
    model_input_names = ["pixel_values", "pixel_mask"]
    classification: type[Classification]  # of the variant's logits
    other_families: tuple[str, ...] = ()  # whose names differ, but use this image processor
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
        warn_about_misspelt_settings(kwargs, self.valid_kwargs)
        _rename_old(kwargs)
        has_max_size, max_size = "max_size" in kwargs, kwargs.pop("max_size", DEFAULT_LONGEST_EDGE)
        kwargs["size"] = standard_size(kwargs.get("size"), max_size)
        if has_max_size and kwargs["size"].get("longest_edge") != max_size:
            warnings.warn(
                f"max_size={max_size} has no effect, because size is {kwargs['size']}; set "
                "'longest_edge' in size instead.",
                stacklevel=2,
            )
        if kwargs.get("do_convert_annotations") is None:
            kwargs["do_convert_annotations"] = kwargs.get("do_normalize") is not False
        super().__init__(**kwargs)

    @classmethod
    def from_pretrained(cls, *args: Any, **kwargs: Any) -> Any:
        """Load from a folder or the Hub, as in transformers."""
        if "_from_auto" in kwargs:
            own = cls.__name__.removesuffix("ImageProcessor")
            warn_of_mixed_models(cls.__name__, (own, *cls.other_families))
        return super().from_pretrained(*args, **kwargs)

    @classmethod
    def from_dict(cls, image_processor_dict: dict[str, Any], **kwargs: Any) -> Any:
        """As in transformers, but names of transformers 4 in `kwargs` aren't ignored."""
        warn_about_misspelt_settings(kwargs, cls.valid_kwargs)
        _rename_old(kwargs)
        stored = dict(image_processor_dict)
        if not isinstance(kwargs.get("size"), int | None):  # it has its own longest edge, or none
            stored.pop("max_size", None)
        old = {"max_size": kwargs.pop("max_size")} if "max_size" in kwargs else {}
        return super().from_dict({**stored, **old}, **kwargs)

    def preprocess(
        self,
        images: ImageInput,
        annotations: Mapping[str, Any] | list[Mapping[str, Any]] | None = None,
        return_segmentation_masks: bool | None = None,
        masks_path: str | os.PathLike[str] | None = None,
        **kwargs: Unpack[DetectionImageKwargs],
    ) -> BatchFeature:
        """Prepare images, and annotations for training, for the model.

        Args:
            images: one image or a list of images: PIL images, arrays, tensors, paths or URLs. The
                EXIF orientation of PIL images and files is applied; boxes refer to the result.
            annotations: for each image `{"image_id", "annotations": [{"bbox": [left, top, width,
                height] in pixels, "category_id", "area"?, "iscrowd"?, "segmentation"?}, ...]}`, or
                in the format "coco_panoptic" `{"image_id", "file_name", "segments_info": [{"id",
                "category_id", "area"?, "iscrowd"?}, ...]}`, whose crowd segments are kept.
            return_segmentation_masks: whether to return `masks`. Defaults to True for panoptic
                annotations only. In detection annotations `segmentation` is polygons or RLE.
            masks_path: the folder of the PNG files of panoptic annotations.
            **kwargs: settings of the constructor for this call only, and `return_tensors` ("pt",
                "np"), `device`, `input_data_format`.

        Returns:
            `pixel_values` (B, C, H, W) float32, zero-padded at the bottom and the right;
            `pixel_mask` (B, H, W) int64, 1 for real pixels, with `do_pad`; and with annotations
            `labels`, for each image a dict of `class_labels`, `boxes`, `area`, `iscrowd`,
            `image_id`, `orig_size` (of the upright input) and `size` (resized, without padding),
            sizes as (height, width), and if annotations have them `masks` (n, H, W) bool, padded
            as the image, and `keypoints`, see `prepare_detection_target`.

        Raises:
            ValueError: if an image, an annotation or a setting is invalid.
            TypeError: if something isn't an image or an annotation.
        """
        # transformers treats None as False; it is only a valid value of `pad_size`.
        kwargs = {k: v for k, v in kwargs.items() if v is not None or k == "pad_size"}
        return super().preprocess(
            images, annotations, return_segmentation_masks, masks_path, **kwargs
        )

    @classmethod
    def most_detections(cls, num_queries: int, num_labels: int) -> int:
        """Return how many detections `post_process_object_detection` has at most by default."""
        return num_queries

    def to_json_file(self, json_file_path: str | os.PathLike) -> None:
        """Write `preprocessor_config.json` atomically."""
        path = Path(json_file_path)
        with atomic_folder(path.parent) as folder:
            super().to_json_file(folder / path.name)

    def post_process_semantic_segmentation(
        self,
        outputs: Any,
        target_sizes: list[tuple[int, int]] | None = None,
        return_segmentation_scores: bool = False,
    ) -> list[Any]:
        """Convert the model's outputs to a map (height, width) of classes; see `semantic_maps`.

        Args (also of the methods below):
            outputs: `logits` (B, Q, C'), `pred_masks` (B, Q, h, w), and optionally `pixel_mask`
                (B, H, W), which is used to remove the padding.
            target_sizes: (height, width) of each map; defaults to the size of the masks.
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
        threshold: float | Tensor = 0.5,
        mask_threshold: float = 0.5,
        overlap_mask_area_threshold: float = 0.8,
        target_sizes: list[tuple[int, int]] | None = None,
        return_coco_annotation: bool | None = False,
    ) -> list[dict[str, Any]]:
        """As `post_process_panoptic_segmentation`, without fusing; optionally as run lengths."""
        settings = threshold, mask_threshold, overlap_mask_area_threshold, (), target_sizes
        results = self.post_process_panoptic_segmentation(outputs, *settings)
        return encode_segments(results) if return_coco_annotation else results

    def post_process_panoptic_segmentation(
        self,
        outputs: Any,
        threshold: float | Tensor = 0.5,
        mask_threshold: float = 0.5,
        overlap_mask_area_threshold: float = 0.8,
        label_ids_to_fuse: Collection[int] | None = None,
        target_sizes: list[tuple[int, int]] | None = None,
    ) -> list[dict[str, Any]]:
        """Convert queries with scores above `threshold` to segments; see `segment_maps`."""
        self._check_thresholds(threshold, outputs.logits)
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
        threshold: float | Tensor = 0.85,
        label_ids_to_fuse: Collection[int] | None = None,
        min_area: int = 5,
        target_sizes: list[tuple[int, int]] | None = None,
    ) -> list[dict[str, Any]]:
        """Merge segments by the rules of the paper, used for its PQ; see `merged_maps`."""
        self._check_thresholds(threshold, outputs.logits)
        return merged_maps(
            self.classification.best_classes(outputs.logits),
            outputs.pred_masks,
            threshold,
            label_ids_to_fuse or (),
            min_area,
            target_sizes,
            getattr(outputs, "pixel_mask", None),
        )

    def _check_thresholds(self, threshold: float | Tensor, logits: Tensor) -> None:
        num_labels = self.classification.probabilities(logits[:0]).shape[-1]
        check_number_of_thresholds(threshold, num_labels)

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
            # Images that are only resized and padded may have any values, such as normalized ones.
            check_range=do_rescale or kwargs["do_normalize"],
            blend_alpha=bool(kwargs.get("do_convert_rgb")),
            num_channels=number_of_channels(
                kwargs["image_mean"], kwargs["image_std"], kwargs.get("do_convert_rgb")
            ),
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
        # Targets first, so that errors in annotations are reported before images are processed.
        labels = prepare_labels(
            annotations, sizes_hw, new_sizes_hw, canvas_hw, settings, return_masks, masks_path
        )

        pixel_values = make_pixel_values(images, new_sizes_hw, canvas_hw, settings, self.resize)
        inputs = {"pixel_values": pixel_values}
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


def _rename_old(kwargs: dict[str, Any]) -> None:
    """Rename settings of transformers 4 and older, which files on the Hub still have."""
    if "pad_and_return_pixel_mask" in kwargs:
        kwargs.setdefault("do_pad", kwargs.pop("pad_and_return_pixel_mask"))
