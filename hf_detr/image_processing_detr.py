"""DETR's image processor: images and COCO annotations to model inputs, outputs to detections.

Reads and writes transformers' `preprocessor_config.json`. Same pixels as transformers' processor
for the same settings; differs in that targets are relative to each image without its padding.
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from transformers.image_processing_backends import TorchvisionBackend
from transformers.image_processing_utils import BatchFeature
from transformers.image_utils import AnnotationFormat, ImageInput, PILImageResampling, SizeDict
from transformers.processing_utils import ImagesKwargs, Unpack

from .annotations import normalize_target, pad_target, prepare_detection_target, resize_target
from .classification import SoftmaxClassification
from .image_reading import read_images
from .image_settings import (
    DEFAULT_LONGEST_EDGE,
    DEFAULT_SHORTEST_EDGE,
    check_settings,
    padded_hw,
    resized_hw,
    standard_size,
)
from .postprocess import detections_per_image


class DetrImageProcessorKwargs(ImagesKwargs, total=False):
    """Settings beyond those that every image processor has; in a call, None is the processor's own.

    Attributes:
        format: format of the annotations, "coco_detection".
        do_convert_annotations: make boxes (cx, cy, w, h) in [0, 1]; otherwise they are
            (x0, y0, x1, y1) in pixels of the resized image.
    """

    format: str | AnnotationFormat | None
    do_convert_annotations: bool | None


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
        format: "coco_detection"; "coco_panoptic" is kept in files but can't be used yet.

    Raises:
        ValueError: if a setting can't be right.
    """

    valid_kwargs = DetrImageProcessorKwargs
    model_input_names = ["pixel_values", "pixel_mask"]
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

    def __init__(self, **kwargs: Unpack[DetrImageProcessorKwargs]) -> None:
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
        masks_path: str | None = None,
        **kwargs: Unpack[DetrImageProcessorKwargs],
    ) -> BatchFeature:
        """Turn images, and their annotations in training, into what the model takes.

        Args:
            images: one image or a list: PIL, arrays, tensors, paths or URLs. PIL images and files
                are turned upright by their EXIF orientation, and annotations refer to that.
            annotations: per image `{"image_id", "annotations": [{"bbox": [left, top, width,
                height] in pixels, "category_id", "area"?, "iscrowd"?}, ...]}`.
            return_segmentation_masks, masks_path: not supported yet.
            **kwargs: settings for this call only, as in the constructor, and `return_tensors`
                ("pt", "np"), `device`, `input_data_format`.

        Returns:
            `pixel_values` (B, 3, H, W) float32, padded at the bottom and the right with 0;
            `pixel_mask` (B, H, W) int64, 1 = real, if padded; with annotations `labels`, per image
            a dict of `class_labels`, `boxes`, `area`, `iscrowd`, `image_id`, `orig_size` (the
            upright input) and `size` (resized, without padding), sizes as (height, width).

        Raises:
            ValueError: if an image, an annotation or a setting can't be right; it says which.
            TypeError: if something isn't an image or an annotation.
        """
        if return_segmentation_masks or masks_path is not None:
            raise ValueError(
                "segmentation masks are not supported yet; leave return_segmentation_masks and "
                "masks_path out to train on boxes."
            )
        # transformers takes None for False; only for `pad_size` does it mean something.
        kwargs = {k: v for k, v in kwargs.items() if v is not None or k == "pad_size"}
        return super().preprocess(images, annotations, **kwargs)

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
        scores, labels, _ = SoftmaxClassification.detections(outputs.logits)
        return detections_per_image(scores, labels, outputs.pred_boxes, threshold, target_sizes)

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
        labels = _prepare_labels(annotations, sizes_hw, new_sizes_hw, canvas_hw, settings)

        inputs = {"pixel_values": self._pixel_values(images, new_sizes_hw, canvas_hw, settings)}
        if settings["do_pad"]:
            inputs["pixel_mask"] = _pixel_mask(new_sizes_hw, canvas_hw, images[0].device)
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
        canvas = torch.empty(len(images), 3, *canvas_hw, dtype=dtype, device=images[0].device)
        for indices in _groups(images, settings["disable_grouping"]):
            height, width = new_sizes_hw[indices[0]]
            group = _stacked([images[index] for index in indices])
            if settings["do_resize"]:
                size = SizeDict(height=height, width=width)
                group = self.resize(group, size=size, resample=settings["resample"])
            for index, image in zip(indices, group, strict=True):
                _write_pixels(image, canvas[index, :, :height, :width], settings)
                _zero_margins(canvas[index], height, width)
        return canvas


