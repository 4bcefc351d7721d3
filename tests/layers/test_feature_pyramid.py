"""Protects the order of tokens, which of them count as real, and their positions."""

import torch
from torch import Tensor, nn

from hf_detr.layers.feature_pyramid import build_pyramid, resize_mask
from hf_detr.layers.position_encoding import SinePositionEncoding


class CellNumbers(nn.Module):
    """A position encoding that can be read: channel 0 is the row, channel 1 the column."""

    def forward(self, mask: Tensor, all_real: bool) -> Tensor:
        rows = torch.arange(mask.shape[1], dtype=torch.float32)[:, None].expand(mask.shape[1:])
        columns = torch.arange(mask.shape[2], dtype=torch.float32).expand(mask.shape[1:])
        return torch.stack([rows, columns]).expand(len(mask), -1, -1, -1)


def test_tokens_in_reading_order() -> None:
    """Protects row by row within a level, level after level, positions beside their tokens."""
    fine = torch.arange(12.0).view(2, 1, 2, 3).expand(-1, 2, -1, -1)
    coarse = torch.tensor([100.0, 101.0]).view(2, 1, 1, 1).expand(-1, 2, -1, -1)
    tokens, positions, pyramid = build_pyramid([fine, coarse], None, CellNumbers())
    assert tokens.shape == positions.shape == (2, 7, 2)
    expected = torch.tensor([[0, 1, 2, 3, 4, 5, 100], [6, 7, 8, 9, 10, 11, 101]]).float()
    assert torch.equal(tokens[..., 0], expected)
    assert positions[0].tolist() == [[0, 0], [0, 1], [0, 2], [1, 0], [1, 1], [1, 2], [0, 0]]
    assert pyramid.spatial_shapes == [(2, 3), (1, 1)]


def test_mask_of_every_level() -> None:
    """Protects that a token is real where its pixel is, on every level."""
    pixel_mask = torch.ones(2, 8, 8, dtype=torch.long)
    pixel_mask[1, :, 4:] = 0
    maps = [torch.zeros(2, 4, 4, 4), torch.zeros(2, 4, 2, 2)]
    _, _, pyramid = build_pyramid(maps, pixel_mask, CellNumbers())
    assert pyramid.mask.dtype == torch.bool
    assert pyramid.mask[0].all()
    assert pyramid.mask[1].tolist() == [True, True, False, False] * 4 + [True, False] * 2


def test_positions_know_the_padding() -> None:
    """Protects that positions count an image's real cells, not those of the canvas."""
    encoding = SinePositionEncoding(8)
    pixel_mask = torch.zeros(1, 32, 32)
    pixel_mask[:, :16, :24] = 1
    _, positions, _ = build_pyramid([torch.zeros(1, 8, 4, 4)], pixel_mask, encoding)
    _, alone, _ = build_pyramid([torch.zeros(1, 8, 2, 3)], None, encoding)
    on_canvas = positions.view(1, 4, 4, 8)[:, :2, :3].flatten(1, 2)
    torch.testing.assert_close(on_canvas, alone, atol=1e-6, rtol=0)


def test_no_mask_means_all_real() -> None:
    """Protects that attention gets no mask (and its fast path) where nothing is padded."""
    maps = [torch.randn(2, 8, 3, 5)]
    encoding = SinePositionEncoding(8)
    tokens, positions, pyramid = build_pyramid(maps, None, encoding)
    same_tokens, same_positions, full = build_pyramid(maps, torch.ones(2, 96, 160), encoding)
    assert pyramid.mask is None and full.mask.all()
    assert torch.equal(tokens, same_tokens) and torch.equal(positions, same_positions)


def test_positions_take_the_dtype_of_the_features() -> None:
    """Protects half-precision models from float32 positions that would upcast everything."""
    maps = [torch.zeros(1, 8, 2, 2, dtype=torch.bfloat16)]
    tokens, positions, _ = build_pyramid(maps, None, SinePositionEncoding(8))
    assert tokens.dtype == positions.dtype == torch.bfloat16


def test_resize_mask_takes_the_nearest_pixel() -> None:
    """Protects the original's choice of pixel, also for sizes that the stride doesn't divide."""
    pixel_mask = torch.zeros(1, 5, 7, dtype=torch.long)
    pixel_mask[:, :3, :4] = 1
    mask = resize_mask(pixel_mask, torch.zeros(1, 1, 2, 3))
    # cell i looks at pixel floor(i * size / cells): rows 0, 2 of 5 and columns 0, 2, 4 of 7
    assert mask.tolist() == [[[True, True, False], [True, True, False]]]


def test_an_image_smaller_than_a_cell_keeps_one_token() -> None:
    """Protects attention from an image without any real token, which would be NaN."""
    pixel_mask = torch.zeros(1, 64, 64, dtype=torch.long)
    pixel_mask[:, :1, :1] = 1
    mask = resize_mask(pixel_mask, torch.zeros(1, 1, 2, 2))
    assert mask.tolist() == [[[True, False], [False, False]]]


def test_references_are_on_every_level() -> None:
    """Protects that tokens refer to the same place of the padded canvas on every level."""
    pixel_mask = torch.ones(1, 8, 8)
    pixel_mask[:, :, 4:] = 0
    maps = [torch.zeros(1, 8, 4, 4), torch.zeros(1, 8, 2, 2)]
    *_, plain = build_pyramid(maps, pixel_mask, CellNumbers())
    *_, pyramid = build_pyramid(maps, pixel_mask, CellNumbers(), samples_points=True)
    assert plain.token_references is None
    assert pyramid.token_references.shape == (1, 20, 2, 2)
    for level in range(2):
        fine = pyramid.token_references[0, :16, level].view(4, 4, 2)
        assert fine[0, :, 0].tolist() == [0.125, 0.375, 0.625, 0.875]
        assert fine[:, 0, 1].tolist() == [0.125, 0.375, 0.625, 0.875]
    moved = pyramid.to("meta")
    assert {moved.mask.device.type, moved.token_references.device.type} == {"meta"}
