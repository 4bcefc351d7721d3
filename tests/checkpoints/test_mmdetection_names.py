"""Weight names and recorded outputs of MMDetection 2.10.0, 2.28.2 and 3.3.0 and of detrex.

MMDetection 2.28.2 and 2.10.0 ran with mmcv 1.7.2; 2.7.0 has the names and outputs of 2.10.0.
detrex's outputs were recorded from the three models of IDEA-Research/detrex of 2022 and 2023
(projects/detr, conditional_detr and deformable_detr), rewritten without its compiled parts: with
the ResNet of detectron2 0.6 and the deformable attention of mmcv 1.7.2, from which detrex's was
derived. As in detrex's evaluation, no part of the images was masked.
"""

import json
import re
from collections.abc import Sequence
from pathlib import Path

import pytest
import timm
import torch
from safetensors.torch import load_file
from torch import Tensor
from torch.testing import assert_close

from hf_detr import convert_official_checkpoint
from hf_detr.checkpoints.mmdetection_names import (
    check_settings,
    from_detrex,
    has_detrex_names,
    has_mmdetection_names,
    with_official_names,
)

from ..some_weights import batch, named_weights

FIXTURES = Path(__file__).parents[1] / "fixtures"
# Small models by kind: a ResNet-18, 2 + 2 layers with 256 channels and 8 heads.
SHAPES = {
    (version, kind): shapes
    for version in ("mmdetection", "mmdetection2")
    for kind, shapes in json.loads((FIXTURES / f"{version}_shapes.json").read_text()).items()
}
DETREX_SHAPES = json.loads((FIXTURES / "detrex_shapes.json").read_text())
DETECTRON2, TORCHVISION = DETREX_SHAPES.pop("backbone"), DETREX_SHAPES.pop("torchvision backbone")


def backbone_shapes() -> dict[str, Sequence[int]]:
    """MMDetection names the weights of a ResNet as torchvision does."""
    with torch.device("meta"):
        model = timm.create_model("resnet18", features_only=True)
    return {f"backbone.{name}": tuple(t.shape) for name, t in model.state_dict().items()}


def assert_recorded_outputs(
    content: dict, kind: str, fixture: str, inputs: tuple[Tensor, ...], folder: Path
) -> None:
    """Convert a checkpoint and compare its outputs with recorded ones."""
    torch.save(content, folder / "model.pth")
    model = convert_official_checkpoint(
        folder / "model.pth", folder / "hub", dilation=False, num_heads=8
    )
    assert getattr(model.config, "with_box_refine", False) == (kind in ("refine", "two stages"))
    model.config.two_stage_num_proposals = 7  # no weight shows the number
    expected = load_file(FIXTURES / f"{fixture}_outputs.safetensors")
    with torch.no_grad():
        output = model(*inputs)
    assert_close(output.logits, expected[f"{kind}/logits"], atol=5e-4, rtol=0)
    assert_close(output.pred_boxes, expected[f"{kind}/boxes"], atol=5e-5, rtol=0)


def assert_rejected(
    weights: dict[str, Tensor], former: str, latter: str | None, message: str, folder: Path
) -> None:
    """Remove a weight, or add a copy with another name, and check the error."""
    if latter is None:
        del weights[former]
    else:
        weights[latter] = weights[former]
    torch.save(weights, folder / "model.pth")
    with pytest.raises(ValueError, match=message):
        convert_official_checkpoint(
            folder / "model.pth", folder / "hub", dilation=False, num_heads=8
        )
    assert not (folder / "hub").exists()


@pytest.mark.parametrize(("version", "kind"), SHAPES)
def test_recorded_outputs(version: str, kind: str, tmp_path: Path) -> None:
    """All weights are converted, and equal weights give equal predictions."""
    weights = named_weights(backbone_shapes() | SHAPES[version, kind])
    assert has_mmdetection_names(weights)
    content = {"meta": {"epoch": 50}, "state_dict": weights}
    assert_recorded_outputs(content, kind, version, batch(), tmp_path)


def test_names() -> None:
    """Extra levels of the neck follow the levels of the backbone; unknown names don't change."""
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
    """Missing, unexpected and duplicate weights are named in the error."""
    weights = named_weights(backbone_shapes() | SHAPES["mmdetection2", "detr"])
    prefix = "bbox_head.transformer."
    latter = latter and prefix + latter
    assert_rejected(weights, prefix + former, latter, message, tmp_path)


