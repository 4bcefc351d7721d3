"""Layers with which `kernels` replaces those of a model."""

from __future__ import annotations

from torch import Tensor, nn

from . import deformable_attention


class MultiScaleDeformableAttention(nn.Module):
    """The layer of this name in transformers: Deformable DETR, Grounding DINO, RT-DETR, ..."""

    can_torch_compile: bool = True

    def forward(
        self,
        value: Tensor,
        value_spatial_shapes: Tensor,
        value_spatial_shapes_list: list[tuple],
        level_start_index: Tensor,
        sampling_locations: Tensor,
        attention_weights: Tensor,
        im2col_step: int,
    ) -> Tensor:
        """Call `deformable_attention`; tensors of shapes and starts and the step aren't used."""
        return deformable_attention(
            value, value_spatial_shapes_list, sampling_locations, attention_weights
        )
