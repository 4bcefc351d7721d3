"""Protects the backbone for many families of timm: features, what is frozen, and its errors."""

from pathlib import Path

import pytest
import torch
from timm import create_model
from torch import Tensor
from transformers import TimmBackboneConfig
from transformers.initialization import meta_device_safe_creation_ops

from hf_detr import DetrConfig, DetrModel
from hf_detr.layers.backbone import Backbone, reset_timm_module

# Small members of families that differ in layout, fused activations, order of modules or naming
FAMILIES = [
    "resnet18",
    "tf_efficientnet_lite0",
    "mobilenetv3_small_100",
    "swin_tiny_patch4_window7_224",  # channels last
    "convnext_atto",
    "regnety_002",
    "resnetv2_18",
    "densenet121",
    "cspresnet50",
    "maxvit_rmlp_pico_rw_256",  # buffers that are in no file
    "dla46_c",  # numbered levels, stem among them
    "hgnetv2_b0",
]
LEVELS = [-4, -3, -2, -1]


def make_backbone(name: str, **changes: object) -> Backbone:
    """A random backbone with the last four levels."""
    torch.manual_seed(0)
    values = {"out_indices": LEVELS, "num_channels": 3, "use_pretrained_backbone": False}
    return Backbone(TimmBackboneConfig(backbone=name, **{**values, **changes}))


def image_for(name: str) -> Tensor:
    """An image of the size that the family needs, else as small as its strides allow."""
    torch.manual_seed(1)
    size = int(name[-3:]) if name[-3:] in ("224", "256") else 64
    return torch.randn(1, 3, size, size)


def plain_model(name: str) -> torch.nn.Module:
    """timm's own model in evaluation, with random statistics of its norms."""
    model = create_model(name, features_only=True, out_indices=LEVELS)
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, torch.nn.BatchNorm2d):
                for tensor in (module.running_mean, module.bias):
                    tensor.copy_(torch.randn(tensor.shape, generator=generator) * 0.2)
                for tensor in (module.running_var, module.weight):
                    tensor.copy_(torch.rand(tensor.shape, generator=generator) + 0.5)
    return model.eval()


@pytest.mark.parametrize("name", FAMILIES)
def test_features_equal_timm(name: str) -> None:
    """Protects values (fused activations kept), channels first, and announced widths, strides."""
    backbone, plain = make_backbone(name).eval(), plain_model(name)
    weights = plain.state_dict()
    missing = backbone.conv_encoder["model"].load_state_dict(weights, strict=False)
    assert not missing.missing_keys
    assert all(key.endswith("num_batches_tracked") for key in missing.unexpected_keys)
    image = image_for(name)
    with torch.no_grad():
        features, expected = backbone(image), plain(image)
    info = plain.feature_info
    assert backbone.num_channels == info.channels() and backbone.reductions == info.reduction()
    for feature, theirs, channels, stride in zip(
        features, expected, info.channels(), info.reduction(), strict=True
    ):
        side = image.shape[-1] // stride
        assert feature.shape == (1, channels, side, side)
        if theirs.shape != feature.shape:
            theirs = theirs.permute(0, 3, 1, 2)
        scale = theirs.abs().max().item()  # deep random networks blur small values in float32
        torch.testing.assert_close(feature, theirs, atol=1e-3 * scale, rtol=0)


@pytest.mark.parametrize("name", FAMILIES)
def test_stem_and_first_stage_are_frozen(name: str) -> None:
    """Protects freezing by depth: frozen is exactly what the first map of stride 4 depends on.

    Autograd decides: a parameter without gradient from that map is behind it.
    """
    backbone = make_backbone(name).eval()
    frozen = {n for n, p in backbone.named_parameters() if not p.requires_grad}
    backbone.freeze(num_stages=0)
    names, parameters = zip(*backbone.named_parameters(), strict=True)
    first = next(i for i, stride in enumerate(backbone.reductions) if stride >= 4)
    feature = backbone(image_for(name))[first]
    gradients = torch.autograd.grad(feature.sum(), parameters, allow_unused=True)
    before = {n for n, gradient in zip(names, gradients, strict=True) if gradient is not None}
    assert frozen == before
    assert 0 < len(frozen) < len(names)


def trainable(backbone: Backbone) -> set[str]:
    """First parts of the names of all parameters that train."""
    names = (name for name, p in backbone.named_parameters() if p.requires_grad)
    return {name.removeprefix("conv_encoder.model.").split(".")[0] for name in names}


