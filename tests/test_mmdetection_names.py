"""MMDetection's checkpoints: names of versions 2.10.0, 2.28.2 and 3.3.0, and their models' answers.

2.28.2 and 2.10.0 ran with mmcv 1.7.2; 2.7.0 has the names and answers of 2.10.0.
"""

import json
import re
from collections.abc import Sequence
from pathlib import Path

import pytest
import timm
import torch
from safetensors.torch import load_file
from torch.testing import assert_close

from hf_detr import convert_official_checkpoint
from hf_detr.mmdetection_names import (
    has_mmdetection_names,
    refuse_other_settings,
    with_official_names,
)

from .some_weights import batch, named_weights

FIXTURES = Path(__file__).parent / "fixtures"
# Small models of one ResNet-18, 2 + 2 layers of 256 channels and 8 heads, by kind.
SHAPES = {
    (version, kind): shapes
    for version in ("mmdetection", "mmdetection2")
    for kind, shapes in json.loads((FIXTURES / f"{version}_shapes.json").read_text()).items()
}


def backbone_shapes() -> dict[str, Sequence[int]]:
    """Both libraries call a ResNet's weights as torchvision does."""
    with torch.device("meta"):
        model = timm.create_model("resnet18", features_only=True)
    return {f"backbone.{name}": tuple(t.shape) for name, t in model.state_dict().items()}


@pytest.mark.parametrize(("version", "kind"), SHAPES)
def test_recorded_outputs(version: str, kind: str, tmp_path: Path) -> None:
    """Every weight has its place, and with the same weights come the same predictions."""
    weights = named_weights(backbone_shapes() | SHAPES[version, kind])
    assert has_mmdetection_names(weights)
    torch.save({"meta": {"epoch": 50}, "state_dict": weights}, tmp_path / "model.pth")
    model = convert_official_checkpoint(
        tmp_path / "model.pth", tmp_path / "hub", dilation=False, num_heads=8
    )
    assert getattr(model.config, "with_box_refine", False) == (kind in ("refine", "two stages"))
    model.config.two_stage_num_proposals = 7  # no weight shows how many
    expected = load_file(FIXTURES / f"{version}_outputs.safetensors")
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


@pytest.mark.parametrize(
    ("former", "latter", "message"),
    [
        ("encoder.layers.1.norms.1.bias", None, "lacks: transformer.encoder.layers.1.norm2.bias"),
        (
            "decoder.layers.0.ffns.0.layers.1.bias",
            "decoder.layers.0.ffns.1.layers.1.bias",
            "has unknown: transformer.decoder.layers.0.ffns.1.layers.1.bias",
        ),
        (
            "decoder.layers.0.attentions.1.attn.in_proj_bias",
            "decoder.layers.0.multihead_attn.attn.in_proj_bias",
            "are names of the same weight",
        ),
    ],
)
def test_wrong_names(former: str, latter: str | None, message: str, tmp_path: Path) -> None:
    """A weight too few, too many or there twice is named."""
    weights = named_weights(backbone_shapes() | SHAPES["mmdetection2", "detr"])
    weight = weights[f"bbox_head.transformer.{former}"]
    if latter is None:
        del weights[f"bbox_head.transformer.{former}"]
    else:
        weights[f"bbox_head.transformer.{latter}"] = weight
    torch.save({"state_dict": weights}, tmp_path / "model.pth")
    with pytest.raises(ValueError, match=message):
        convert_official_checkpoint(
            tmp_path / "model.pth", tmp_path / "hub", dilation=False, num_heads=8
        )
    assert not (tmp_path / "hub").exists()


def test_dilation_is_refused(tmp_path: Path) -> None:
    """MMDetection's dilated stage isn't torchvision's, whether an argument or the name asks."""
    file = tmp_path / "detr_r50_dc5.pth"
    torch.save(named_weights(backbone_shapes() | SHAPES["mmdetection2", "detr"]), file)
    with pytest.raises(ValueError, match="MMDetection, which dilates the first block"):
        convert_official_checkpoint(file, tmp_path / "hub")


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("model = dict(backbone=dict(style='pytorch', depth=50))", None),
        ("mean=[123.675, 116.28,\n 103.53], std=[58.395, 57.12, 57.375], to_rgb=True", None),
        ("backbone=dict(style='caffe')", "style='caffe'"),
        ("data_preprocessor=dict(bgr_to_rgb=False)", "to_rgb=False"),
        ("mean=[103.53, 116.28, 123.675], std=[1.0, 1.0, 1.0]", "mean=[103.53, 116.28, 123.675]"),
        ("std=[1.0, 1.0, 1.0]", "std=[1.0, 1.0, 1.0]"),
    ],
)
@pytest.mark.parametrize("key", ["config", "cfg"])
def test_other_settings_are_refused(text: str, found: str | None, key: str) -> None:
    """What weights don't show is read off the configuration, where the file has one."""
    if found is None:
        refuse_other_settings({key: text})
    else:
        with pytest.raises(ValueError, match=re.escape(f"configuration says {found}.")):
            refuse_other_settings({key: text})
    for meta in (None, {}, {"config": 5}, "style='caffe'"):
        refuse_other_settings(meta)


def test_settings_in_a_file(tmp_path: Path) -> None:
    """A file is refused for its configuration before anything is written."""
    weights = named_weights({"bbox_head.fc_cls.weight": [6, 256]})
    content = {"meta": {"config": "style='caffe'"}, "state_dict": weights}
    torch.save(content, tmp_path / "model.pth")
    with pytest.raises(ValueError, match="style='caffe'"):
        convert_official_checkpoint(tmp_path / "model.pth", tmp_path / "hub")
