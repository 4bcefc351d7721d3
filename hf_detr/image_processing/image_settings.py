"""Settings of the image processor: checks, and the sizes of resized and padded images."""

import math
import numbers
from collections.abc import Mapping
from typing import Any

from transformers.image_transforms import get_size_with_aspect_ratio
from transformers.image_utils import AnnotationFormat, SizeDict, get_image_size_for_max_height_width
from transformers.image_utils import pil_torch_interpolation_mapping as interpolations
from transformers.processing_utils import ImagesKwargs

DEFAULT_SHORTEST_EDGE = 800
DEFAULT_LONGEST_EDGE = 1333
SIZE_KEYS = (
    {"shortest_edge"},
    {"shortest_edge", "longest_edge"},
    {"height", "width"},
    {"max_height", "max_width"},
)
FORMATS = ("coco_detection", "coco_panoptic")


class DetectionImageKwargs(ImagesKwargs, total=False):
    """Additional settings of `DetectionImageProcessor`; None uses the processor's own value."""

    format: str | AnnotationFormat | None
    do_convert_annotations: bool | None


def standard_size(size: Any, max_size: int | None = DEFAULT_LONGEST_EDGE) -> dict[str, int]:
    """Convert any form of `size` to a dict with the keys of one of `SIZE_KEYS`, in pixels.

    Args:
        size: a dict, an int (the shortest edge), a pair (height, width), or None for the default.
        max_size: the longest edge if `size` is an int or None; None is no limit.

    Raises:
        ValueError: if the keys or the numbers are invalid.
    """
    if size is None:
        size = DEFAULT_SHORTEST_EDGE
    if isinstance(size, numbers.Integral):
        size = {"shortest_edge": size, "longest_edge": max_size}
    elif isinstance(size, (list, tuple)) and len(size) == 2:
        size = {"height": size[0], "width": size[1]}
    given = dict(size) if isinstance(size, (Mapping, SizeDict)) else {}
    standard = {key: value for key, value in given.items() if value is not None}
    if set(standard) not in SIZE_KEYS:
        forms = " or ".join(str(sorted(keys)) for keys in SIZE_KEYS)
        raise ValueError(f"size is {size!r}; expected one of {forms}, in pixels.")
    _check_positive_pixels(standard, "size")
    return standard


def resized_hw(image_hw: tuple[int, int], size: SizeDict) -> tuple[int, int]:
    """Compute the height and width, at least 1, that an image of `image_hw` is resized to."""
    if size.shortest_edge:
        # Deviation: the official code computes a limited longest edge from the rounded shortest
        # edge and can exceed the limit. transformers, which published processor files were made
        # for, computes it from the exact one.
        height, width = get_size_with_aspect_ratio(image_hw, size.shortest_edge, size.longest_edge)
    elif size.max_height:
        height, width = get_image_size_for_max_height_width(
            image_hw, size.max_height, size.max_width
        )
    else:
        height, width = size.height, size.width
    return max(height, 1), max(width, 1)


def padded_hw(
    sizes_hw: list[tuple[int, int]], do_pad: bool, pad_size: SizeDict | None
) -> tuple[int, int]:
    """Compute the height and width in pixels that the images of a batch are padded to.

    Raises:
        ValueError: if images of different sizes aren't padded, or don't fit into `pad_size`.
    """
    if not do_pad:
        if len(set(sizes_hw)) > 1:
            raise ValueError(
                f"The images have different sizes (height, width) {sorted(set(sizes_hw))} after "
                "resizing and do_pad is False; set do_pad=True, resize to one "
                "size={'height': ..., 'width': ...}, or process them one by one."
            )
        return sizes_hw[0]
    if pad_size is None:
        heights, widths = zip(*sizes_hw, strict=True)
        return max(heights), max(widths)
    for index, (height, width) in enumerate(sizes_hw):
        if height > pad_size.height or width > pad_size.width:
            raise ValueError(
                f"image {index} is {height} x {width} (height x width) after resizing and doesn't "
                f"fit into pad_size {pad_size.height} x {pad_size.width}; increase pad_size or "
                "decrease size."
            )
    return pad_size.height, pad_size.width


def check_settings(settings: Mapping[str, Any]) -> None:
    """Check settings.

    Raises:
        ValueError: if a setting is invalid.
    """
    for key, lowest in (("image_mean", -math.inf), ("image_std", 0)):
        values = settings[key]
        if not _are_three_numbers_above(values, lowest):
            above = "" if lowest < 0 else " above 0"
            raise ValueError(f"{key} is {values!r}; expected three finite numbers{above} for RGB.")
    factor = settings["rescale_factor"]
    if not isinstance(factor, numbers.Real) or not 0 < factor < math.inf:
        raise ValueError(
            f"rescale_factor is {factor!r}; expected a positive number, such as 1/255."
        )
    if settings["pad_size"] is not None:
        pad_size = dict(settings["pad_size"])
        if set(pad_size) != {"height", "width"}:
            raise ValueError(f"pad_size is {pad_size}; expected {{'height', 'width'}} in pixels.")
        _check_positive_pixels(pad_size, "pad_size")
    if settings["format"] not in FORMATS:
        raise ValueError(f"format is {settings['format']!r}; expected one of {FORMATS}.")
    resample = settings["resample"]
    if resample not in interpolations and resample not in interpolations.values():
        raise ValueError(
            f"resample is {resample!r}; expected a PIL.Image.Resampling, such as 2 (bilinear)."
        )
    if settings.get("do_center_crop"):
        raise ValueError("do_center_crop is True, but cropping is not supported; remove it.")
    data_format = settings.get("data_format")
    if getattr(data_format, "value", data_format) not in (None, "channels_first"):
        raise ValueError(f"data_format is {data_format!r}; only 'channels_first' is supported.")


def _are_three_numbers_above(values: Any, lowest: float) -> bool:
    return (
        isinstance(values, (list, tuple))
        and len(values) == 3
        and all(isinstance(value, numbers.Real) and lowest < value < math.inf for value in values)
    )


def _check_positive_pixels(size: Mapping[str, Any], name: str) -> None:
    for key, value in size.items():
        if isinstance(value, bool) or not isinstance(value, numbers.Integral) or value < 1:
            raise ValueError(f"{name}[{key!r}] is {value!r}; expected a positive integer.")
