"""Inputs of the operator, as Deformable DETR's layers have them at 800 x 1066."""

import itertools
import math
from typing import NamedTuple

import torch
from torch import Tensor

Shapes = list[tuple[int, int]]

DEVICE = "cuda"
SHAPES = [(100, 134), (50, 67), (25, 34), (13, 17)]
QUICK_SHAPES = [(25, 34), (13, 17), (7, 9), (4, 5)]
NUM_HEADS, HEAD_WIDTH, NUM_POINTS, NUM_DECODER_QUERIES = 8, 32, 4, 300


class Case(NamedTuple):
    """One call: inputs in the order value, points, weights[, references], and how to read them."""

    title: str
    shapes: Shapes
    inputs: tuple[Tensor, ...]
    width: int

    @property
    def is_fused(self) -> bool:
        return len(self.inputs) == 4


def starts_of(shapes: Shapes) -> list[int]:
    return [0, *itertools.accumulate(height * width for height, width in shapes)][:-1]


def pixel_centres(shapes: Shapes) -> Tensor:
    """(S, 2) as (x, y) in [0, 1]."""
    levels = []
    for height, width in shapes:
        y, x = torch.meshgrid(
            (torch.arange(height) + 0.5) / height,
            (torch.arange(width) + 0.5) / width,
            indexing="ij",
        )
        levels.append(torch.stack([x, y], dim=-1).flatten(0, 1))
    return torch.cat(levels)


def make_case(
    title: str,
    shapes: Shapes,
    dtype: torch.dtype,
    *,
    is_fused: bool,
    batch: int = 1,
    queries: int | None = None,
    heads: int = NUM_HEADS,
    width: int = HEAD_WIDTH,
    points: int = NUM_POINTS,
    coordinates: int = 2,
) -> Case:
    """Queries at all pixels, or at random places; samples a few pixels around them."""
    torch.manual_seed(0)
    references = pixel_centres(shapes)
    value = torch.randn(batch, len(references), heads, width)
    # Slightly off the centres: otherwise offsets of few bits would put many samples on pixels,
    # where gradients jump.
    references = references + 0.002 * torch.rand(len(references), 2)
    if queries is not None:
        references = torch.rand(queries, 2)
    angles = torch.arange(heads) * (2 * math.pi / heads)
    ring = torch.stack([angles.cos(), angles.sin()], dim=-1)
    ring = ring / ring.abs().amax(dim=-1, keepdim=True)
    steps = ring[:, None, None] * torch.arange(1, points + 1)[:, None]  # (M, 1, K, 2)
    offsets = steps + 0.3 * torch.randn(batch, len(references), heads, len(shapes), points, 2)
    logits = torch.randn(offsets.shape[:-1])
    references = references[:, None].expand(batch, -1, len(shapes), 2)  # (B, Q, L, 2)
    if is_fused:
        if coordinates == 4:
            references = torch.cat([references, torch.full_like(references, 0.2)], dim=-1)
        tensors = [value, offsets, logits]
    else:
        sizes = torch.tensor([(width, height) for height, width in shapes])[:, None]
        locations = references[:, :, None, :, None] + offsets / sizes
        tensors = [value, locations, logits.flatten(3).softmax(-1).view(logits.shape)]
    tensors = [tensor.to(DEVICE, dtype) for tensor in tensors]
    if is_fused:
        exact = torch.float64 if dtype == torch.float64 else torch.float32
        tensors.append(references.to(DEVICE, exact))
    inputs = tuple(tensor.contiguous().requires_grad_() for tensor in tensors)
    return Case(title, shapes, inputs, width)
