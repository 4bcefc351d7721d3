"""Feature maps flattened into one sequence of tokens, with the geometry of each token."""

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F


@dataclass(frozen=True)
class FeaturePyramid:
    """Geometry of a flattened pyramid; S = sum of h_l * w_l tokens.

    Attributes:
        mask: (B, S), True on tokens with real pixels; None if all are.
        spatial_shapes: (h_l, w_l) of each level, finest first.
        valid_ratios: (B, L, 2) as (w, h), the part of each level that real pixels cover, in
            [0, 1], float32.
    """

    mask: Tensor | None
    spatial_shapes: list[tuple[int, int]]
    valid_ratios: Tensor

    def to(self, device: torch.device | str, **kwargs: Any) -> "FeaturePyramid":
        """The same on another device; Accelerate calls it where layers are on several."""
        mask = None if self.mask is None else self.mask.to(device, **kwargs)
        return replace(self, mask=mask, valid_ratios=self.valid_ratios.to(device, **kwargs))

    @property
    def level_start_index(self) -> list[int]:
        """Index of each level's first token."""
        sizes = [height * width for height, width in self.spatial_shapes]
        return [sum(sizes[:level]) for level in range(len(sizes))]


def check_images(pixel_values: Tensor, pixel_mask: Tensor | None, num_channels: int) -> None:
    """Refuse a batch whose shapes don't fit.

    Raises:
        ValueError: naming the shape that was got and the one that was expected.
    """
    if pixel_values.ndim != 4 or pixel_values.shape[1] != num_channels:
        raise ValueError(
            f"pixel_values has shape {tuple(pixel_values.shape)}; expected (batch, "
            f"{num_channels}, height, width), as the image processor returns it."
        )
    batch_size, _, height, width = pixel_values.shape
    if pixel_mask is not None and pixel_mask.shape != (batch_size, height, width):
        raise ValueError(
            f"pixel_mask has shape {tuple(pixel_mask.shape)}; expected (batch, height, width) = "
            f"{(batch_size, height, width)}, 1 on real pixels and 0 on padding."
        )


def build_pyramid(
    feature_maps: list[Tensor],
    pixel_mask: Tensor | None,
    position_encoding: nn.Module,
    level_embed: Tensor | None = None,
) -> tuple[Tensor, Tensor, FeaturePyramid]:
    """Flatten projected feature maps and encode the position of every token.

    Args:
        feature_maps: per level (B, D, h_l, w_l).
        pixel_mask: (B, H, W), 1 on real pixels; None if all are.
        position_encoding: turns a mask (B, h, w), and whether all of it is real, into
            (B, D, h, w).
        level_embed: (L, D), added to the positions of each level.

    Returns:
        Tokens (B, S, D), their position embeddings (B, S, D) in the same dtype, and the geometry.
    """
    masks = [resize_mask(pixel_mask, feature_map) for feature_map in feature_maps]
    hidden_states = torch.cat([_flatten(feature_map) for feature_map in feature_maps], dim=1)
    all_real = pixel_mask is None
    positions = [_flatten(position_encoding(m, all_real)).to(hidden_states.dtype) for m in masks]
    if level_embed is not None:
        positions = [p + embed for p, embed in zip(positions, level_embed, strict=True)]
    pyramid = FeaturePyramid(
        mask=None if all_real else torch.cat([m.flatten(1) for m in masks], dim=1),
        spatial_shapes=[tuple(feature_map.shape[-2:]) for feature_map in feature_maps],
        valid_ratios=torch.stack([_valid_ratio(m) for m in masks], dim=1),
    )
    return hidden_states, torch.cat(positions, dim=1), pyramid


def token_centers(pyramid: FeaturePyramid) -> Tensor:
    """Centres (B, S, 2) of all tokens as (x, y) relative to the real image; beyond 1 on padding."""
    ratios = pyramid.valid_ratios
    centers = []
    for level, (height, width) in enumerate(pyramid.spatial_shapes):
        y = (torch.arange(height, device=ratios.device) + 0.5) / height
        x = (torch.arange(width, device=ratios.device) + 0.5) / width
        grid = torch.stack(torch.meshgrid(x, y, indexing="xy"), dim=-1)  # (h, w, 2)
        centers.append(grid.flatten(0, 1) / ratios[:, level, None])
    return torch.cat(centers, dim=1)


def _valid_ratio(mask: Tensor) -> Tensor:
    """Real part (B, 2) of the width and the height of a level, from its mask (B, h, w)."""
    real = mask.float()
    return torch.stack([real[:, 0, :].mean(1), real[:, :, 0].mean(1)], dim=-1)


def resize_mask(pixel_mask: Tensor | None, feature_map: Tensor) -> Tensor:
    """Mask (B, h, w), True on real cells, for a feature map (B, D, h, w); nearest pixel."""
    batch_size, _, height, width = feature_map.shape
    if pixel_mask is None:
        return feature_map.new_ones((batch_size, height, width), dtype=torch.bool)
    return F.interpolate(pixel_mask[:, None].float(), size=(height, width))[:, 0].bool()


def _flatten(feature_map: Tensor) -> Tensor:
    """(B, D, h, w) -> (B, h * w, D)."""
    return feature_map.flatten(2).transpose(1, 2)
