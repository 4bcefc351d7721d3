"""Images of different sizes on one padded canvas."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

# Rows that are finished at once; a hundred, of usual widths, stay in a core's cache meanwhile.
BLOCK = 100


def group_by_shape(images: list[Tensor], disable_grouping: bool | None) -> list[list[int]]:
    """Indices of images that are resized as one tensor; if None says neither, not on the CPU.

    There one image after the other is faster: each is finished while it lies in the cache.
    """
    if disable_grouping is None:
        disable_grouping = images[0].device.type == "cpu"
    groups: dict[Any, list[int]] = {}
    for index, image in enumerate(images):
        key = index if disable_grouping else (image.shape, image.dtype)
        groups.setdefault(key, []).append(index)
    return list(groups.values())


def stack_images(images: list[Tensor]) -> Tensor:
    """(n, 3, H, W); bytes on the CPU in channels-last memory, where resizing is vectorised."""
    if images[0].dtype != torch.uint8 or images[0].device.type != "cpu":
        return torch.stack(images)
    if len(images) == 1 and images[0].permute(1, 2, 0).is_contiguous():  # as PIL's are
        return images[0][None]
    return torch.stack([image.permute(1, 2, 0) for image in images]).permute(0, 3, 1, 2)


def empty_canvas(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
    """A tensor of any content."""
    if device.type != "cpu":
        return torch.empty(shape, dtype=dtype, device=device)
    # NumPy asks Linux for huge pages, torch doesn't: a large batch is had in a quarter of the time.
    return torch.from_numpy(np.empty(shape, torch.empty(0, dtype=dtype).numpy().dtype))


def write_pixels(image: Tensor, canvas: Tensor, settings: Mapping[str, Any]) -> None:
    """Rescale and normalise an image (3, H, W) into its place (3, H, W) on the canvas."""
    factor = 1.0
    if settings["do_rescale"]:
        # Floats were brought to 0 … 1 when they were read, a 255th of the bytes they stand for.
        factor = settings["rescale_factor"] * (255 if image.is_floating_point() else 1)
    scales, shifts = [factor] * 3, [0.0] * 3
    if settings["do_normalize"]:
        # Deviation: (pixel - mean) / std as one multiply-add, which differs from transformers'
        # subtraction and division by rounding, 3e-7, and takes less time.
        means, deviations = settings["image_mean"], settings["image_std"]
        scales = [factor / deviation for deviation in deviations]
        shifts = [-mean / deviation for mean, deviation in zip(means, deviations, strict=True)]
    block = BLOCK if canvas.device.type == "cpu" else len(image[0])
    for source, target, scale, shift in zip(image, canvas, scales, shifts, strict=True):
        offset = torch.tensor(shift, dtype=canvas.dtype, device=canvas.device)
        for pixels, place in zip(source.split(block), target.split(block), strict=True):
            place.copy_(pixels)
            if settings["do_rescale"] or settings["do_normalize"]:
                torch.add(offset, place, alpha=scale, out=place)


def make_pixel_mask(
    sizes_hw: list[tuple[int, int]], canvas_hw: tuple[int, int], device: torch.device
) -> Tensor:
    """(B, H, W) int64, 1 on real pixels and 0 on padding."""
    mask = empty_canvas((len(sizes_hw), *canvas_hw), torch.int64, device).fill_(1)
    for index, (height, width) in enumerate(sizes_hw):
        zero_margins(mask[index], height, width)
    return mask


def zero_margins(canvas: Tensor, height: int, width: int) -> None:
    """Zero what lies below and right of the top left `height` x `width` of a canvas (..., H, W)."""
    # Writing the margins alone touches large memory once; zeroing it all first would be twice.
    canvas[..., height:, :].zero_()
    canvas[..., :height, width:].zero_()