def test_dilation_is_rejected(tmp_path: Path) -> None:
    """Dilation is rejected, because MMDetection dilates differently than torchvision."""
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
def test_unsupported_settings_are_rejected(text: str, found: str | None, key: str) -> None:
    """Unsupported settings are found in the configuration stored in the file, if any."""
    if found is None:
        check_settings({key: text})
    else:
        with pytest.raises(ValueError, match=re.escape(f"configuration contains {found}")):
            check_settings({key: text})
    for meta in (None, {}, {"config": 5}, "style='caffe'"):
        check_settings(meta)


def test_settings_in_a_file(tmp_path: Path) -> None:
    """A file with an unsupported configuration is rejected before anything is written."""
    weights = named_weights({"bbox_head.fc_cls.weight": [6, 256]})
    content = {"meta": {"config": "style='caffe'"}, "state_dict": weights}
    torch.save(content, tmp_path / "model.pth")
    with pytest.raises(ValueError, match="style='caffe'"):
        convert_official_checkpoint(tmp_path / "model.pth", tmp_path / "hub")


def detrex_weights() -> dict[str, Tensor]:
    return named_weights(DETECTRON2 | DETREX_SHAPES["detr"])


@pytest.mark.parametrize("kind", [*DETREX_SHAPES, "detr torchvision"])
def test_detrex_recorded_outputs(kind: str, tmp_path: Path) -> None:
    """All weights are converted, and equal weights give equal predictions."""
    backbone = TORCHVISION if kind == "detr torchvision" else DETECTRON2
    weights = named_weights(backbone | DETREX_SHAPES[kind.removesuffix(" torchvision")])
    assert has_detrex_names(weights)
    content = {"model": weights, "iteration": 9}
    assert_recorded_outputs(content, kind, "detrex", batch()[:1], tmp_path)


def test_detrex_names() -> None:
    """The constants of the loss are dropped; unknown names don't change."""
    conditional = "transformer.decoder.layers.1.attentions.{}_proj.weight"
    names = [conditional.format(part) for part in ("0.key_pos", "1.query_pos_sine", "1.value")]
    names += ["criterion.empty_weight", "backbone.res5.0.shortcut.norm.bias", "other.weight"]
    names += [conditional.format("0.query_content")]
    official = from_detrex({name: torch.zeros(1) for name in names})
    layer = "transformer.decoder.layers.1"
    assert list(official) == [
        *(f"{layer}.sa_kpos_proj.weight", f"{layer}.ca_qpos_sine_proj.weight"),
        *(f"{layer}.ca_v_proj.weight", "backbone.0.body.layer4.0.downsample.1.bias"),
        *("other.weight", f"{layer}.sa_qcontent_proj.weight"),
    ]
    assert not has_detrex_names(["transformer.encoder.layers.0.self_attn.in_proj_weight"])


@pytest.mark.parametrize(
    ("former", "latter", "message"),
    [
        (
            "backbone.res3.1.conv2.norm.bias",
            None,
            r"lacks: backbone\.0\.body\.layer2\.1\.bn2\.bias",
        ),
        (
            "transformer.encoder.layers.0.ffns.0.layers.1.bias",
            "transformer.encoder.layers.0.ffns.0.layers.0.1.weight",  # PReLU's
            r"has unknown: transformer\.encoder\.layers\.0\.ffn\.layers\.0\.1\.weight",
        ),
        (
            "transformer.encoder.layers.0.norms.0.bias",
            "transformer.encoder.post_norm_layer.weight",
            r"has unknown: transformer\.encoder\.post_norm_layer\.weight",
        ),
        ("backbone.stem.conv1.weight", "backbone.body.conv1.weight", "names of the same weight"),
    ],
)
def test_detrex_wrong_names(former: str, latter: str | None, message: str, tmp_path: Path) -> None:
    """Missing, unexpected and duplicate weights are named in the error."""
    assert_rejected(detrex_weights(), former, latter, message, tmp_path)


def test_detrex_dilation(tmp_path: Path) -> None:
    """Dilation is rejected for detectron2's ResNet and accepted for torchvision's."""
    torch.save({"model": detrex_weights()}, tmp_path / "detectron2.pth")
    with pytest.raises(ValueError, match="detectron2, which dilates the first block"):
        convert_official_checkpoint(
            tmp_path / "detectron2.pth", tmp_path / "hub", dilation=True, num_heads=8
        )
    file = tmp_path / "detr_r50_dc5.pth"
    torch.save({"model": named_weights(TORCHVISION | DETREX_SHAPES["detr"])}, file)
    assert convert_official_checkpoint(file, tmp_path / "hub").config.dilation
