"""Protects the position encodings: the original's numbers on real pixels, and their limits."""

import math
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from hf_detr.layers.position_encoding import (
    LearnedPositionEncoding,
    SinePositionEncoding,
    encode_points,
    make_position_encoding,
)

FIXTURES = Path(__file__).parents[1] / "fixtures"
OFFSETS = {"detr": 0.0, "deformable": -0.5}


def compare_with_original(kind: str, reference: dict[str, Tensor], slices: dict[str, int]) -> None:
    """Compare every stored sine encoding on real pixels; slices: key -> step over channels."""
    encoding = SinePositionEncoding(256, offset=OFFSETS[kind])
    keys = [key for key in reference if key.endswith("normalized_128")]
    assert len(keys) >= 4
    for key in keys:
        mask = reference[key.replace("normalized_128", "padding_mask")] == 0
        got = encoding(mask)[:, :: slices.get(key, 1)]
        real = mask[:, None].expand_as(got)
        torch.testing.assert_close(got[real], reference[key][real], atol=1e-5, rtol=0)


@pytest.mark.parametrize("kind", OFFSETS)
def test_sine_equals_the_original(kind: str) -> None:
    """Protects DETR's and Deformable DETR's sines, with padding and down to a single cell."""
    reference = load_file(FIXTURES / f"position_{kind}_reference.safetensors")
    compare_with_original(kind, reference, {"sine/padded/normalized_128": 2})


@pytest.mark.parametrize("kind", OFFSETS)
def test_sine_equals_the_original_on_all_cases(kind: str, reference_dir: Path) -> None:
    """Protects the same on the larger set that isn't kept in the repository."""
    reference = load_file(reference_dir / "ops" / f"position_{kind}.safetensors")
    steps = {"sine/padded/normalized_128": 2, "sine/odd/normalized_128": 2}
    compare_with_original(kind, reference, steps)


def test_sine_by_hand() -> None:
    """Protects order (y before x), counting from 1 to 2 pi and the first wavelength."""
    encoding = SinePositionEncoding(8)(torch.ones(1, 2, 4, dtype=torch.bool))
    assert encoding.shape == (1, 8, 2, 4)
    y = torch.tensor([1 / 2, 2 / 2]) * 2 * torch.pi  # rows 1 and 2 of 2
    x = torch.tensor([1 / 4, 2 / 4, 3 / 4, 4 / 4]) * 2 * torch.pi
    first = encoding[0]
    for channel, expected in (
        (0, y.sin()[:, None].expand(2, 4)),
        (1, y.cos()[:, None].expand(2, 4)),
        (2, (y / 100).sin()[:, None].expand(2, 4)),  # 10000 ** (2 / 4)
        (4, x.sin()[None].expand(2, 4)),
        (5, x.cos()[None].expand(2, 4)),
        (7, (x / 100).cos()[None].expand(2, 4)),
    ):
        torch.testing.assert_close(first[channel], expected, atol=1e-5, rtol=0)


def test_sine_counts_real_cells_only() -> None:
    """Protects that padding doesn't change the positions of an image's real cells."""
    encoding = SinePositionEncoding(16, offset=-0.5)
    alone = encoding(torch.ones(1, 3, 4, dtype=torch.bool))
    padded = torch.zeros(1, 6, 9, dtype=torch.bool)
    padded[:, :3, :4] = True
    torch.testing.assert_close(encoding(padded)[..., :3, :4], alone, atol=1e-6, rtol=0)


def test_sine_without_padding() -> None:
    """Protects the shorter way where no cell is padding: the very same numbers."""
    encoding = SinePositionEncoding(16, offset=-0.5)
    mask = torch.ones(2, 5, 7, dtype=torch.bool)
    assert torch.equal(encoding(mask, all_real=True), encoding(mask))


def test_sine_stores_nothing() -> None:
    """Protects that no buffer can come back uninitialised from a checkpoint."""
    encoding = SinePositionEncoding(16)
    assert not list(encoding.buffers()) and not list(encoding.parameters())


def test_learned_equals_the_original() -> None:
    """Protects x before y, and which table is whose."""
    reference = load_file(FIXTURES / "position_detr_reference.safetensors")
    expected = reference["learned/output"]
    encoding = LearnedPositionEncoding(expected.shape[1])
    encoding.row_embeddings.weight.data = reference["learned/row_embed.weight"]
    encoding.column_embeddings.weight.data = reference["learned/col_embed.weight"]
    batch_size, _, height, width = expected.shape
    got = encoding(torch.ones(batch_size, height, width, dtype=torch.bool))
    torch.testing.assert_close(got, expected, atol=1e-6, rtol=0)


def test_learned_initialisation() -> None:
    """Protects the original's uniform start in [0, 1]."""
    torch.manual_seed(0)
    encoding = LearnedPositionEncoding(64)
    for table in (encoding.row_embeddings.weight, encoding.column_embeddings.weight):
        assert 0 <= table.min() < 0.02 and 0.98 < table.max() <= 1
        assert abs(table.mean() - 0.5) < 0.05


@pytest.mark.parametrize("shape", [(1, 50, 51), (1, 51, 50)])
def test_learned_positions_end_at_50_cells(shape: tuple[int, int, int]) -> None:
    """Protects the error for a map that is too large; the largest possible map works."""
    encoding = LearnedPositionEncoding(8)
    assert encoding(torch.ones(1, 50, 50, dtype=torch.bool)).shape == (1, 8, 50, 50)
    with pytest.raises(ValueError, match=rf"{shape[1]} x {shape[2]} cells.*'sine'"):
        encoding(torch.ones(shape, dtype=torch.bool))


def test_names() -> None:
    """Protects the names that a configuration uses, and that offset and temperature arrive."""
    assert isinstance(make_position_encoding("learned", 8), LearnedPositionEncoding)
    sine = make_position_encoding("sine", 8, offset=-0.5, temperature=20)
    assert isinstance(sine, SinePositionEncoding)
    assert (sine.offset, sine.temperature) == (-0.5, 20)


def test_points_equal_the_original() -> None:
    """Protects Conditional DETR's sines of reference points: x and y in [0, 1], y first."""
    reference = load_file(FIXTURES / "query_sine_reference.safetensors")
    got = encode_points(reference["query_sine/input"], 256)
    torch.testing.assert_close(got, reference["query_sine/output"], atol=1e-5, rtol=0)
    half = encode_points(reference["query_sine/input"].bfloat16(), 256)
    assert half.dtype == torch.bfloat16


def test_boxes_by_hand() -> None:
    """Protects the order y, x, w, h, and the temperature."""
    box, temperature = torch.tensor([0.1, 0.2, 0.3, 0.4]), 20.0
    expected = []
    for coordinate in (0.2, 0.1, 0.3, 0.4):
        for wavelength in (1, temperature**0.5):
            angle = 2 * math.pi * coordinate / wavelength
            expected += [math.sin(angle), math.cos(angle)]
    got = encode_points(box, 8, temperature)
    torch.testing.assert_close(got, torch.tensor(expected), atol=1e-6, rtol=0)
    torch.testing.assert_close(encode_points(box[:2], 8, temperature), got[:8])
