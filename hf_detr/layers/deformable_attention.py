"""The attention module of Deformable DETR (arXiv 2010.04159, Eq. 3): predicts where to look."""

import math
from collections.abc import Sequence
from functools import partial

import torch
from torch import Tensor, nn
from transformers import initialization as init

from ..ops.compiled_attention import Kernel
from ..ops.multi_scale_deformable_attention import (
    Shapes,
    attend_around_references,
    locate,
    multi_scale_deformable_attention,
    normalize,
)
from .feature_pyramid import FeaturePyramid
from .initial_weights import draw_zeros, output_projection, starting
from .onednn import linear

SamplingPoints = tuple[Tensor, Tensor]  # weights (B, Q, M, L, K), locations (B, Q, M, L, K, 2)


def draw_offsets(layer: nn.Linear, layout: tuple[int, int, int]) -> None:
    """Zero weight; biases are a ring of directions in pixels, one a head.

    Point k starts k pixels away (along the longer axis) on every level. The layout is (M, L, K).
    """
    num_heads, _, num_points = layout
    nn.init.zeros_(layer.weight)
    device, dtype = layer.bias.device, layer.bias.dtype
    angles = torch.arange(num_heads, device=device) * (2 * math.pi / num_heads)
    ring = torch.stack([angles.cos(), angles.sin()], dim=-1)
    ring = ring / ring.abs().amax(dim=-1, keepdim=True)
    distances = torch.arange(1, num_points + 1, device=device)
    offsets = ring[:, None, None] * distances[:, None]  # (M, 1, K, 2)
    init.copy_(layer.bias, offsets.expand(*layout, 2).flatten().to(dtype))


class MultiScaleDeformableAttention(nn.Module):
    """Attention of queries to a few points around their references, on all levels.

    Args:
        d_model: width D of queries, values and output.
        num_heads: M.
        num_levels: L.
        num_points: K, per head and level.
        kernel: which implementation attends, see `multi_scale_deformable_attention`.

    Raises:
        ValueError: if the heads can't share `d_model` equally.
    """

    def __init__(
        self,
        d_model: int,
        num_heads: int,
        num_levels: int,
        num_points: int,
        kernel: Kernel = "auto",
    ) -> None:
        super().__init__()
        if d_model % num_heads:
            raise ValueError(f"d_model {d_model} must be divisible by num_heads {num_heads}")
        self.num_heads = num_heads
        self.num_levels = num_levels
        self.num_points = num_points
        self.kernel = kernel
        layout = (num_heads, num_levels, num_points)
        self.sampling_offsets = starting(
            nn.Linear(d_model, 2 * math.prod(layout)), partial(draw_offsets, layout=layout)
        )
        self.attention_weights = starting(nn.Linear(d_model, math.prod(layout)), draw_zeros)
        self.value_proj = output_projection(d_model, d_model)
        self.output_proj = output_projection(d_model, d_model)

    def forward(
        self,
        query: Tensor,
        value_states: Tensor,
        mask: Tensor | None,
        reference_points: Tensor,
        spatial_shapes: Tensor | Shapes,
        level_start_index: Tensor | Sequence[int],
        return_weights: bool = False,
    ) -> tuple[Tensor, SamplingPoints | None]:
        """Attend from `query` to `value_states`.

        Args:
            query: (B, Q, D), positions added.
            value_states: (B, S, D), the levels one after another.
            mask: (B, S), True on real pixels, what is sampled elsewhere is zero; None: all real.
            reference_points: (B, Q, L, 2) as (x, y) or (B, Q, L, 4) as (cx, cy, w, h), in [0, 1]
                of each level, padding included.
            spatial_shapes: (L, 2) as (h, w) of each level.
            level_start_index: (L,) where each level starts in S.
            return_weights: also return attention weights and sampling locations.

        Returns:
            The output (B, Q, D), and attention weights (B, Q, M, L, K) with sampling locations
            (B, Q, M, L, K, 2) as (x, y) if asked for, else None.

        Raises:
            ValueError: for shapes that don't fit each other.
        """
        value = linear(self.value_proj, value_states)
        if mask is not None:
            value.masked_fill_(~mask[..., None], 0)  # a new tensor that isn't used elsewhere
        value = value.unflatten(-1, (self.num_heads, -1))  # (B, S, M, C)
        layout = (self.num_heads, self.num_levels, self.num_points)
        offsets = linear(self.sampling_offsets, query).unflatten(-1, (*layout, 2))
        logits = linear(self.attention_weights, query).unflatten(-1, layout)  # (B, Q, M, L, K)
        geometry = (spatial_shapes, level_start_index)
        if not return_weights:
            output = attend_around_references(
                value, *geometry, reference_points, offsets, logits, self.kernel
            )
            return linear(self.output_proj, output), None
        weights, locations = normalize(logits), locate(reference_points, offsets, spatial_shapes)
        output = multi_scale_deformable_attention(value, *geometry, locations, weights, self.kernel)
        return linear(self.output_proj, output), (weights, locations)


class MultiScaleDeformableSelfAttention(MultiScaleDeformableAttention):
    """Every token of the pyramid looks around its own place, on all levels."""

    def forward(
        self,
        hidden_states: Tensor,
        position_embeddings: Tensor,
        pyramid: FeaturePyramid,
        return_weights: bool,
    ) -> tuple[Tensor, SamplingPoints | None]:
        """Attend within `hidden_states` (B, S, D)."""
        return super().forward(
            hidden_states + position_embeddings,
            hidden_states,
            pyramid.mask,
            pyramid.token_references,
            pyramid.spatial_shapes,
            pyramid.level_start_index,
            return_weights,
        )
