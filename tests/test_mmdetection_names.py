"""MMDetection's checkpoints: the names of version 3.3.0, and what its models answered."""

import json
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from safetensors.torch import load_file
from torch import Tensor
from torch.testing import assert_close

from hf_detr import convert_official_checkpoint
from hf_detr.mmdetection_names import has_mmdetection_names, with_official_names

FIXTURES = Path(__file__).parent / "fixtures"
# Small models of one ResNet-18, 2 + 2 layers of 256 channels and 8 heads: kind -> name -> shape.
SHAPES = json.loads((FIXTURES / "mmdetection_shapes.json").read_text())


def named_weights(shapes: Mapping[str, Sequence[int]]) -> dict[str, Tensor]:
    """Weights that depend on names and shapes alone, on every machine."""
    weights = {}
    for name, shape in shapes.items():
        noise = np.random.RandomState(zlib.crc32(name.encode())).standard_normal(shape)
        if name.endswith("running_var"):
            noise = 0.5 + np.abs(noise)
        elif len(shape) > 1:
            noise = noise / np.sqrt(np.prod(shape[1:]))
        else:
            noise = 0.1 * noise + (name.endswith("weight"))
        weights[name] = torch.from_numpy(np.asarray(noise, dtype=np.float32))
    return weights


def batch() -> tuple[Tensor, Tensor]:
    """Two images of which the second is padded."""
    noise = np.random.RandomState(0).standard_normal((2, 3, 128, 160))
    pixel_mask = torch.ones(2, 128, 160, dtype=torch.long)
    pixel_mask[1, 110:] = 0
    pixel_mask[1, :, 130:] = 0
    return torch.from_numpy(noise).float() * pixel_mask[:, None], pixel_mask


def backbone_shapes() -> dict[str, Sequence[int]]:
    """Both libraries call a ResNet's weights as torchvision does."""
    with torch.device("meta"):
        model = timm.create_model("resnet18", features_only=True)
    return {f"backbone.{name}": tuple(t.shape) for name, t in model.state_dict().items()}


@pytest.mark.parametrize("kind", SHAPES)
def test_recorded_outputs(kind: str, tmp_path: Path) -> None:
    """Every weight has its place, and with the same weights come the same predictions."""
    weights = named_weights(backbone_shapes() | SHAPES[kind])
    assert has_mmdetection_names(weights)
    torch.save({"meta": {"epoch": 50}, "state_dict": weights}, tmp_path / "model.pth")
    model = convert_official_checkpoint(
        tmp_path / "model.pth", tmp_path / "hub", dilation=False, num_heads=8
    )
    model.config.two_stage_num_proposals = 7  # no weight shows how many
    expected = load_file(FIXTURES / "mmdetection_outputs.safetensors")
    with torch.no_grad():
        output = model(*batch())
    assert_close(output.logits, expected[f"{kind}/logits"], atol=5e-4, rtol=0)
    assert_close(output.pred_boxes, expected[f"{kind}/boxes"], atol=5e-5, rtol=0)


def test_names() -> None:
    """Levels that the neck adds follow the backbone's; strangers keep their names."""
    names = ["level_embed", "neck.convs.0.conv.weight", "neck.convs.1.gn.bias"]
    names += ["neck.extra_convs.1.conv.bias", "decoder.layers.0.norms.0.bias", "other.weight"]
    weights = {name: torch.full((3, 2), float(i)) for i, name in enumerate(names)}
    official = with_official_names(weights)
    assert list(official) == [
        *("transformer.level_embed", "input_proj.0.0.weight", "input_proj.1.1.bias"),
        *("input_proj.3.0.bias", "transformer.decoder.layers.0.norm2.bias", "other.weight"),
        "input_proj.0.0.bias",
    ]
    assert_close(official.pop("input_proj.0.0.bias"), torch.zeros(3))
    assert [tensor[0, 0] for tensor in official.values()] == list(range(6))
    assert not has_mmdetection_names(["class_embed.weight"])
