"""Argmax of resized maps: equality with resizing all maps."""

from collections.abc import Callable

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F
from torch.testing import assert_close

from hf_detr.image_processing.resized_argmax import make_resizings, resized_argmax, resized_maps


def random_maps(count: int, height: int, width: int, coarse: int) -> Tensor:
    """Make maps (n, h, w) that vary over `coarse` pixels; each is the largest somewhere."""
    generator = torch.Generator().manual_seed(0)
    size = height // coarse + 2, width // coarse + 2
    maps = torch.randn(1, count, *size, generator=generator)
    return F.interpolate(maps, size=(height, width), mode="bicubic")[0]


def resize(maps: Tensor, size: tuple[int, int]) -> Tensor:
    return F.interpolate(maps[None], size=size, mode="bilinear")[0]


@pytest.mark.parametrize("coarse", [1, 12])
@pytest.mark.parametrize("size", [None, (250, 401), (20, 31), (61, 33), (1, 1)])
@pytest.mark.parametrize("function", [torch.sigmoid, torch.negative])
def test_equals_argmax_of_all_resized_maps(
    size: tuple[int, int] | None, coarse: int, function: Callable[[Tensor], Tensor]
) -> None:
    """Winners and counts are equal for rough and smooth maps, and one or several tiles."""
    maps = function(3 * random_maps(9, 61, 97, coarse))
    (resizing,) = make_resizings(maps[None], None if size is None else [size])
    expected = maps if size is None else resize(maps, size)
    assert_close(resized_maps(maps, resizing), expected, atol=1e-5, rtol=0)
    winners, reached = resized_argmax(maps, resizing, 0.5)
    best = expected.amax(0)
    assert_close(expected.gather(0, winners[None])[0], best, atol=1e-5, rtol=0)
    assert (winners != expected.argmax(0)).float().mean() < 1e-4
    assert_close(reached, (expected >= 0.5).sum((1, 2)), atol=1, rtol=0)


def test_first_of_equal_maps_wins() -> None:
    """Ties are resolved as in `argmax`."""
    maps = torch.tensor([1.0, 2.0, 2.0])[:, None, None].expand(3, 4, 4)
    (resizing,) = make_resizings(maps[None], [(7, 7)])
    assert (resized_argmax(maps, resizing)[0] == 1).all()
    assert (resized_argmax(maps[:1], resizing)[0] == 0).all()


def test_nan_gives_a_map() -> None:
    """Outputs with NaN don't cause an unrelated error."""
    maps = torch.full((2, 4, 4), torch.nan)
    (resizing,) = make_resizings(maps[None])
    assert resized_argmax(maps, resizing)[0].unique().tolist() == [0]


@pytest.mark.parametrize("nearest", [False, True])
def test_padding_is_removed(nearest: bool) -> None:
    """Maps are resized to the canvas, cropped, and resized to the target."""
    maps = random_maps(3, 20, 30, 3)
    pixel_mask = torch.zeros(2, 78, 120)
    pixel_mask[0], pixel_mask[1, :52, :90] = 1, 1
    sizes = [(40, 70), (63, 33)]
    batch = maps.expand(2, -1, -1, -1)
    for index, resizing in enumerate(make_resizings(batch, sizes, pixel_mask, nearest)):
        expected = resize(maps, (78, 120))
        if index == 1:
            expected = expected[:, :52, :90]
        if nearest:
            images = [Image.fromarray(one.numpy()) for one in expected]
            height, width = sizes[index]
            images = [one.resize((width, height), Image.Resampling.NEAREST) for one in images]
            expected = torch.from_numpy(np.stack([np.asarray(one) for one in images]))
        else:
            expected = resize(expected, sizes[index])
        assert_close(resized_maps(maps, resizing), expected, atol=1e-5, rtol=0)
    assert [r.size_hw for r in make_resizings(batch, None, pixel_mask)] == [(78, 120), (52, 90)]


def test_wrong_numbers() -> None:
    """Sizes and masks must match the images."""
    maps = torch.zeros(1, 2, 4, 4)
    with pytest.raises(ValueError, match="2 entries for 1 images"):
        make_resizings(maps, [(4, 4), (4, 4)])
    with pytest.raises(ValueError, match=r"shape \(2, 8, 8\) for 1 images"):
        make_resizings(maps, None, torch.ones(2, 8, 8))
    with pytest.raises(ValueError, match="expected pixels of 1 in each"):
        make_resizings(maps, None, torch.zeros(1, 8, 8))
