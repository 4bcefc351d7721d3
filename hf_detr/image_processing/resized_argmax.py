"""Argmax of resized maps, without resizing all of them.

Bilinear resizing computes averages: a new value is between the minimum and the maximum of the
values around it. A map whose maximum within a tile is below a lower bound of the largest map there
is skipped in that tile. The result equals that of resizing all maps and `argmax`, up to ties.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from .postprocess import checked_sizes

TILE = 96  # pixels per side of the result; small enough for caches, large enough for few calls


@dataclass(frozen=True)
class Resizing:
    """Resizing of a map from (h, w) to (H, W) as `rows @ map @ columns.T`.

    Attributes:
        rows: (H, h), weights in [0, 1] that sum to 1 in each row.
        columns: (W, w), likewise.
    """

    rows: Tensor
    columns: Tensor

    @property
    def size_hw(self) -> tuple[int, int]:
        """(H, W)."""
        return len(self.rows), len(self.columns)


def make_resizings(
    maps: Tensor,
    target_sizes: Sequence[tuple[int, int]] | None = None,
    pixel_mask: Tensor | None = None,
    nearest: bool = False,
) -> list[Resizing]:
    """Make the resizing of the maps (B, n, h, w) to the size of each image.

    Args:
        maps: maps of the whole padded canvas.
        target_sizes: (height, width) per image; defaults to the size without padding.
        pixel_mask: (B, H, W) as passed to the model, 1 for real pixels and 0 for padding, which is
            removed after resizing to the canvas. None if there is no padding.
        nearest: whether to resize from there to the target size to the nearest pixel instead of
            bilinearly.

    Raises:
        ValueError: if the number of target sizes or pixel masks isn't the number of images, or
            sizes aren't whole numbers above 0.
    """
    count, map_hw = len(maps), tuple(maps.shape[-2:])
    targets = [None] * count if target_sizes is None else _whole_sizes(target_sizes, count)
    if pixel_mask is None:
        sides = [zip(map_hw, map_hw if hw is None else hw, strict=True) for hw in targets]
        weights = [[_weights(a, b) for a, b in side] for side in sides]
    else:
        image_sizes = _image_sizes(pixel_mask, count)
        last = _nearest_weights if nearest else _weights
        weights = [
            [
                last(image, image if hw is None else hw[axis])
                @ _weights(map_hw[axis], pixel_mask.shape[1 + axis])[:image]
                for axis, image in enumerate(image_hw)
            ]
            for image_hw, hw in zip(image_sizes, targets, strict=True)
        ]
    return [Resizing(*(side.to(maps.device) for side in pair)) for pair in weights]


def resized_argmax(
    maps: Tensor, resizing: Resizing, threshold: float = math.inf
) -> tuple[Tensor, Tensor]:
    """Compute the largest map at each pixel, and the number of pixels above a threshold.

    Args:
        maps: (n, h, w), float32, n >= 1.
        resizing: from (h, w) to (H, W).
        threshold: minimum of the values that are counted for each map, also if another map is
            larger.

    Returns:
        Index of the first largest map (H, W), and the counts (n,), both int64.
    """
    winners = torch.empty(resizing.size_hw, dtype=torch.long, device=maps.device)
    reached = torch.zeros(len(maps), dtype=torch.long, device=maps.device)
    column_strips = list(_strips(resizing.columns))
    best = _lower_bounds(maps, resizing)
    for to_rows, from_rows, rows in _strips(resizing.rows):
        band = maps[:, from_rows]
        lows, highs = band.amin(1), band.amax(1)  # (n, w)
        for to_columns, from_columns, columns in column_strips:
            low, high = lows[:, from_columns].amin(1), highs[:, from_columns].amax(1)
            bound = torch.maximum(low.max(), best[from_rows, from_columns].min())
            # Not `>=`, because NaN has to be a candidate.
            is_candidate = ~(high < bound) | (high >= threshold)
            index = is_candidate.nonzero()[:, 0]
            values = rows @ band[index, :, from_columns] @ columns.T
            if threshold < math.inf:
                reached[index] += (values >= threshold).sum((1, 2))
            write_winners(values, index.tolist(), winners[to_rows, to_columns])
    return winners, reached


def resized_maps(maps: Tensor, resizing: Resizing) -> Tensor:
    """Resize all maps (n, h, w) to (n, H, W)."""
    result = maps.new_empty(len(maps), *resizing.size_hw)
    column_strips = list(_strips(resizing.columns))
    for to_rows, from_rows, rows in _strips(resizing.rows):
        for to_columns, from_columns, columns in column_strips:
            result[:, to_rows, to_columns] = rows @ maps[:, from_rows, from_columns] @ columns.T
    return result


def write_winners(values: Tensor, names: Sequence[int], winners: Tensor) -> None:
    """Write the name of the first largest of `values` (k, H, W) to `winners` (H, W).

    The loop is several times faster than `argmax` over the first dimension.
    """
    best = values[0].clone()
    winners.fill_(names[0])
    for name, value in zip(names[1:], values[1:], strict=True):
        winners.masked_fill_(value > best, name)
        torch.maximum(best, value, out=best)


def _whole_sizes(target_sizes: Sequence[tuple[int, int]], count: int) -> list[tuple[int, int]]:
    sizes_hw = checked_sizes(target_sizes, count)
    for index, size_hw in enumerate(sizes_hw):
        if not all(side.is_integer() for side in size_hw):
            raise ValueError(
                f"target_sizes[{index}] is {size_hw}; expected whole numbers of pixels."
            )
    return [(int(height), int(width)) for height, width in sizes_hw]


def _weights(source: int, target: int) -> Tensor:
    """Return the weights (target, source) of bilinear `F.interpolate` along one side."""
    return F.interpolate(torch.eye(source)[None], size=target, mode="linear")[0].T


def _nearest_weights(source: int, target: int) -> Tensor:
    """Return the weights of the nearest pixel as in Pillow, which adds up rounded steps."""
    steps = torch.full((target,), source / target, dtype=torch.float64)
    steps[0] /= 2
    return torch.eye(source)[steps.cumsum(0).long().clamp(max=source - 1)]


def _image_sizes(pixel_mask: Tensor, count: int) -> list[tuple[int, int]]:
    """Return the (height, width) of each image within the canvas."""
    if pixel_mask.ndim != 3 or len(pixel_mask) != count:
        raise ValueError(
            f"pixel_mask has shape {tuple(pixel_mask.shape)} for {count} images; expected "
            "(B, H, W), as passed to the model."
        )
    is_real = pixel_mask.bool()
    sizes = torch.stack([is_real.any(2).sum(1), is_real.any(1).sum(1)], dim=1).tolist()
    if any(height == 0 for height, _ in sizes):
        raise ValueError(f"pixel_mask has images of sizes {sizes}; expected pixels of 1 in each.")
    return [tuple(size_hw) for size_hw in sizes]


def _strips(weights: Tensor) -> Iterator[tuple[slice, slice, Tensor]]:
    """Split a side into tiles: the target slice, its source slice, and the weights."""
    for start in range(0, len(weights), TILE):
        target = slice(start, start + TILE)
        used = weights[target].any(0).nonzero()
        source = slice(used[0].item(), used[-1].item() + 1)
        yield target, source, weights[target, source]


def _lower_bounds(maps: Tensor, resizing: Resizing) -> Tensor:
    """Return lower bounds (h, w) of the largest map where a source pixel has the largest weight.

    Each new value is at least that weight times the source value, plus the rest of the weight times
    the minimum of all maps. Unlike the minimum of one map, this is a useful bound in tiles that are
    shared by two maps.
    """
    weight = resizing.rows.amax(1).min() * resizing.columns.amax(1).min()
    lowest = maps.min()
    return lowest + weight * (maps.amax(0) - lowest)
