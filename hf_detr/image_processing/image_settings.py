"""Settings of the image processor: checks, and the sizes of resized and padded images."""

import math
import numbers
from collections.abc import Iterable, Mapping
from typing import Any

from transformers.image_transforms import get_size_with_aspect_ratio
from transformers.image_utils import AnnotationFormat, SizeDict, get_image_size_for_max_height_width
from transformers.image_utils import pil_torch_interpolation_mapping as interpolations
from transformers.processing_utils import ImagesKwargs

from ..wording import warn_about_misspelt

DEFAULT_SHORTEST_EDGE = 800
DEFAULT_LONGEST_EDGE = 1333
SIZE_KEYS = (
    {"shortest_edge"},
    {"shortest_edge", "longest_edge"},
    {"height", "width"},
    {"max_height", "max_width"},
    {"longest_edge"},
)
# A form that transformers reads, too, but refuses when an image is resized.
OTHER_SIZE_KEYS = ({"min_pixels", "max_pixels"},)
FORMATS = ("coco_detection", "coco_panoptic")
SWITCHES = (
    *("do_resize", "do_rescale", "do_normalize", "do_pad", "do_convert_annotations"),
    *("do_convert_rgb", "do_center_crop", "disable_grouping"),
)
OLD_NAMES = ("max_size", "pad_and_return_pixel_mask")  # of transformers 4


class DetectionImageKwargs(ImagesKwargs, total=False):
    """Additional settings of `DetectionImageProcessor`; None uses the processor's own value."""

    format: str | AnnotationFormat | None
    do_convert_annotations: bool | None


def standard_size(size: Any, max_size: int | None = DEFAULT_LONGEST_EDGE) -> dict[str, int]:
    """Convert any form of `size` to a dict from keys to pixels.

    A longest edge alone is what images are enlarged to, too; it becomes both edges, which means the
    same, and which transformers can resize to.

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
    standard = {
        key: int(value) if isinstance(value, float) and value.is_integer() else value
        for key, value in given.items()
        if value is not None
    }
    if set(standard) not in SIZE_KEYS + OTHER_SIZE_KEYS:
        raise ValueError(f"size is {size!r}; expected one of {_size_forms()}, in pixels.")
    _check_positive_pixels(standard, "size")
    if set(standard) == {"longest_edge"}:
        standard["shortest_edge"] = standard["longest_edge"]
    return standard


def resized_hw(image_hw: tuple[int, int], size: SizeDict) -> tuple[int, int]:
    """Compute the height and width, at least 1, that an image of `image_hw` is resized to.

    Raises:
        ValueError: if the size is a form that transformers reads but can't resize to.
    """
    if size.shortest_edge:
        # Deviation: the official code computes a limited longest edge from the rounded shortest
        # edge and can exceed the limit. transformers, which published processor files were made
        # for, computes it from the exact one.
        height, width = get_size_with_aspect_ratio(image_hw, size.shortest_edge, size.longest_edge)
    elif size.max_height:
        height, width = get_image_size_for_max_height_width(
            image_hw, size.max_height, size.max_width
        )
    elif size.height:
        height, width = size.height, size.width
    else:
        raise ValueError(
            f"Images can't be resized to the size {dict(size)}; expected one of {_size_forms()}, "
            "or do_resize=False."
        )
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
    for key in SWITCHES:
        if not isinstance(settings.get(key), bool | None):
            raise ValueError(f"{key} is {settings[key]!r}; expected True or False.")
    _check_channels(settings)
    factor = settings["rescale_factor"]
    is_unused = factor is None and not settings["do_rescale"]
    if not is_unused and (not isinstance(factor, numbers.Real) or not 0 < factor < math.inf):
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


def number_of_channels(image_mean: Any, image_std: Any, do_convert_rgb: bool | None) -> int | None:
    """Return how many channels images must have.

    This is the length of `image_mean` and `image_std`. If they are one number for all channels, it
    is 3 with `do_convert_rgb`, and otherwise None: images keep their channels, as in transformers.
    """
    count = max(len(_as_sequence(values)) for values in (image_mean, image_std))
    return count if count > 1 else 3 if do_convert_rgb else None


def channel_values(values: Any, count: int) -> list[float]:
    """Return `image_mean` or `image_std` for each of `count` channels."""
    sequence = _as_sequence(values)
    return list(sequence) if len(sequence) > 1 else list(sequence) * count


def warn_about_misspelt_settings(
    names: Iterable[str], valid_kwargs: type[DetectionImageKwargs]
) -> None:
    """Warn about names that are similar to a setting; the base class accepts and keeps any name."""
    fields = (*valid_kwargs.__annotations__, *OLD_NAMES)
    warn_about_misspelt(names, fields, "The image processor", stacklevel=5)


def _check_channels(settings: Mapping[str, Any]) -> None:
    for key, lowest in (("image_mean", -math.inf), ("image_std", 0)):
        if settings[key] is None and not settings["do_normalize"]:
            continue
        values = _as_sequence(settings[key])
        is_valid = len(values) > 0 and all(
            isinstance(value, numbers.Real) and lowest < value < math.inf for value in values
        )
        if not is_valid:
            above = "" if lowest < 0 else " above 0"
            raise ValueError(
                f"{key} is {settings[key]!r}; expected finite numbers{above}, three for RGB, or "
                "one number for all channels."
            )
    mean, std = settings["image_mean"], settings["image_std"]
    counts = {len(_as_sequence(values)) for values in (mean, std)} - {1}
    if len(counts) > 1 or (settings.get("do_convert_rgb") and counts - {3}):
        raise ValueError(
            f"image_mean is {mean!r}, image_std is {std!r} and do_convert_rgb is "
            f"{settings.get('do_convert_rgb')}; expected the same number of values, three for RGB."
        )


def _as_sequence(values: Any) -> list[Any] | tuple[Any, ...]:
    return values if isinstance(values, (list, tuple)) else (values,)


def _size_forms() -> str:
    return " or ".join(str(sorted(keys)) for keys in SIZE_KEYS)


def _check_positive_pixels(size: Mapping[str, Any], name: str) -> None:
    for key, value in size.items():
        if isinstance(value, bool) or not isinstance(value, numbers.Integral) or value < 1:
            raise ValueError(f"{name}[{key!r}] is {value!r}; expected a positive integer.")
