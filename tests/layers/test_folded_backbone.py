"""Protects folded norms: same features, unchanged weights, and no outdated copies."""

import copy
import pickle
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.profiler import ProfilerActivity, profile

from hf_detr.layers import folded_backbone
from hf_detr.layers.backbone import Backbone
from hf_detr.layers.folded_backbone import find_pairs, fold_pair
from hf_detr.layers.onednn import has_fast_onednn

from ..tiny import padded_batch, tiny_detector
from .test_backbone import image_for, make_backbone, plain_model


@pytest.fixture(autouse=True)
def folded_whatever_the_size(monkeypatch: pytest.MonkeyPatch) -> None:
    """The images of these tests are small."""
    monkeypatch.setattr(folded_backbone, "LEAST_PIXELS", 0)


def seen_backbone(name: str = "test_resnet", **changes: object) -> Backbone:
    """A backbone in evaluation whose norms have statistics of their own."""
    backbone = make_backbone(name, **changes)
    weights = plain_model(name).state_dict()
    backbone.conv_encoder["model"].load_state_dict(weights, strict=False)
    return backbone.eval()


def folded_pairs(backbone: Backbone, image: Tensor) -> list[tuple[str, str]]:
    network = backbone.conv_encoder["model"]
    tensors = [*network.parameters(), *network.buffers()]
    return find_pairs(network, tensors, image, backbone.folded.norm_types)


def assert_close(got: list[Tensor], expected: list[Tensor], tolerance: float = 1e-4) -> None:
    for one, other in zip(got, expected, strict=True):
        scale = other.abs().max().item()
        torch.testing.assert_close(one, other, atol=tolerance * scale, rtol=0)


# How many norms follow a convolution directly. Others stand before one, or share its output.
FOLDED = {
    "resnet18": 20,
    "resnet50": 53,
    "tf_efficientnet_lite0": 48,  # pads for itself, activates in the norm
    "resnetv2_18": 8,
    "densenet121": 59,
    "convnext_atto": 0,
}


@pytest.mark.parametrize("name", FOLDED)
def test_features_are_those_with_gradients(name: str) -> None:
    """Protects features within 1e-4 of their scale, and that all possible norms are folded."""
    backbone, image = seen_backbone(name), image_for(name)
    expected = backbone(image)
    with torch.inference_mode():
        first, again = backbone(image), backbone(image)
    with torch.no_grad():
        assert len(folded_pairs(backbone, image)) == FOLDED[name]
    assert_close(first, expected)
    assert_close(again, first, tolerance=0)
    norms = [m for m in backbone.folded.copy.network.modules() if hasattr(m, "running_mean")]
    all_norms = [m for m in backbone.modules() if hasattr(m, "running_mean")]
    assert len(all_norms) - len(norms) == FOLDED[name]


def test_dilated_last_stage() -> None:
    """Protects DC5, and sizes that no stride divides."""
    backbone = seen_backbone("resnet50", output_stride=16, out_indices=[-1])
    image = torch.randn(1, 3, 65, 71)
    expected = backbone(image)
    with torch.no_grad():
        assert_close(backbone(image), expected)


@pytest.mark.skipif(not has_fast_onednn(), reason="oneDNN isn't chosen on this processor")
def test_all_is_done_by_convolutions() -> None:
    """Protects that oneDNN's convolutions also add and activate, with one thread, too."""
    backbone, image = seen_backbone("resnet50"), torch.randn(1, 3, 224, 224)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with torch.no_grad():
            backbone(image)  # makes the folded copy
            with profile(activities=[ProfilerActivity.CPU]) as record:
                backbone(image)
    finally:
        torch.set_num_threads(threads)
    calls = Counter(event.name for event in record.events())
    assert calls["mkldnn::_convolution_pointwise"] + calls["mkldnn::_convolution_pointwise_"] == 53
    assert not {"aten::conv2d", "aten::add_", "aten::relu_"} & set(calls)


