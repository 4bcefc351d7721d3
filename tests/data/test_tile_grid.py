"""Tests the windows of tiles."""

import numpy as np
import pytest

from hf_detr.data.tile_grid import check_tiles, tile_windows


@pytest.mark.parametrize("overlap", [0, 0.2, 0.5, 0.9])
@pytest.mark.parametrize("size_hw", [(40, 100), (101, 33), (64, 64), (65, 1000), (127, 128)])
def test_tiles_cover_an_image(size_hw: tuple[int, int], overlap: float) -> None:
    """All tiles have one size, every pixel is on one, and neighbours overlap enough."""
    windows = tile_windows(size_hw, 64, overlap)
    height, width = size_hw
    sizes = windows[:, 2:] - windows[:, :2]
    assert (sizes == (min(64, width), min(64, height))).all()
    assert windows.min() == 0 and windows[:, 2:].max(0).tolist() == [width, height]
    covered = np.zeros(size_hw, dtype=bool)
    for x0, y0, x1, y1 in windows.tolist():
        covered[y0:y1, x0:x1] = True
    assert covered.all() and len(np.unique(windows, axis=0)) == len(windows)
    for axis in (0, 1):
        starts = np.unique(windows[:, axis])
        assert (np.diff(starts) <= 64 - int(64 * overlap)).all()


def test_small_images_are_whole() -> None:
    """An image that isn't larger than a tile, and any image without tiles, is one tile."""
    assert tile_windows((64, 50), 64).tolist() == [[0, 0, 50, 64]]
    assert tile_windows((1000, 2000), None).tolist() == [[0, 0, 2000, 1000]]
    assert len(tile_windows((65, 50), 64)) == 2


@pytest.mark.parametrize("tiles", [31, -1, 0, 64.0, True, "64"])
def test_wrong_sides_are_refused(tiles: object) -> None:
    """A tile's side is an integer of at least 32 pixels."""
    with pytest.raises(ValueError, match="tiles is .*; expected the side of a tile in pixels"):
        check_tiles(tiles, 0.2)


@pytest.mark.parametrize("overlap", [-0.1, 1, 20, float("nan"), None, "0.2"])
def test_wrong_overlaps_are_refused(overlap: object) -> None:
    """An overlap is a share, not a number of pixels."""
    check_tiles(None, 0)
    with pytest.raises(ValueError, match="overlap is .*; expected a share of the tile's side"):
        check_tiles(64, overlap)
