"""Windows of equal size that cover an image and overlap; nothing here needs torch."""

import numbers
from collections.abc import Sequence
from typing import Any

import numpy as np

LEAST_SIDE = 32  # pixels, of a tile
OVERLAP = 0.2  # of a tile's side, shared with the next tile


def check_tiles(tiles: Any, overlap: Any) -> None:
    """Check the side of tiles in pixels, None for none, and the share by which they overlap.

    Raises:
        ValueError: if one is no number, or too small or too large.
    """
    if tiles is not None and (type(tiles) is not int or tiles < LEAST_SIDE):
        raise ValueError(
            f"tiles is {tiles!r}; expected the side of a tile in pixels, at least {LEAST_SIDE}, as "
            "an int."
        )
    if not isinstance(overlap, numbers.Real) or not 0 <= overlap < 1:
        raise ValueError(
            f"overlap is {overlap!r}; expected a share of the tile's side, from 0 to below 1."
        )


def tile_windows(size_hw: Sequence[int], tiles: int | None, overlap: float = OVERLAP) -> np.ndarray:
    """Divide an image into tiles, row by row; an image that isn't larger is one tile.

    Args:
        size_hw: height and width of the image in pixels.
        tiles: side of a tile in pixels; an image that is narrower or lower has tiles of its own
            width or height. None is one tile.
        overlap: share of the side by which neighbours overlap at least.

    Returns:
        (n, 4) int64, x0, y0, x1, y1 of each tile, all of the same size.
    """
    height, width = map(int, size_hw)
    if tiles is None:
        return np.array([[0, 0, width, height]])
    top, left = (_starts(side, tiles, overlap) for side in (height, width))
    y0, x0 = (part.ravel() for part in np.meshgrid(top, left, indexing="ij"))
    return np.stack([x0, y0, x0 + min(tiles, width), y0 + min(tiles, height)], axis=1)


def _starts(side: int, tile: int, overlap: float) -> np.ndarray:
    if side <= tile:
        return np.zeros(1, dtype=np.int64)
    # An integer, so that no two of the rounded starts are further apart.
    step = max(int(tile * (1 - overlap) + 1e-6), 1)
    number = -(-(side - tile) // step) + 1
    return np.linspace(0, side - tile, number).round().astype(np.int64)