def test_freeze_any_number_of_stages() -> None:
    """Protects 0 (all train), n stages, more than there are, and None (nothing trains)."""
    backbone = make_backbone("resnet18")
    everything = {"conv1", "layer1", "layer2", "layer3", "layer4"}
    assert trainable(backbone) == {"layer2", "layer3", "layer4"}
    backbone.freeze()
    assert trainable(backbone) == set()
    backbone.freeze(0)
    assert trainable(backbone) == everything
    backbone.freeze(2)
    assert trainable(backbone) == {"layer3", "layer4"}
    backbone.freeze(9)
    assert trainable(backbone) == set()
    backbone.freeze(1)
    assert trainable(backbone) == {"layer2", "layer3", "layer4"}


@pytest.mark.parametrize(
    "name", ["tf_efficientnet_lite0", "mobilenetv3_small_100", "resnet18", "dla46_c"]
)
def test_what_trains_has_a_gradient(name: str) -> None:
    """Protects distributed training, which waits for gradients of all trained parameters."""
    backbone = make_backbone(name, out_indices=[2])
    backbone.freeze(0)
    sum(feature.sum() for feature in backbone(image_for(name))).backward()
    trained = {n: p for n, p in backbone.named_parameters() if p.requires_grad}
    assert trained and not [n for n, p in trained.items() if p.grad is None]
    all_levels = make_backbone(name)
    all_levels.freeze(0)
    assert all(p.requires_grad for p in all_levels.parameters())


@pytest.mark.parametrize("name", ["tf_efficientnet_lite0", "mobilenetv3_small_100"])
def test_blocks_behind_the_last_map_are_left_out(name: str) -> None:
    """Protects files and time: timm keeps and runs these blocks, whose maps nothing uses."""
    backbone, whole = make_backbone(name, out_indices=[-2]).eval(), make_backbone(name).eval()
    weights, own = whole.state_dict(), backbone.state_dict()
    assert own.keys() < weights.keys()
    backbone.load_state_dict({key: weights[key] for key in own})
    image = image_for(name)
    with torch.no_grad():
        torch.testing.assert_close(backbone(image)[0], whole(image)[-2])


def test_freezing_does_not_depend_on_the_levels_returned() -> None:
    """Protects that stage 1 is that of the network, also if only the last map is returned."""
    backbone = make_backbone("resnet18", out_indices=[-1])
    assert len(backbone(image_for("resnet18"))) == 1
    assert trainable(backbone) == {"layer2", "layer3", "layer4"}


@pytest.mark.parametrize("name", ["resnet18", "tf_efficientnet_lite0"])
def test_norm_statistics_never_change(name: str) -> None:
    """Protects the ImageNet statistics in training, and that norms hold no parameters."""
    backbone = make_backbone(name)
    backbone.freeze(num_stages=0)
    before = {key: tensor.clone() for key, tensor in backbone.state_dict().items()}
    image = 3 + 5 * image_for(name).expand(2, -1, -1, -1)
    trained = backbone.train()(image)
    for key, tensor in backbone.state_dict().items():
        assert torch.equal(tensor, before[key]), key
    for training, inference in zip(trained, backbone.eval()(image), strict=True):
        torch.testing.assert_close(training, inference, atol=1e-5, rtol=1e-5)
    assert all(p.ndim > 1 for n, p in backbone.named_parameters() if "bn" in n)
    assert not any(key.endswith("num_batches_tracked") for key in before)


def test_output_stride_16_is_dc5() -> None:
    """Protects that the last stage keeps its resolution, with weights of the same names."""
    backbone = make_backbone("resnet18", output_stride=16)
    assert backbone.reductions == [4, 8, 16, 16]
    sides = [feature.shape[-1] for feature in backbone(image_for("resnet18"))]
    assert sides == [16, 8, 4, 4]
    assert backbone.state_dict().keys() == make_backbone("resnet18").state_dict().keys()


def test_number_of_input_channels() -> None:
    """Protects images with other than three channels."""
    backbone = make_backbone("resnet18", num_channels=1)
    assert backbone(torch.randn(1, 1, 64, 64))[-1].shape == (1, 512, 2, 2)