def _groups(images: list[Tensor], disable_grouping: bool | None) -> list[list[int]]:
    """Indices of images that can be resized as one tensor."""
    groups: dict[Any, list[int]] = {}
    for index, image in enumerate(images):
        key = index if disable_grouping else (image.shape, image.dtype)
        groups.setdefault(key, []).append(index)
    return list(groups.values())


def _stacked(images: list[Tensor]) -> Tensor:
    """(n, 3, H, W); bytes on the CPU in channels-last memory, where resizing is vectorised."""
    if images[0].dtype != torch.uint8 or images[0].device.type != "cpu":
        return torch.stack(images)
    return torch.stack([image.permute(1, 2, 0) for image in images]).permute(0, 3, 1, 2)


def _write_pixels(image: Tensor, canvas: Tensor, settings: Mapping[str, Any]) -> None:
    """Rescale and normalise an image (3, H, W) into its place (3, H, W) on the canvas."""
    canvas.copy_(image)
    factor = 1.0
    if settings["do_rescale"]:
        # Floats were brought to 0 … 1 when they were read, a 255th of the bytes they stand for.
        factor = settings["rescale_factor"] * (255 if image.is_floating_point() else 1)
    if settings["do_normalize"]:
        # Rescaling is folded into mean and deviation, in transformers' order: one pass less, and
        # the same bits.
        mean = torch.tensor(settings["image_mean"], device=canvas.device) * (1.0 / factor)
        std = torch.tensor(settings["image_std"], device=canvas.device) * (1.0 / factor)
        canvas.sub_(mean[:, None, None]).div_(std[:, None, None])
    elif factor != 1.0:
        canvas.mul_(factor)


def _pixel_mask(
    sizes_hw: list[tuple[int, int]], canvas_hw: tuple[int, int], device: torch.device
) -> Tensor:
    """(B, H, W) int64, 1 on real pixels and 0 on padding."""
    mask = torch.ones(len(sizes_hw), *canvas_hw, dtype=torch.int64, device=device)
    for index, (height, width) in enumerate(sizes_hw):
        _zero_margins(mask[index], height, width)
    return mask


def _zero_margins(canvas: Tensor, height: int, width: int) -> None:
    """Zero what lies below and right of the top left `height` x `width` of a canvas (..., H, W)."""
    # Writing the margins alone touches large memory once; zeroing it all first would be twice.
    canvas[..., height:, :].zero_()
    canvas[..., :height, width:].zero_()


def _prepare_labels(
    annotations: Mapping[str, Any] | list[Mapping[str, Any]] | None,
    sizes_hw: list[tuple[int, int]],
    new_sizes_hw: list[tuple[int, int]],
    canvas_hw: tuple[int, int],
    settings: Mapping[str, Any],
) -> list[dict[str, Tensor]] | None:
    """One target per image, resized and padded as its image is."""
    if annotations is None:
        return None
    if settings["format"] != "coco_detection":
        raise ValueError(
            f"annotations of format {settings['format']!r} are not supported yet; pass "
            "format='coco_detection' with boxes."
        )
    annotations = [annotations] if isinstance(annotations, Mapping) else annotations
    if not isinstance(annotations, (list, tuple)):
        raise TypeError(
            f"annotations is a {type(annotations).__name__}; give a list with one dict per image."
        )
    if len(annotations) != len(sizes_hw):
        raise ValueError(
            f"there are {len(annotations)} annotations for {len(sizes_hw)} images; give one dict "
            "per image, {'image_id': int, 'annotations': [...]}, with all objects of that image."
        )
    labels = []
    for annotation, size_hw, new_hw in zip(annotations, sizes_hw, new_sizes_hw, strict=True):
        target = resize_target(prepare_detection_target(annotation, size_hw), new_hw)
        if settings["do_convert_annotations"]:
            target = normalize_target(target)
        labels.append(pad_target(target, canvas_hw))
    return labels
