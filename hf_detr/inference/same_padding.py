"""TensorFlow's "same" padding, which depends on the size, in graphs for images of any size.

timm's layers with it are those of models named `tf_…`. Their formula for the size of an output
repeats that for its input; from layer to layer it would double in length.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional as F

CONVOLUTION = "Conv2dSame"


@contextmanager
def same_padding_of_any_size(model: nn.Module) -> Iterator[None]:
    """Within it, timm's convolutions with "same" padding can be exported with free sizes.

    Raises:
        ValueError: for other layers with "same" padding.
    """
    padded = [module for module in model.modules() if type(module).__name__.endswith("Same")]
    if others := sorted({type(one).__name__ for one in padded if not _can_be_free(one)}):
        raise ValueError(
            f"the backbone's padding depends on the size ({', '.join(others)}), so height and "
            "width can't be free; fix them (fixed_hw, or --size on the command line), pad images "
            "to that size and pass the padding in pixel_mask."
        )
    for convolution in padded:
        convolution.forward = partial(convolve, convolution)
    try:
        yield
    finally:
        for convolution in padded:
            del convolution.forward


def convolve(convolution: nn.Conv2d, feature_map: Tensor) -> Tensor:
    """What timm's layer does with a map (B, C, H, W)."""
    for axis in (-2, -1):
        reach = (convolution.kernel_size[axis] - 1) * convolution.dilation[axis] + 1
        feature_map = pad(feature_map, axis, reach, convolution.stride[axis])
    return F.conv2d(
        feature_map,
        convolution.weight,
        convolution.bias,
        convolution.stride,
        dilation=convolution.dilation,
        groups=convolution.groups,
    )


def pad(feature_map: Tensor, axis: int, reach: int, stride: int) -> Tensor:
    """Pad one axis to the length of its windows of `reach`, one for every `stride` pixels.

    The wanted pixels are selected from the largest possible padding: then the size of the result is
    that of the windows, and doesn't depend on how much was added.
    """
    size = feature_map.shape[axis]
    length = ((size + stride - 1) // stride - 1) * stride + reach
    before, after = (reach - 1) // 2, reach // 2  # at most
    amounts = (before, after) if axis == -1 else (0, 0, before, after)
    first = before - (length - size) // 2
    pixels = torch.arange(length, device=feature_map.device) + first
    return F.pad(feature_map, amounts).index_select(axis, pixels)


def _can_be_free(module: nn.Module) -> bool:
    if type(module).__name__ != CONVOLUTION:
        return False
    axes = zip(module.kernel_size, module.dilation, module.stride, strict=True)
    return all((kernel - 1) * dilation + 1 >= stride for kernel, dilation, stride in axes)
