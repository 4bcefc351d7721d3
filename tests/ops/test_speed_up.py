"""The operator in other models of transformers: same results, gradients and files, or an error."""

import copy
import inspect
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from torch import Tensor, nn
from torch.testing import assert_close
from transformers.models.deformable_detr import modeling_deformable_detr
from transformers.models.mask2former import modeling_mask2former
from transformers.models.oneformer import modeling_oneformer
from transformers.models.rt_detr_v2 import modeling_rt_detr_v2

from hf_detr import speed_up
from hf_detr.ops import speed_up as module
from hf_detr.ops.speed_up import PixelDecoderAttention, SampledSum

SMALL = {"encoder_ffn_dim": 32, "decoder_ffn_dim": 32, "decoder_layers": 2, "num_queries": 6}
BACKBONE = {
    "embedding_size": 8,
    "hidden_sizes": [8, 8, 16, 16],
    "depths": [1, 1, 1, 1],
    "layer_type": "basic",
    "out_features": ["stage2", "stage3", "stage4"],
}


def make_rt_detr() -> nn.Module:
    config = transformers.RTDetrConfig(
        backbone_config=transformers.RTDetrResNetConfig(**BACKBONE),
        encoder_hidden_dim=32,
        encoder_in_channels=[8, 16, 16],
        d_model=32,
        decoder_in_channels=[32, 32, 32],
        encoder_attention_heads=4,
        decoder_attention_heads=4,
        num_denoising=0,
        **SMALL,
    )
    return transformers.RTDetrForObjectDetection(config)


def make_deformable_detr() -> nn.Module:
    config = transformers.DeformableDetrConfig(
        backbone_config=transformers.ResNetConfig(**BACKBONE),
        d_model=32,
        encoder_layers=1,
        encoder_attention_heads=4,
        decoder_attention_heads=4,
        **SMALL,
    )
    return modeling_deformable_detr.DeformableDetrForObjectDetection(config)


SWIN = {"embed_dim": 8, "depths": [1, 1, 1, 1], "num_heads": [1, 1, 2, 2], "window_size": 4}
STAGES = {"out_features": ["stage1", "stage2", "stage3", "stage4"], "drop_path_rate": 0.0}
SEGMENTER = {
    "backbone_config": transformers.SwinConfig(**SWIN, **STAGES),
    "hidden_dim": 32,
    "num_attention_heads": 4,
    "encoder_feedforward_dim": 32,
    "dim_feedforward": 32,
    "encoder_layers": 2,
    "decoder_layers": 2,
    "num_queries": 6,
}


def make_mask2former() -> nn.Module:
    config = transformers.Mask2FormerConfig(**SEGMENTER, feature_size=32, mask_feature_size=32)
    return transformers.Mask2FormerForUniversalSegmentation(config)


def make_oneformer() -> nn.Module:
    config = transformers.OneFormerConfig(**SEGMENTER, conv_dim=32, mask_dim=32, task_seq_len=8)
    return transformers.OneFormerForUniversalSegmentation(config)


def run(model: nn.Module, images: Tensor, **options: Any) -> dict[str, Tensor]:
    if isinstance(model, transformers.OneFormerForUniversalSegmentation):
        options["task_inputs"] = torch.arange(8)[None].float()
    outputs = model(images, **options)
    names = ("logits", "pred_boxes", "class_queries_logits", "masks_queries_logits")
    return {name: outputs[name] for name in names if outputs.get(name) is not None}


@pytest.mark.parametrize(
    "make", [make_rt_detr, make_deformable_detr, make_mask2former, make_oneformer]
)
def test_same_results_and_gradients(make: Any) -> None:
    """Protects that only the time changes."""
    torch.manual_seed(0)
    model = make().eval()
    with torch.no_grad():  # away from pixels' centres, where the gradient of locations jumps
        for weight in model.parameters():
            weight += 0.02 * torch.randn_like(weight)
    fast = copy.deepcopy(model)
    assert speed_up(fast) is fast
    parts = (SampledSum, PixelDecoderAttention)
    assert sum(isinstance(part, parts) for part in fast.modules()) >= 2
    assert list(model.state_dict()) == list(fast.state_dict())
    images = torch.randn(1 if make is make_oneformer else 2, 3, 96, 128)
    outputs = [run(one, images) for one in (model, fast)]
    assert len(outputs[0]) == 2
    assert_close(outputs[1], outputs[0], atol=1e-5, rtol=1e-4)
    for output in outputs:
        sum(tensor.sigmoid().sum() for tensor in output.values()).backward()
    for (name, one), other in zip(model.named_parameters(), fast.parameters(), strict=True):
        assert (one.grad is None) == (other.grad is None), name
        if one.grad is not None:
            assert_close(other.grad, one.grad, atol=1e-4, rtol=1e-3, msg=name)


