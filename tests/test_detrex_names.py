"""detrex's checkpoints: names and answers of its models.

They were recorded of the three models as IDEA-Research/detrex has them in 2022 and 2023
(projects/detr, conditional_detr and deformable_detr), written down again without its compiled
parts: with the ResNet of detectron2 0.6 itself, and mmcv 1.7.2's deformable attention, from which
detrex's was made. As detrex does when it evaluates, nothing of the images was masked.
"""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor
from torch.testing import assert_close

from hf_detr import convert_official_checkpoint
from hf_detr.detrex_names import from_detrex, has_detrex_names

from .some_weights import batch, named_weights

FIXTURES = Path(__file__).parent / "fixtures"
# Small models of one ResNet-18, 2 + 2 layers of 256 channels and 8 heads, by kind.
SHAPES = json.loads((FIXTURES / "detrex_shapes.json").read_text())
DETECTRON2, TORCHVISION = SHAPES.pop("backbone"), SHAPES.pop("torchvision backbone")


def detr_weights() -> dict[str, Tensor]:
    return named_weights(DETECTRON2 | SHAPES["detr"])


@pytest.mark.parametrize("kind", [*SHAPES, "detr torchvision"])
def test_recorded_outputs(kind: str, tmp_path: Path) -> None:
    """Every weight has its place, and with the same weights come the same predictions."""
    backbone = TORCHVISION if kind == "detr torchvision" else DETECTRON2
    weights = named_weights(backbone | SHAPES[kind.removesuffix(" torchvision")])
    assert has_detrex_names(weights)
    torch.save({"model": weights, "iteration": 9}, tmp_path / "model.pth")
    model = convert_official_checkpoint(
        tmp_path / "model.pth", tmp_path / "hub", dilation=False, num_heads=8
    )
    assert getattr(model.config, "with_box_refine", False) == (kind in ("refine", "two stages"))
    model.config.two_stage_num_proposals = 7  # no weight shows how many
    expected = load_file(FIXTURES / "detrex_outputs.safetensors")
    with torch.no_grad():
        output = model(batch()[0])
    assert_close(output.logits, expected[f"{kind}/logits"], atol=5e-4, rtol=0)
    assert_close(output.pred_boxes, expected[f"{kind}/boxes"], atol=5e-5, rtol=0)


def test_names() -> None:
    """The loss's constants go, strangers stay."""
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
def test_wrong_names(former: str, latter: str | None, message: str, tmp_path: Path) -> None:
    """A weight too few, too many or there twice is named."""
    weights = detr_weights()
    if latter is None:
        del weights[former]
    else:
        weights[latter] = weights[former]
    torch.save(weights, tmp_path / "model.pth")
    with pytest.raises(ValueError, match=message):
        convert_official_checkpoint(
            tmp_path / "model.pth", tmp_path / "hub", dilation=False, num_heads=8
        )
    assert not (tmp_path / "hub").exists()


def test_dilation(tmp_path: Path) -> None:
    """detectron2's dilated stage isn't torchvision's, which detrex's DC5 models have."""
    torch.save({"model": detr_weights()}, tmp_path / "detectron2.pth")
    with pytest.raises(ValueError, match="detectron2, which dilates the first block"):
        convert_official_checkpoint(
            tmp_path / "detectron2.pth", tmp_path / "hub", dilation=True, num_heads=8
        )
    file = tmp_path / "detr_r50_dc5.pth"
    torch.save({"model": named_weights(TORCHVISION | SHAPES["detr"])}, file)
    assert convert_official_checkpoint(file, tmp_path / "hub").config.dilation
