"""Types and channels of pixels; images as a whole are tested in test_image_reading.py."""

import pytest
import torch
from torch import Tensor

from hf_detr.image_processing.pixel_conversion import to_uint8_or_float32, with_channels


@pytest.mark.parametrize(
    ("pixels", "expected"),
    [
        (torch.tensor([True, False]), [255, 0]),
        (torch.tensor([0, 4096, 65535], dtype=torch.uint16), [0, 16, 255]),
        (torch.tensor([0, 0], dtype=torch.uint16), [0, 0]),
        (torch.tensor([3, 255], dtype=torch.int16), [3, 255]),
        (torch.tensor([0.25, 300.0], dtype=torch.float64), [0.25, 300.0]),
    ],
    ids=["bool", "uint16", "black uint16", "int16", "float64"],
)
def test_types_by_hand(pixels: Tensor, expected: list[float]) -> None:
    """Integers become bytes, floats keep their values."""
    converted = to_uint8_or_float32(pixels, "image 0")
    assert converted.dtype == (torch.float32 if pixels.is_floating_point() else torch.uint8)
    assert converted.tolist() == expected


def test_the_limit_of_the_warning_is_12_bits() -> None:
    """4095 of 65535 could be an image of 12 bits, 4096 can't."""
    with pytest.warns(UserWarning, match="no value above 4095 of 65535"):
        to_uint8_or_float32(torch.tensor([4095], dtype=torch.uint16), "image 0")
    to_uint8_or_float32(torch.tensor([4096], dtype=torch.uint16), "image 0")


@pytest.mark.parametrize("count", [1, 2, 3, 4, 6])
def test_channels(count: int) -> None:
    """Only gray and transparent images become RGB, and only if that is what is asked for."""
    pixels = torch.arange(count, dtype=torch.uint8)[:, None, None].expand(-1, 2, 2)
    for num_channels in (None, count) if count != 3 else (None,):
        assert with_channels(pixels, num_channels, False, "image 0") is pixels
    if count in (1, 3, 4):
        expected = [0, 0, 0] if count == 1 else [0, 1, 2]
        assert with_channels(pixels, 3, False, "image 0")[:, 0, 0].tolist() == expected