def test_one_pair_by_hand() -> None:
    """Protects the formula, a convolution's own bias and groups included."""
    torch.manual_seed(0)
    convolution, norm = nn.Conv2d(4, 6, 3, groups=2).double(), nn.BatchNorm2d(6).double().eval()
    for tensor in (norm.weight, norm.bias, norm.running_mean, norm.running_var):
        nn.init.uniform_(tensor, 0.5, 2)
    image = torch.randn(2, 4, 8, 8, dtype=torch.float64)
    weight, bias = fold_pair(convolution, norm)
    got = nn.functional.conv2d(image, weight, bias, groups=2)
    torch.testing.assert_close(got, norm(convolution(image)), atol=1e-12, rtol=0)


class Awkward(nn.Module):
    """Convolutions before norms, none of which may be folded."""

    def __init__(self, norm: Callable[[int], nn.Module]) -> None:
        super().__init__()
        self.twice = nn.Conv2d(3, 3, 3, padding=1)
        self.scaled = nn.Conv2d(3, 3, 3, padding=1)
        self.read = nn.Conv2d(3, 3, 3, padding=1)
        self.norms = nn.ModuleList(norm(3) for _ in range(4))

    def forward(self, x: Tensor) -> list[Tensor]:
        x = self.norms[1](self.twice(self.norms[0](self.twice(x))))
        x = self.norms[2](nn.functional.conv2d(x, self.scaled.weight * 2, self.scaled.bias))
        before = self.read(x)
        return [x, self.norms[3](before) + before]


def test_what_has_another_reader_is_not_folded() -> None:
    """Protects shared convolutions, computed weights, and outputs that are read twice."""
    network = Awkward(nn.BatchNorm2d).eval()
    tensors = [*network.parameters(), *network.buffers()]
    image = torch.randn(1, 3, 8, 8)
    with torch.no_grad():
        assert find_pairs(network, tensors, image, (nn.BatchNorm2d,)) == []


def changed(backbone: Backbone, how: str) -> Backbone:
    """Change weights in one of the ways that users and libraries do."""
    network = backbone.conv_encoder["model"]
    weight = network.conv1.weight
    if how == "in place":
        weight.mul_(2)
    elif how == "through .data":
        weight.data.mul_(2)
    elif how == "places through .data":
        weight.data.copy_(weight.data.flip(1))
    elif how == "norm's places through .data":
        network.bn1.running_mean.data.copy_(network.bn1.running_mean.data.flip(0))
    elif how == "other data":
        weight.data = weight * 2
    elif how == "other parameter":
        network.conv1.weight = nn.Parameter(weight * 2)
    elif how == "running mean":
        network.bn1.running_mean.add_(1)
    elif how == "load_state_dict":
        backbone.load_state_dict({k: v * 1.1 for k, v in backbone.state_dict().items()})
    elif how == "optimiser":
        parameters = [p for p in backbone.parameters() if p.requires_grad]
        for parameter in parameters:
            parameter.grad = torch.ones_like(parameter)
        torch.optim.SGD(parameters, lr=0.01).step()
    elif how == "double":
        backbone.double()
    elif how == "other module":
        network.bn1 = nn.Identity()
    elif how == "other activation":
        network.layer4[1].act2 = nn.Identity()
    elif how == "hook":
        network.conv1.register_forward_hook(lambda module, inputs, output: output * 2)
    return backbone


CHANGES = [
    *("places through .data", "norm's places through .data"),
    *("in place", "through .data", "other data", "other parameter", "running mean"),
    *("load_state_dict", "optimiser", "double", "other module", "other activation", "hook"),
]


@pytest.mark.parametrize("how", CHANGES)
def test_every_change_is_noticed(how: str) -> None:
    """Protects results from outdated weights, however they were changed."""
    backbone, image = seen_backbone("resnet18"), image_for("resnet18")
    with torch.no_grad():
        before = backbone(image)
        changed(backbone, how)
        image = image.to(next(backbone.parameters()).dtype)
        got = backbone(image)
    assert_close(got, backbone(image))
    if how != "double":
        assert not torch.allclose(got[-1], before[-1])


