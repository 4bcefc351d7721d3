"""Feature maps flattened into one sequence of tokens, with what is known of each token."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F


@dataclass(frozen=True)
class FeaturePyramid:
    """Geometry of a flattened pyramid; S = sum of h_l * w_l tokens.

    Attributes:
        mask: (B, S), True on tokens with real pixels; None if all are.
        spatial_shapes: (h_l, w_l) of each level, finest first.
    """

    mask: Tensor | None
    spatial_shapes: list[tuple[int, int]]


def build_pyramid(
    feature_maps: list[Tensor], pixel_mask: Tensor | None, position_encoding: nn.Module
) -> tuple[Tensor, Tensor, FeaturePyramid]:
    """Flatten projected feature maps and encode the position of every token.

    Args:
        feature_maps: per level (B, D, h_l, w_l).
        pixel_mask: (B, H, W), 1 on real pixels; None if all are.
        position_encoding: turns a mask (B, h, w) into (B, D, h, w).

    Returns:
        Tokens (B, S, D), their position embeddings (B, S, D) in the same dtype, and the geometry.
    """
    masks = [resize_mask(pixel_mask, feature_map) for feature_map in feature_maps]
    hidden_states = torch.cat([_flatten(feature_map) for feature_map in feature_maps], dim=1)
    position_embeddings = torch.cat([_flatten(position_encoding(m)) for m in masks], dim=1)
    mask = torch.cat([m.flatten(1) for m in masks], dim=1)  # (B, S)
    pyramid = FeaturePyramid(
        mask=None if pixel_mask is None else mask,
        spatial_shapes=[tuple(feature_map.shape[-2:]) for feature_map in feature_maps],
    )
    return hidden_states, position_embeddings.to(hidden_states.dtype), pyramid


def resize_mask(pixel_mask: Tensor | None, feature_map: Tensor) -> Tensor:
    """Mask (B, h, w), True on real cells, for a feature map (B, D, h, w); nearest pixel."""
    batch_size, _, height, width = feature_map.shape
    if pixel_mask is None:
        return feature_map.new_ones((batch_size, height, width), dtype=torch.bool)
    return F.interpolate(pixel_mask[:, None].float(), size=(height, width))[:, 0].bool()


def _flatten(feature_map: Tensor) -> Tensor:
    """(B, D, h, w) -> (B, h * w, D)."""
    return feature_map.flatten(2).transpose(1, 2)
