"""Inputs of deformable attention for tests, and its formula, point by point."""

import itertools
import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from hf_detr.ops.compiled_attention import find_operators
from hf_detr.ops.multi_scale_deformable_attention import (
    attend_around_references,
    multi_scale_deformable_attention,
)


def starts(shapes: list[tuple[int, int]]) -> list[int]:
    """Index of each level's first token."""
    return [0, *itertools.accumulate(height * width for height, width in shapes)][:-1]


def random_inputs(
    shapes: list[tuple[int, int]],
    batch_size: int = 2,
    num_queries: int = 5,
    num_heads: int = 2,
    num_points: int = 3,
    width: int = 4,
    dtype: torch.dtype = torch.float64,
    seed: int = 0,
) -> list[Tensor]:
    """Value, locations (a fifth of them outside) and weights, all with gradients."""
    generator = torch.Generator().manual_seed(seed)
    points = (batch_size, num_queries, num_heads, len(shapes), num_points)
    tokens = sum(height * width for height, width in shapes)
    value = torch.randn(
        batch_size, tokens, num_heads, width, dtype=torch.float64, generator=generator
    )
    locations = torch.rand(*points, 2, dtype=torch.float64, generator=generator) * 1.4 - 0.2
    weights = torch.rand(points, dtype=torch.float64, generator=generator)
    weights = weights / weights.sum((-2, -1), keepdim=True)
    return [tensor.to(dtype).requires_grad_() for tensor in (value, locations, weights)]


def attend(kernel: str, shapes: list[tuple[int, int]], *tensors: Tensor) -> Tensor:
    """The operator, with computed starts of levels."""
    return run_on(kernel, multi_scale_deformable_attention, shapes, *tensors)


def attend_fused(kernel: str, shapes: list[tuple[int, int]], *tensors: Tensor) -> Tensor:
    """The same for the fused operator."""
    return run_on(kernel, attend_around_references, shapes, *tensors)


def run_on(
    kernel: str, operator: Callable[..., Tensor], shapes: list[tuple[int, int]], *tensors: Tensor
) -> Tensor:
    """An operator's result on CPU; with the kernel "cuda" it is the compiled one on a GPU."""
    if kernel == "cuda":
        tensors = [tensor.cuda() for tensor in tensors]
        return run_on("required", operator, shapes, *tensors).cpu()
    value, *points = tensors
    return operator(value, shapes, starts(shapes), *points, kernel)


def device_of(kernel: str) -> str:
    """The device of the compiled operator of this name."""
    return "cuda" if kernel == "cuda" else "cpu"


def require_compiled(kernel: str) -> str:
    """Name of the compiled operators in `torch.ops`; skips the test if they are unavailable."""
    namespace, reason = find_operators(device_of(kernel))
    if namespace is None:
        pytest.skip(f"the compiled operator is unavailable: {reason}")
    return namespace


def naive_sample(image: Tensor, x: float, y: float) -> Tensor:
    """Bilinear sample of `image` (h, w, C) at pixel (x, y); zeros outside."""
    sample = torch.zeros_like(image[0, 0])
    for column, line in itertools.product(
        (math.floor(x), math.floor(x) + 1), (math.floor(y), math.floor(y) + 1)
    ):
        if 0 <= line < image.shape[0] and 0 <= column < image.shape[1]:
            sample += (1 - abs(x - column)) * (1 - abs(y - line)) * image[line, column]
    return sample


def naive_attention(
    shapes: list[tuple[int, int]], value: Tensor, locations: Tensor, weights: Tensor
) -> Tensor:
    """Eq. 3 of the paper, point by point."""
    batch_size, num_queries, num_heads, num_levels, num_points = weights.shape
    output = value.new_zeros(batch_size, num_queries, num_heads, value.shape[-1])
    levels = value.split([height * width for height, width in shapes], dim=1)
    for b, q, m, level, k in itertools.product(*map(range, weights.shape)):
        height, width = shapes[level]
        image = levels[level][b, :, m].view(height, width, -1)
        x, y = locations[b, q, m, level, k].tolist()
        sample = naive_sample(image, x * width - 0.5, y * height - 0.5)
        output[b, q, m] += weights[b, q, m, level, k] * sample
    return output.flatten(2)
