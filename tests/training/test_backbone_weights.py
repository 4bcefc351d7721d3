"""Tests weights of a backbone from a file that isn't timm's."""

from pathlib import Path

import pytest
import timm
import torch
from safetensors.torch import save_file
from torch.testing import assert_close

from hf_detr.training.backbone_weights import load_backbone_weights

from ..tiny import tiny_detector


@pytest.mark.parametrize("kind", ["safetensors", "pth", "other names"])
def test_weights_are_matched(tmp_path: Path, kind: str) -> None:
    """By name, or by order if the names differ; the classifier's head is ignored."""
    torch.manual_seed(7)
    weights = timm.create_model("test_resnet").state_dict()
    if kind == "other names":
        weights = {f"net.{number}": tensor for number, tensor in enumerate(weights.values())}
        weights = {name: tensor for name, tensor in weights.items() if tensor.ndim}
    file = tmp_path / ("a.safetensors" if kind == "safetensors" else "a.pth")
    if kind == "safetensors":
        save_file({name: tensor.contiguous() for name, tensor in weights.items()}, file)
    else:
        torch.save(weights, file)
    model = tiny_detector()
    load_backbone_weights(model, file)
    network = model.detection_transformer.backbone.conv_encoder["model"]
    given = [tensor for tensor in weights.values() if tensor.ndim]
    for own, expected in zip(network.state_dict().values(), given, strict=False):
        assert_close(own, expected, atol=0, rtol=0)


def test_other_networks_are_refused(tmp_path: Path) -> None:
    """A tensor of another shape is named."""
    weights = timm.create_model("test_resnet").state_dict()
    first = next(iter(weights))
    torch.save({**weights, first: torch.zeros(3, 3)}, tmp_path / "a.pth")
    with pytest.raises(ValueError, match=r"a.pth doesn't match the backbone .*is \(3, 3\)"):
        load_backbone_weights(tiny_detector(), tmp_path / "a.pth")
