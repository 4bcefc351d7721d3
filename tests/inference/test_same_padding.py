"""Protects exports of networks with TensorFlow's padding: same numbers, and free sizes."""

from pathlib import Path

import pytest
import torch
from timm.layers import Conv2dSame
from timm.layers.pool2d_same import MaxPool2dSame
from torch import nn
from torch.testing import assert_close

from hf_detr.inference.export import Graph, export_model
from hf_detr.inference.same_padding import convolve, same_padding_of_any_size

from ..tiny import padded_batch, tiny_detector


@pytest.mark.parametrize(
    "options",
    [
        {"kernel_size": 3, "stride": 2},
        {"kernel_size": 5, "stride": 2},
        {"kernel_size": 4, "stride": 3, "groups": 2},
        {"kernel_size": (3, 5), "stride": (2, 1), "dilation": (2, 3)},
        {"kernel_size": 2, "stride": 2},
    ],
)
def test_equals_timm(options: dict) -> None:
    """Protects the place of the windows for sizes of every remainder."""
    convolution = Conv2dSame(2, 2, **options)
    for height in range(1, 9):
        feature_map = torch.randn(2, 2, height, height + 5)
        assert_close(convolve(convolution, feature_map), convolution(feature_map))


def test_layers_are_themselves_afterwards() -> None:
    """Protects the model from staying changed, also after an error."""
    convolution = Conv2dSame(1, 1, 3, stride=2)
    with pytest.raises(KeyError), same_padding_of_any_size(nn.Sequential(convolution)):
        assert "forward" in vars(convolution)
        raise KeyError
    assert "forward" not in vars(convolution)


@pytest.mark.parametrize("other", [MaxPool2dSame(3, 2), Conv2dSame(1, 1, 1, stride=2)])
def test_other_layers_are_refused(other: nn.Module) -> None:
    """Layers that nothing is known of stay as they are, with a message."""
    model = nn.Sequential(Conv2dSame(1, 1, 3, stride=2), other)
    name = type(other).__name__
    with pytest.raises(ValueError, match=f"depends on the size .{name}"):
        same_padding_of_any_size(model).__enter__()
    assert "forward" not in vars(model[0])


@torch.no_grad()
@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # of the exporters
@pytest.mark.parametrize("ending", ["onnx", "pt2"])
def test_export_with_free_sizes(ending: str, tmp_path: Path) -> None:
    """Protects backbones as that of the package's own detector (1e-3)."""
    if ending == "onnx":
        pytest.importorskip("onnxscript", reason="ONNX export needs onnxscript")
        pytest.importorskip("onnxruntime", reason="checking ONNX needs onnxruntime")
    backbone = "tf_mobilenetv3_small_minimal_100"
    options = {"backbone": backbone, "encoder_layers": 1, "decoder_layers": 1}
    model = tiny_detector("detr", **options)
    batch = padded_batch(2, 97, 130)
    expected = Graph(model)(*batch)
    report = export_model(model, tmp_path / f"model.{ending}")
    assert report.largest_difference < 1e-3 and len(report.checked_shapes) == 3
    assert_close(Graph(model)(*batch), expected, atol=0, rtol=0)
