"""Batching of images of different sizes on a padded canvas."""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers.image_utils import SizeDict

from .image_settings import channel_values

# Number of rows that are processed at once; 100 rows of usual width fit into a core's cache.
BLOCK = 100


def make_pixel_values(
    images: list[Tensor],
    new_sizes_hw: list[tuple[int, int]],
    canvas_hw: tuple[int, int],
    settings: Mapping[str, Any],
    resize: Callable[..., Tensor],
) -> Tensor:
    """Resize, rescale, normalize and pad images.

    Args:
        images: (C, H, W), read by `read_images`.
        new_sizes_hw: height and width that each image is resized to.
        canvas_hw: height and width of the result.
        settings: those of the image processor.
        resize: its method that resizes images (n, C, H, W).

    Returns:
        (B, C, H, W)
    """
    if settings["do_rescale"] or settings["do_normalize"] or len({i.dtype for i in images}) > 1:
        dtype = torch.float32
    else:
        dtype = images[0].dtype
    shape = (len(images), _number_of_channels(images), *canvas_hw)
    canvas = empty_canvas(shape, dtype, images[0].device)
    for indices in group_by_shape(images, settings["disable_grouping"]):
        height, width = new_sizes_hw[indices[0]]
        group = [images[index] for index in indices]
        if settings["do_resize"]:
            size = SizeDict(height=height, width=width)
            group = resize(stack_images(group), size=size, resample=settings["resample"])
        for index, image in zip(indices, group, strict=True):
            write_pixels(image, canvas[index, :, :height, :width], settings)
            zero_margins(canvas[index], height, width)
    return canvas


def group_by_shape(images: list[Tensor], disable_grouping: bool | None) -> list[list[int]]:
    """Group the indices of images that are resized as one tensor.

    If `disable_grouping` is None, images on the CPU aren't grouped: there, processing images one by
    one is faster, because each stays in the cache.
    """
    if disable_grouping is None:
        disable_grouping = images[0].device.type == "cpu"
    groups: dict[Any, list[int]] = {}
    for index, image in enumerate(images):
        key = index if disable_grouping else (image.shape, image.dtype)
        groups.setdefault(key, []).append(index)
    return list(groups.values())


def stack_images(images: list[Tensor]) -> Tensor:
    """Stack images (n, C, H, W); uint8 on the CPU in channels-last memory for fast resizing."""
    if images[0].dtype != torch.uint8 or images[0].device.type != "cpu":
        return torch.stack(images)
    if len(images) == 1 and images[0].permute(1, 2, 0).is_contiguous():  # as PIL's are
        return images[0][None]
    return torch.stack([image.permute(1, 2, 0) for image in images]).permute(0, 3, 1, 2)


def empty_canvas(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
    """Make an uninitialized tensor."""
    if device.type != "cpu":
        return torch.empty(shape, dtype=dtype, device=device)
    # NumPy, unlike torch, requests huge pages from Linux; a large batch is four times faster.
    return torch.from_numpy(np.empty(shape, torch.empty(0, dtype=dtype).numpy().dtype))


def write_pixels(image: Tensor, canvas: Tensor, settings: Mapping[str, Any]) -> None:
    """Rescale and normalize an image (C, H, W) into its region (C, H, W) of the canvas."""
    factor = 1.0
    if settings["do_rescale"]:
        # Floats were scaled to 0 … 1 when they were read.
        factor = settings["rescale_factor"] * (255 if image.is_floating_point() else 1)
    count = len(image)
    scales, shifts = [factor] * count, [0.0] * count
    if settings["do_normalize"]:
        # Deviation: (pixel - mean) / std is one multiply-add, which is faster than transformers'
        # subtraction and division and differs by rounding (3e-7).
        means, deviations = (
            channel_values(settings[key], count) for key in ("image_mean", "image_std")
        )
        scales = [factor / deviation for deviation in deviations]
        shifts = [-mean / deviation for mean, deviation in zip(means, deviations, strict=True)]
    block = BLOCK if canvas.device.type == "cpu" else len(image[0])
    for source, target, scale, shift in zip(image, canvas, scales, shifts, strict=True):
        # Unlike torch.tensor, this doesn't wait for a GPU.
        offset = torch.full((), shift, dtype=canvas.dtype, device=canvas.device)
        for pixels, rows in zip(source.split(block), target.split(block), strict=True):
            rows.copy_(pixels)
            if settings["do_rescale"] or settings["do_normalize"]:
                torch.add(offset, rows, alpha=scale, out=rows)


def make_pixel_mask(
    sizes_hw: list[tuple[int, int]], canvas_hw: tuple[int, int], device: torch.device
) -> Tensor:
    """Make the mask (B, H, W) int64, 1 for real pixels and 0 for padding."""
    mask = empty_canvas((len(sizes_hw), *canvas_hw), torch.int64, device).fill_(1)
    for index, (height, width) in enumerate(sizes_hw):
        zero_margins(mask[index], height, width)
    return mask


def zero_margins(canvas: Tensor, height: int, width: int) -> None:
    """Zero the padding of a canvas (..., H, W) below `height` and right of `width`."""
    # Zeroing the whole canvas first would write its memory twice.
    canvas[..., height:, :].zero_()
    canvas[..., :height, width:].zero_()


def _number_of_channels(images: list[Tensor]) -> int:
    counts = sorted({len(image) for image in images})
    if len(counts) > 1:
        raise ValueError(
            f"The images of a batch have {counts} channels; set do_convert_rgb=True, or image_mean "
            "and image_std to a number per channel."
        )
    return counts[0]
