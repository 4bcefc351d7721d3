"""Conversion of an image's pixels to the types, ranges and channels of `read_images`."""

import warnings

import numpy as np
import torch
from torch import Tensor

# 16 bits of which only the lowest 12 are used become at most 15 of 255.
HIGHEST_OF_12_BITS, ITS_BYTE = 4095, 15


def to_uint8_or_float32(pixels: Tensor, name: str) -> Tensor:
    """Convert pixels of any real type; 16-bit integers are scaled to 8 bits."""
    if pixels.dtype == torch.uint8:
        return pixels
    if pixels.dtype == torch.bool:
        return pixels.to(torch.uint8) * 255
    if pixels.dtype == torch.uint16:
        wide = pixels.to(torch.int32)
        if 0 < wide.max() <= HIGHEST_OF_12_BITS:
            warn_about_unused_bits()
        return ((wide + 128) // 257).to(torch.uint8)  # 65535 = 257 * 255
    if pixels.is_floating_point():
        return pixels.to(torch.float32)
    if pixels.is_complex():
        raise TypeError(f"{name} has dtype {pixels.dtype}; expected integers, floats or booleans.")
    low, high = (int(value) for value in pixels.to(torch.int64).aminmax())
    if low < 0 or high > 255:
        raise ValueError(
            f"{name} has dtype {pixels.dtype} and values {low} … {high}; expected 0 … 255. "
            "Convert 16-bit images to uint16."
        )
    return pixels.to(torch.uint8)


def warn_about_unused_bits() -> None:
    """Warn about an image of 16 bits that is nearly black, because it has fewer bits."""
    # The same text for all images, so that Python shows it once.
    warnings.warn(
        "An image of 16 bits has no value above 4095 of 65535, so it is nearly black. If it is an "
        "image of 10 or 12 bits, multiply its pixels by 64 or 16 before they are read, or save it "
        "with 8 bits.",
        stacklevel=2,
    )


def with_channels(pixels: Tensor, num_channels: int | None, blend_alpha: bool, name: str) -> Tensor:
    """Convert (C, H, W) to RGB if `num_channels` is 3; otherwise the channels stay as they are."""
    if num_channels != 3:
        return pixels
    if pixels.shape[0] == 1:
        return pixels.expand(3, -1, -1)
    if pixels.shape[0] == 4 and blend_alpha:
        return _blend_onto_white(pixels, name)
    return pixels[:3]


def checked_floats(pixels: Tensor, unit_floats: bool, check_range: bool, name: str) -> Tensor:
    """Check floats as `read_images` describes, and scale 0 … 255 to 0 … 1 if `unit_floats`."""
    low, high = (float(value) for value in pixels.aminmax())
    if not (np.isfinite(low) and np.isfinite(high)):  # aminmax propagates NaN
        raise ValueError(f"{name} has NaN or infinite pixels; expected 0 … 1 or 0 … 255.")
    if not check_range:
        return pixels
    if low < 0 or high > 255:
        raise ValueError(
            f"{name} is float with values {low:.6g} … {high:.6g}; expected 0 … 1 or 0 … 255. For a "
            "normalized image, pass do_rescale=False and do_normalize=False."
        )
    if 1 < high < 2 and unit_floats:
        raise ValueError(
            f"{name} is float with values {low:.6g} … {high:.6g}, which is ambiguous; clip it "
            "to 0 … 1 or convert it to uint8."
        )
    return pixels / 255 if high > 1 and unit_floats else pixels


def _blend_onto_white(pixels: Tensor, name: str) -> Tensor:
    """Blend (4, H, W) to (3, H, W); floats must be in 0 … 1."""
    white = 255 if pixels.dtype == torch.uint8 else 1
    if pixels.is_floating_point() and not (pixels.min() >= 0 and pixels.max() <= 1):
        raise ValueError(f"{name} is float RGBA; to blend alpha, its values must be in 0 … 1.")
    color, alpha = pixels[:3].to(torch.float32), pixels[3:].to(torch.float32) / white
    blended = color * alpha + white * (1 - alpha)
    return blended.round().to(torch.uint8) if pixels.dtype == torch.uint8 else blended