@pytest.mark.parametrize("name", ["resnet18", "regnety_002", "maxvit_rmlp_pico_rw_256"])
def test_built_on_the_meta_device(name: str) -> None:
    """Protects loading as from_pretrained does it: buffers that are in no file are restored."""
    original = make_backbone(name).eval()
    with torch.device("meta"), meta_device_safe_creation_ops():
        backbone = make_backbone(name, use_pretrained_backbone=True)  # no weights are fetched
    assert all(parameter.is_meta for parameter in backbone.parameters())
    frozen = {n for n, p in original.named_parameters() if not p.requires_grad}
    assert {n for n, p in backbone.named_parameters() if not p.requires_grad} == frozen

    backbone = backbone.to_empty(device="cpu").eval()
    with torch.no_grad():
        for tensor in (*backbone.parameters(), *backbone.buffers()):
            tensor.fill_(float("nan") if tensor.is_floating_point() else 0)
    backbone.load_state_dict(original.state_dict())
    backbone.restore_buffers()
    image = image_for(name)
    with torch.no_grad():
        for got, expected in zip(backbone(image), original(image), strict=True):
            torch.testing.assert_close(got, expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("name", ["resnet18", "regnety_002", "swin_tiny_patch4_window7_224"])
def test_loaded_weights_and_tables_stay(name: str, tmp_path: Path) -> None:
    """Protects trained weights: no module of timm initialises its own again after loading."""
    torch.manual_seed(0)
    sizes = {"d_model": 8, "encoder_layers": 1, "decoder_layers": 1, "num_queries": 2}
    model = DetrModel(DetrConfig(backbone=name, auxiliary_loss=False, **sizes))
    with torch.no_grad():
        for parameter in model.backbone.parameters():
            parameter.add_(0.01)
    model.save_pretrained(tmp_path)
    loaded = DetrModel.from_pretrained(tmp_path)
    for kind in ("named_parameters", "named_buffers"):
        expected = dict(getattr(model.backbone, kind)())
        got = dict(getattr(loaded.backbone, kind)())
        assert got.keys() == expected.keys()
        changed = [key for key in expected if not torch.equal(got[key], expected[key])]
        assert changed == []


def test_missing_norms_start_as_the_identity() -> None:
    """Protects norms that a checkpoint lacks: weight 1, bias 0, mean 0, variance 1."""
    with torch.device("meta"):
        backbone = make_backbone("resnet18")
    backbone = backbone.to_empty(device="cpu")
    for buffer in backbone.buffers():
        buffer.fill_(float("nan"))
    norm = backbone.conv_encoder["model"].bn1
    reset_timm_module(norm)
    assert (norm.weight == 1).all() and (norm.running_var == 1).all()
    assert (norm.bias == 0).all() and (norm.running_mean == 0).all()


@pytest.mark.parametrize("name", ["resnet18", "swin_tiny_patch4_window7_224"])
def test_output_norms(name: str) -> None:
    """`output_norm` normalises each map, starts as the identity, and freezes with the rest."""
    backbone = make_backbone(name, out_indices=[-2, -1], output_norm=True)
    assert list(backbone.conv_encoder["norms"]) == [
        str(len(backbone.conv_encoder["model"].feature_info.info) + index) for index in (-2, -1)
    ]
    with torch.no_grad():
        for feature in backbone(torch.randn(1, 3, 100, 140)):
            torch.testing.assert_close(
                feature.mean(1),
                feature.new_zeros(()).expand(feature[:, 0].shape),
                atol=1e-4,
                rtol=0,
            )
            torch.testing.assert_close(
                feature.var(1, correction=0).mean().item(), 1.0, atol=0.05, rtol=0
            )
    norm = backbone.conv_encoder["norms"]["3"]
    assert norm.weight.requires_grad
    backbone.freeze()
    assert not norm.weight.requires_grad
    with torch.no_grad():
        norm.weight.fill_(float("nan"))
    reset_timm_module(norm)
    assert (norm.weight == 1).all()


WRONG = {
    "unknown name": ({"backbone": "resnet81"}, "resnet81.*Unknown model.*timm.list_models"),
    "unknown level": ({"out_indices": [7]}, r"resnet18.*out_indices=\[7\]"),
    "impossible stride": ({"output_stride": 7}, "resnet18.*output_stride=7"),
}


@pytest.mark.parametrize("case", WRONG)
def test_errors_in_words(case: str) -> None:
    """Protects the error for a backbone that can't be built: its name and options."""
    changes, message = WRONG[case]
    with pytest.raises(ValueError, match=message):
        make_backbone(**{"name": changes.pop("backbone", "resnet18"), **changes})


def test_unavailable_pretrained_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    """Protects from random weights instead of pretrained ones; the error names offline mode."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(ValueError, match="resnet18.*pretrained=True") as error:
        make_backbone("resnet18", use_pretrained_backbone=True)
    assert "HF_HUB_OFFLINE" in str(error.value) or "offline" in str(error.value).lower()