@pytest.mark.parametrize(
    "attention",
    [
        modeling_mask2former.Mask2FormerPixelDecoderEncoderMultiscaleDeformableAttention,
        modeling_oneformer.OneFormerPixelDecoderEncoderMultiscaleDeformableAttention,
    ],
)
@pytest.mark.parametrize("coordinates", [2, 4])
def test_attention_of_pixel_decoders(attention: type[nn.Module], coordinates: int) -> None:
    """Protects masks, reference boxes, weights that are asked for, and the mode of training."""
    torch.manual_seed(0)
    theirs = attention(16, 4, 2, 3)
    ours = PixelDecoderAttention(theirs.eval())
    assert not ours.training
    shapes = [(4, 5), (2, 3)]
    states, places = torch.randn(2, 26, 16), torch.randn(2, 26, 16)
    inputs = {
        "hidden_states": states,
        "attention_mask": torch.rand(2, 26) < 0.3,
        "encoder_hidden_states": states,
        "position_embeddings": places,
        "reference_points": torch.rand(2, 26, 2, coordinates),
        "spatial_shapes": torch.tensor(shapes),
        "spatial_shapes_list": shapes,
        "output_attentions": True,
    }
    taken = inspect.signature(type(theirs).forward).parameters
    expected = theirs(**{key: value for key, value in inputs.items() if key in taken})
    assert_close(ours(**inputs), expected)
    del inputs["spatial_shapes_list"]  # OneFormer's call in transformers 5.17
    assert_close(ours(**inputs), expected)
    assert ours(**inputs | {"output_attentions": False})[1] is None
    assert set(taken) <= set(inspect.signature(PixelDecoderAttention.forward).parameters)


def test_files_stay_the_same(tmp_path: Path) -> None:
    """Protects that what is saved loads in plain transformers."""
    model = speed_up(make_rt_detr())
    model.save_pretrained(tmp_path)
    loaded = transformers.RTDetrForObjectDetection.from_pretrained(tmp_path)
    assert not any(isinstance(part, SampledSum) for part in loaded.modules())
    for name, weight in loaded.state_dict().items():
        assert torch.equal(weight, model.state_dict()[name]), name


def test_twice_is_once_and_others_are_refused() -> None:
    """Protects repeated calls, and that a model without the module isn't silently as slow."""
    model = speed_up(make_rt_detr())
    parts = [part for part in model.modules() if isinstance(part, SampledSum)]
    assert [part for part in speed_up(model).modules() if isinstance(part, SampledSum)] == parts
    with pytest.raises(ValueError, match="Sequential has no MultiScaleDeformableAttention"):
        speed_up(nn.Sequential(nn.Linear(2, 2)))
    attention = modeling_rt_detr_v2.RTDetrV2MultiscaleDeformableAttention
    other = nn.Sequential(attention(transformers.RTDetrV2Config()))
    with pytest.raises(ValueError, match="has RTDetrV2.*, which isn't supported"):
        speed_up(other)


def test_transformers_has_one_module_for_all() -> None:
    """Protects that all of its classes of this name compute the same from the same arguments."""
    folder = Path(transformers.models.__path__[0])
    mark = f"class {module.SLOW}("
    files = [f for f in folder.glob("*/modeling_*.py") if mark in f.read_text(encoding="utf-8")]
    assert len(files) > 3
    expected = list(inspect.signature(SampledSum.forward).parameters)
    names = {f"transformers.models.{file.parent.name}.{file.stem}" for file in files}
    classes = [getattr(__import__(name, fromlist=["x"]), module.SLOW) for name in sorted(names)]
    for one in classes:
        assert list(inspect.signature(one.forward).parameters) == expected, one
    shapes = [(4, 5), (2, 3)]
    generator = torch.Generator().manual_seed(0)
    value = torch.randn(2, 26, 2, 4, generator=generator)
    locations = torch.rand(2, 3, 2, 2, 4, 2, generator=generator) * 1.4 - 0.2
    weights = torch.rand(2, 3, 2, 2, 4, generator=generator)
    tensors = torch.tensor(shapes), shapes, torch.tensor([0, 20]), locations, weights, 64
    result = SampledSum()(value, *tensors)
    for one in classes:
        assert_close(one()(value, *tensors), result, atol=1e-5, rtol=1e-5)
