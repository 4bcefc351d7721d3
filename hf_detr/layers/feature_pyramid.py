"""Feature maps flattened into one sequence of tokens, with the geometry of each token."""

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..wording import some_of
from .short_cuts import is_readable


@dataclass(frozen=True)
class FeaturePyramid:
    """Geometry of a flattened pyramid; S = sum of h_l * w_l tokens.

    Attributes:
        mask: (B, S), True on tokens with real pixels; None if all are.
        spatial_shapes: (h_l, w_l) of each level, finest first.
        valid_ratios: (B, L, 2) as (w, h), the part of each level that real pixels cover, in
            [0, 1], float32.
        token_references: (B, S, L, 2), the tokens' centres relative to every padded level; only of
            models that sample points.
    """

    mask: Tensor | None
    spatial_shapes: list[tuple[int, int]]
    valid_ratios: Tensor
    token_references: Tensor | None = None

    def to(self, device: torch.device | str, **kwargs: Any) -> "FeaturePyramid":
        """The same on another device; Accelerate calls it where layers are on several."""
        tensors = {
            name: value.to(device, **kwargs)
            for name, value in vars(self).items()
            if isinstance(value, Tensor)
        }
        return replace(self, **tensors)

    @property
    def level_start_index(self) -> list[int]:
        """Index of each level's first token."""
        sizes = [height * width for height, width in self.spatial_shapes]
        return [sum(sizes[:level]) for level in range(len(sizes))]

    @property
    def token_centers(self) -> Tensor:
        """Centres (B, S, 2) of all tokens as (x, y) relative to the real image.

        They are beyond 1 on padding.
        """
        ratios = self.valid_ratios
        centers = []
        for level, (height, width) in enumerate(self.spatial_shapes):
            y = (torch.arange(height, device=ratios.device) + 0.5) / height
            x = (torch.arange(width, device=ratios.device) + 0.5) / width
            grid = torch.stack(torch.meshgrid(x, y, indexing="xy"), dim=-1)  # (h, w, 2)
            centers.append(grid.flatten(0, 1) / ratios[:, level, None])
        return torch.cat(centers, dim=1)

    def scale_to_levels(self, reference_points: Tensor) -> Tensor:
        """References (B, Q, 2 or 4) relative to the real image, on every padded level.

        Returns:
            (B, Q, L, 2 or 4).
        """
        # In the ratios' float32: a reference in half precision could not say which pixel it means.
        ratios = self.valid_ratios.repeat(1, 1, reference_points.shape[-1] // 2)  # (B, L, 2 or 4)
        return reference_points[:, :, None] * ratios[:, None]


def check_images(pixel_values: Tensor, pixel_mask: Tensor | None, num_channels: int) -> None:
    """Refuse a batch that the model can't use.

    The mask's values are checked if it is on the CPU: an accelerator would have to be waited for.

    Args:
        pixel_values: (B, C, H, W), floating-point numbers.
        pixel_mask: (B, H, W), 1 or True on real pixels, else 0 or False; None if all are real.
        num_channels: C.

    Raises:
        TypeError, ValueError: naming what was got and what was expected.
    """
    if not isinstance(pixel_values, Tensor) or not pixel_values.is_floating_point():
        raise TypeError(
            f"pixel_values is {_kind(pixel_values)}; expected a tensor of floating-point numbers, "
            "normalized as the image processor returns it."
        )
    if pixel_values.ndim != 4 or pixel_values.shape[1] != num_channels:
        raise ValueError(
            f"pixel_values has shape {tuple(pixel_values.shape)}; expected (batch, "
            f"{num_channels}, height, width), as the image processor returns it."
        )
    batch_size, _, height, width = pixel_values.shape
    if pixel_mask is None:
        return
    if not isinstance(pixel_mask, Tensor) or pixel_mask.is_complex():
        raise TypeError(
            f"pixel_mask is {_kind(pixel_mask)}; expected a tensor, 1 or True on real pixels and 0 "
            "or False on padding."
        )
    if pixel_mask.shape != (batch_size, height, width):
        raise ValueError(
            f"pixel_mask has shape {tuple(pixel_mask.shape)}; expected (batch, height, width) = "
            f"{(batch_size, height, width)}, 1 on real pixels and 0 on padding."
        )
    if is_readable(pixel_mask):
        _check_mask_values(pixel_mask)


def _check_mask_values(pixel_mask: Tensor) -> None:
    if pixel_mask.numel() and not pixel_mask.is_floating_point():
        low, high = pixel_mask.aminmax()  # a tenth of the time of a comparison
        if low >= 0 and high <= 1:
            return
    wrong = pixel_mask != pixel_mask.bool()
    if wrong.any():
        raise ValueError(
            f"pixel_mask contains {pixel_mask[wrong][0].item()}; expected 1 or True on real pixels "
            "and 0 or False on padding."
        )


def _check_real_cells(masks: list[Tensor], needs_corner: bool) -> None:
    """Refuse images without real cells, or with others than the geometry describes.

    Args:
        masks: of each level, (B, h, w), True on real cells.
        needs_corner: real cells must begin in the upper left corner.
    """
    is_empty = ~torch.stack([mask.flatten(1).any(1) for mask in masks]).any(0)
    if is_empty.any():
        raise ValueError(
            f"pixel_mask has no real pixel in image {_indices(is_empty)}, or none that is left on "
            "the feature maps; leave such images out of the batch."
        )
    for mask in masks if needs_corner else ():
        for real, first in ((mask.any(1), mask[:, 0]), (mask.any(2), mask[:, :, 0])):
            is_wrong = (real != first).any(1) | (first[:, 1:] > first[:, :-1]).any(1)
            if is_wrong.any():
                raise ValueError(
                    f"In pixel_mask, the real pixels of image {_indices(is_wrong)} don't begin in "
                    "the upper left corner, or have gaps in the first row or column. This model "
                    "needs images that are padded at the bottom and the right only."
                )


def _indices(chosen: Tensor) -> str:
    return some_of(chosen.nonzero()[:, 0].tolist())


def _kind(value: Any) -> str:
    return f"of {value.dtype}" if isinstance(value, Tensor) else f"of type {type(value).__name__}"


def build_pyramid(
    feature_maps: list[Tensor],
    pixel_mask: Tensor | None,
    position_encoding: nn.Module,
    level_embed: Tensor | None = None,
    samples_points: bool = False,
) -> tuple[Tensor, Tensor, FeaturePyramid]:
    """Flatten projected feature maps and encode the position of every token.

    Args:
        feature_maps: per level (B, D, h_l, w_l).
        pixel_mask: (B, H, W), 1 on real pixels; None if all are.
        position_encoding: turns a mask (B, h, w), and whether all of it is real, into
            (B, D, h, w).
        level_embed: (L, D), added to the positions of each level.
        samples_points: whether attention samples points around references; adds those of tokens,
            and refuses masks whose real pixels don't begin in the upper left corner, which
            `valid_ratios` can't describe.

    Returns:
        Tokens (B, S, D), their position embeddings (B, S, D) in the same dtype, and the geometry.

    Raises:
        ValueError: for images without real cells, and as `samples_points` says. Masks on an
            accelerator aren't checked: it would have to be waited for.
    """
    masks = [resize_mask(pixel_mask, feature_map) for feature_map in feature_maps]
    hidden_states = torch.cat([_flatten(feature_map) for feature_map in feature_maps], dim=1)
    all_real = pixel_mask is None
    positions = [_flatten(position_encoding(m, all_real)).to(hidden_states.dtype) for m in masks]
    if level_embed is not None:
        positions = [p + embed for p, embed in zip(positions, level_embed, strict=True)]
    if pixel_mask is not None and is_readable(pixel_mask):
        _check_real_cells(masks, needs_corner=samples_points)
    pyramid = FeaturePyramid(
        mask=None if all_real else torch.cat([m.flatten(1) for m in masks], dim=1),
        spatial_shapes=[tuple(feature_map.shape[-2:]) for feature_map in feature_maps],
        valid_ratios=torch.stack([_valid_ratio(m) for m in masks], dim=1),
    )
    if samples_points:  # here and not in each of the encoder's layers
        references = pyramid.scale_to_levels(pyramid.token_centers)
        pyramid = replace(pyramid, token_references=references)
    return hidden_states, torch.cat(positions, dim=1), pyramid


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