def test_bfloat16() -> None:
    """Protects half precision: folded once, in float32, the result is as accurate as before."""
    backbone, image = seen_backbone("resnet18"), image_for("resnet18")
    exact = [feature.detach() for feature in backbone(image)]
    backbone.bfloat16()
    with torch.no_grad():
        got = backbone(image.bfloat16())
        assert backbone.folded.copy.sources
    assert all(feature.dtype == torch.bfloat16 for feature in got)
    assert_close([feature.float() for feature in got], exact, tolerance=0.03)


@torch.no_grad()
def test_small_changes_in_bfloat16_are_noticed() -> None:
    """Protects scaling through `.data` by less than half precision would round sums to."""
    backbone, image = seen_backbone("resnet18"), image_for("resnet18").bfloat16()
    backbone.bfloat16()
    weights = [m.weight for m in backbone.modules() if isinstance(m, nn.Conv2d)]
    for weight in weights:
        backbone(image)
        before = backbone.folded.copy
        weight.data.mul_(1.004)
        backbone(image)
        assert backbone.folded.copy is not before


def test_network_that_keeps_results() -> None:
    """Protects inference after a forward with gradients, whose results can't be copied."""
    backbone, image = seen_backbone("tiny_vit_5m_224"), image_for("tiny_vit_5m_224")
    expected = backbone(image)
    with torch.no_grad():
        assert_close(backbone(image), expected)


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")  # PEFT's own
def test_adapters() -> None:
    """Protects PEFT's adapters: no outdated copy is used when they are switched off or merged."""
    peft = pytest.importorskip("peft")
    settings = peft.LoraConfig(r=4, target_modules=["conv1"], init_lora_weights=False)
    model = peft.get_peft_model(tiny_detector(backbone="resnet18"), settings).eval()
    backbone, image = model.base_model.model.model.backbone, image_for("resnet18")

    def checked() -> Tensor:
        expected = backbone(image)
        with torch.no_grad():
            got = backbone(image)
        assert_close(got, expected)
        return got[-1]

    adapted = checked()
    with model.disable_adapter():
        assert not torch.allclose(checked(), adapted)
    model.merge_adapter()
    torch.testing.assert_close(checked(), adapted, atol=1e-4 * adapted.abs().max(), rtol=0)


def test_hooks_on_all_modules() -> None:
    """Protects tools that hook every module: they see those of the network, and no copies."""
    backbone, image = seen_backbone("resnet18"), image_for("resnet18")
    called = []
    handle = nn.modules.module.register_module_forward_hook(lambda m, *_: called.append(m))
    try:
        with torch.no_grad():
            backbone(image)
    finally:
        handle.remove()
    assert called and set(called) <= set(backbone.modules())


def test_weights_are_untouched() -> None:
    """Protects names, values, layout and `requires_grad` of everything saved or optimised."""
    model = tiny_detector("deformable_detr")

    def everything() -> list[tuple]:
        named = [*model.state_dict(keep_vars=True).items(), *model.named_buffers()]
        return [(n, id(t), t.data_ptr(), t._version, t.stride(), t.requires_grad) for n, t in named]

    pixel_values, pixel_mask = padded_batch()
    values = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    names = [name for name, _ in model.named_modules()]
    before, strides = everything(), pixel_values.stride()
    with torch.inference_mode():
        model(pixel_values, pixel_mask)
    assert model.model.backbone.folded.copy.sources
    assert everything() == before and names == [name for name, _ in model.named_modules()]
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, values[name])
    assert pixel_values.stride() == strides


