"""Which of many maps is largest at every pixel after resizing, without resizing all of them.

Bilinear resizing averages: a new value lies between the least and the greatest of those around it.
So a map whose greatest value within a tile is below what the largest has there at least is left out
of that tile. The result is that of resizing everything and `argmax`, up to ties.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

TILE = 96  # pixels of the result, per side; small enough for caches, large enough for few calls


@dataclass(frozen=True)
class Resizing:
    """How a map (h, w) becomes one of (H, W): `rows @ map @ columns.T`, weighted means.

    Attributes:
        rows: (H, h), weights from 0 to 1 that sum to 1 in each row.
        columns: (W, w), the same.
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
    """How the maps (B, n, h, w) of each image become as large as the image.

    Args:
        maps: of the whole canvas that the images were padded to.
        target_sizes: (height, width) per image; None leaves the size, without padding.
        pixel_mask: (B, H, W) as the model got it, 1 on the image and 0 on padding, at the bottom
            and the right, which is cut off after resizing to the canvas; None if there is none.
        nearest: go from there to the target size by the nearest pixel, otherwise bilinearly.

    Raises:
        ValueError: if there isn't one target size, and one mask, per image.
    """
    count, map_hw = len(maps), tuple(maps.shape[-2:])
    if target_sizes is not None and len(target_sizes) != count:
        raise ValueError(
            f"target_sizes has {len(target_sizes)} entries for {count} images; give one "
            "(height, width) per image."
        )
    targets = [None] * count if target_sizes is None else target_sizes
    if pixel_mask is None:
        sides = [zip(map_hw, map_hw if hw is None else hw, strict=True) for hw in targets]
        weights = [[_weights(a, int(b)) for a, b in side] for side in sides]
    else:
        image_sizes = _image_sizes(pixel_mask, count)
        last = _nearest_weights if nearest else _weights
        weights = [
            [
                last(image, image if hw is None else int(hw[axis]))
                @ _weights(map_hw[axis], pixel_mask.shape[1 + axis])[:image]
                for axis, image in enumerate(image_hw)
            ]
            for image_hw, hw in zip(image_sizes, targets, strict=True)
        ]
    return [Resizing(*(side.to(maps.device) for side in pair)) for pair in weights]


def resized_argmax(
    maps: Tensor, resizing: Resizing, threshold: float = math.inf
) -> tuple[Tensor, Tensor]:
    """Which map is largest at each pixel, and on how many each reaches the threshold.

    Args:
        maps: (n, h, w), float32, n >= 1.
        resizing: from (h, w) to (H, W).
        threshold: what to count; values that reach it count even where another map is larger.

    Returns:
        (H, W), the first of the largest, and (n,), both int64.
    """
    winners = torch.empty(resizing.size_hw, dtype=torch.long, device=maps.device)
    reached = torch.zeros(len(maps), dtype=torch.long, device=maps.device)
    column_strips = list(_strips(resizing.columns))
    best = _least_best(maps, resizing)
    for to_rows, from_rows, rows in _strips(resizing.rows):
        band = maps[:, from_rows]
        lows, highs = band.amin(1), band.amax(1)  # (n, w)
        for to_columns, from_columns, columns in column_strips:
            least, greatest = lows[:, from_columns].amin(1), highs[:, from_columns].amax(1)
            bound = torch.maximum(least.max(), best[from_rows, from_columns].min())
            # Not `>=`: among NaN, too, there has to be a winner.
            is_candidate = ~(greatest < bound) | (greatest >= threshold)
            index = is_candidate.nonzero()[:, 0]
            values = rows @ band[index, :, from_columns] @ columns.T
            if threshold < math.inf:
                reached[index] += (values >= threshold).sum((1, 2))
            write_winners(values, index.tolist(), winners[to_rows, to_columns])
    return winners, reached


def resized_maps(maps: Tensor, resizing: Resizing) -> Tensor:
    """All maps (n, h, w), resized to (n, H, W)."""
    result = maps.new_empty(len(maps), *resizing.size_hw)
    column_strips = list(_strips(resizing.columns))
    for to_rows, from_rows, rows in _strips(resizing.rows):
        for to_columns, from_columns, columns in column_strips:
            result[:, to_rows, to_columns] = rows @ maps[:, from_rows, from_columns] @ columns.T
    return result


def write_winners(values: Tensor, names: Sequence[int], winners: Tensor) -> None:
    """Write into `winners` (H, W) the name of the first of the largest of `values` (k, H, W).

    One after the other: several times faster than `argmax` over the first dimension.
    """
    best = values[0].clone()
    winners.fill_(names[0])
    for name, value in zip(names[1:], values[1:], strict=True):
        winners.masked_fill_(value > best, name)
        torch.maximum(best, value, out=best)


def _weights(source: int, target: int) -> Tensor:
    """Weights (target, source) by which `F.interpolate` resizes a side bilinearly."""
    return F.interpolate(torch.eye(source)[None], size=target, mode="linear")[0].T


def _nearest_weights(source: int, target: int) -> Tensor:
    """The same for the nearest pixel, as Pillow finds it: by adding up rounded steps."""
    steps = torch.full((target,), source / target, dtype=torch.float64)
    steps[0] /= 2
    return torch.eye(source)[steps.cumsum(0).long().clamp(max=source - 1)]


def _image_sizes(pixel_mask: Tensor, count: int) -> list[tuple[int, int]]:
    """(height, width) of each image within its canvas."""
    if pixel_mask.ndim != 3 or len(pixel_mask) != count:
        raise ValueError(
            f"pixel_mask has shape {tuple(pixel_mask.shape)} for {count} images; give the "
            "(B, H, W) that the model got."
        )
    is_real = pixel_mask.bool()
    sizes = torch.stack([is_real.any(2).sum(1), is_real.any(1).sum(1)], dim=1).tolist()
    if any(height == 0 for height, _ in sizes):
        raise ValueError(f"pixel_mask leaves images of sizes {sizes}; each needs pixels of 1.")
    return [tuple(size_hw) for size_hw in sizes]


def _strips(weights: Tensor) -> Iterator[tuple[slice, slice, Tensor]]:
    """Slices of a side: of the new one, of the old one that it depends on, and its weights."""
    for start in range(0, len(weights), TILE):
        target = slice(start, start + TILE)
        used = weights[target].any(0).nonzero()
        source = slice(used[0].item(), used[-1].item() + 1)
        yield target, source, weights[target, source]


def _least_best(maps: Tensor, resizing: Resizing) -> Tensor:
    """(h, w): what the largest map is at least, wherever this is the value that counts most.

    Of every new value, a share comes from one old value; the rest is no less than the least of all.
    Unlike the least value of one map in a tile, this finds a bound where two maps share the tile.
    """
    share = resizing.rows.amax(1).min() * resizing.columns.amax(1).min()
    lowest = maps.min()
    return lowest + share * (maps.amax(0) - lowest)
