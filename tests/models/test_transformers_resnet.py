"""Files with transformers' own ResNet give the same predictions; saved they have timm's names."""

from pathlib import Path

import pytest
import torch
import transformers
from safetensors.torch import load_file
from torch.testing import assert_close
from transformers import AutoModelForObjectDetection, ResNetConfig

from hf_detr.models.transformers_resnet import BLOCKS, WIDTHS

from ..tiny import IN_TRANSFORMERS, class_of, padded_batch, tiny_config

LEVELS = ["stage1", "stage2", "stage3", "stage4"]


def save_with_their_resnet(variant: str, resnet: ResNetConfig, folder: Path) -> torch.nn.Module:
    """Save transformers' model with its own backbone and random statistics of batch norm."""
    values = tiny_config(variant).to_dict()
    for name in ("backbone_config", "model_type", "architectures", "transformers_version"):
        values.pop(name)
    config = class_of(variant, "Config", transformers)(
        **values, use_timm_backbone=False, backbone_config=resnet
    )
    torch.manual_seed(0)
    model = class_of(variant, "ForObjectDetection", transformers)(config).eval()
    for name, buffer in model.named_buffers():
        if name.endswith(("running_mean", "running_var")):
            torch.nn.init.uniform_(buffer, 0.5, 1.5)
    model.save_pretrained(folder)
    return model


@torch.no_grad()
@pytest.mark.parametrize("variant", IN_TRANSFORMERS)
@pytest.mark.parametrize(
    "layer_type, depths", [("basic", [2, 2, 2, 2]), ("bottleneck", [3, 4, 6, 3])]
)
def test_same_predictions(variant: str, layer_type: str, depths: list[int], tmp_path: Path) -> None:
    """Loaded here, saved and loaded again, logits are within 1e-4 of transformers', boxes 1e-5."""
    resnet = ResNetConfig(
        layer_type=layer_type, depths=depths, hidden_sizes=WIDTHS[layer_type], out_features=LEVELS
    )
    theirs = save_with_their_resnet(variant, resnet, tmp_path)
    ours, info = AutoModelForObjectDetection.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(info.values()), info
    assert ours.config.backbone == BLOCKS[layer_type, tuple(depths)]
    ours.save_pretrained(tmp_path / "saved")
    assert not any("embedder" in name for name in load_file(tmp_path / "saved/model.safetensors"))
    again = AutoModelForObjectDetection.from_pretrained(tmp_path / "saved")
    pixel_values, pixel_mask = padded_batch()
    expected = theirs(pixel_values=pixel_values, pixel_mask=pixel_mask)
    for model in (ours, again):
        output = model.eval()(pixel_values, pixel_mask)
        assert_close(output.logits, expected.logits, atol=1e-4, rtol=0)
        assert_close(output.pred_boxes, expected.pred_boxes, atol=1e-5, rtol=0)


@pytest.mark.parametrize(
    "changes",
    [{"depths": [1, 1, 1, 1]}, {"embedding_size": 32}, {"downsample_in_bottleneck": True}],
    ids=str,
)
def test_other_resnets_are_refused(changes: dict) -> None:
    """A ResNet that timm doesn't have isn't read as another one."""
    resnet = ResNetConfig(**changes).to_dict()
    with pytest.raises(ValueError, match="which timm doesn't have; only resnet18"):
        class_of("detr", "Config")(use_timm_backbone=False, backbone_config=resnet)


def test_other_shapes_are_refused(tmp_path: Path) -> None:
    """Weights that don't fit the configuration are refused as in other files."""
    resnet = ResNetConfig(
        layer_type="basic", depths=[2] * 4, hidden_sizes=WIDTHS["basic"], out_features=LEVELS
    )
    save_with_their_resnet("detr", resnet, tmp_path)
    with pytest.raises(ValueError, match="weights don't match"):
        AutoModelForObjectDetection.from_pretrained(tmp_path, num_queries=3)