def test_training_after_inference() -> None:
    """Protects gradients after an evaluation, and that training keeps no copy of weights."""
    model = tiny_detector()
    pixel_values, pixel_mask = padded_batch()
    with torch.no_grad():
        evaluated = model(pixel_values, pixel_mask).logits
    torch.testing.assert_close(model(pixel_values, pixel_mask).logits, evaluated, atol=1e-4, rtol=0)
    model.train()
    assert model.model.backbone.folded.copy is None
    model(pixel_values, pixel_mask).logits.sum().backward()
    trained = [p for p in model.model.backbone.parameters() if p.requires_grad]
    assert trained and all(p.grad is not None for p in trained)
    with torch.no_grad():
        model.model.backbone(pixel_values)
    assert model.model.backbone.folded.copy is None


def test_part_in_training_runs_as_it_is() -> None:
    """Protects dropout that was switched on in a part of the network."""
    backbone, image = seen_backbone("resnet18"), image_for("resnet18")
    backbone.conv_encoder["model"].layer2.train()
    with torch.no_grad():
        backbone(image)
    assert backbone.folded.copy is None


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m)), "file"])
def test_copies_are_their_own(copied: Callable | str, tmp_path: Path) -> None:
    """Protects copies, pickles and `torch.save` of a model that has inferred already."""
    backbone, image = seen_backbone("resnet18"), image_for("resnet18")
    with torch.no_grad():
        expected = backbone(image)
        if copied == "file":
            torch.save(backbone, tmp_path / "backbone.pt")
            twin = torch.load(tmp_path / "backbone.pt", weights_only=False)
        else:
            twin = copied(backbone)
        assert twin.folded.copy is None
        assert_close(twin(image), expected, tolerance=0)
        for parameter in twin.parameters():
            parameter.mul_(1.5)
        assert_close(backbone(image), expected, tolerance=0)
        got = twin(image)
    assert_close(got, twin(image))


def test_weights_kept_elsewhere() -> None:
    """Protects Accelerate's offloading: hooks load the weights, which a copy would miss."""
    accelerate = pytest.importorskip("accelerate")
    backbone, image = seen_backbone("resnet18"), image_for("resnet18")
    expected = backbone(image)
    accelerate.cpu_offload(backbone, execution_device="cpu")
    with torch.no_grad():
        assert_close(backbone(image), expected)
    assert backbone.folded.copy is None


@torch.no_grad()
def test_compiled_and_exported_after_inference() -> None:
    """Protects graphs: whole, the same numbers, and made of the model's own weights."""
    backbone, image = seen_backbone(), image_for("test_resnet")
    expected = backbone(image)
    compiled = torch.compile(backbone, backend="eager", fullgraph=True)
    assert_close(compiled(image), expected)
    program = torch.export.export(backbone, (image,))
    assert_close(program.module()(image), expected)
    assert set(program.state_dict) == set(backbone.state_dict())


@torch.no_grad()
def test_vmap() -> None:
    """Protects `torch.func.vmap`, in which the check of weights and pixels can't read values."""
    backbone, images = seen_backbone(), torch.randn(2, 3, 64, 96)
    got = torch.func.vmap(lambda image: backbone(image[None])[-1][0])(images)
    torch.testing.assert_close(got, backbone(images)[-1], atol=1e-4, rtol=1e-4)


def test_groups_of_1x1_convolutions() -> None:
    """Protects networks whose 1 x 1 convolutions have groups, such as MobileOne."""
    backbone, image = seen_backbone("repvgg_b1g4"), image_for("repvgg_b1g4")
    expected = backbone(image)
    with torch.no_grad():
        assert_close(backbone(image), expected)


def test_few_pixels_are_not_worth_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """Protects small images from a copy that takes longer than the network itself."""
    monkeypatch.setattr(folded_backbone, "LEAST_PIXELS", 2 * 64 * 96)
    backbone = seen_backbone()
    with torch.no_grad():
        backbone(torch.randn(1, 3, 64, 96))
        assert backbone.folded.copy is None
        backbone(torch.randn(2, 3, 64, 96))
    assert backbone.folded.copy is not None
