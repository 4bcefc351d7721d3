"""Protects norms folded in training: the same features and gradients, never of outdated weights."""

import copy
import pickle

import pytest
import torch
from torch import Tensor, nn
from torch.profiler import ProfilerActivity, profile

from hf_detr.layers import folded_training
from hf_detr.layers.backbone import Backbone, OneStepBatchNormAct2d
from hf_detr.layers.folded_training import FoldedConvolution
from hf_detr.layers.onednn import has_fast_onednn

from ..tiny import padded_batch, tiny_detector
from .test_backbone import image_for
from .test_folded_backbone import CHANGES, FOLDED, assert_close, changed, seen_backbone


@pytest.fixture(autouse=True)
def folded_whatever_the_size(monkeypatch: pytest.MonkeyPatch) -> None:
    """The images of these tests are small."""
    monkeypatch.setattr(folded_training, "LEAST_PIXELS", 0)
    monkeypatch.setattr(folded_training, "MOST_WEIGHTS_PER_PIXEL", torch.inf)
    monkeypatch.setattr(folded_training, "MOST_HALF_WEIGHTS_PER_PIXEL", torch.inf)


def training_backbone(name: str = "test_resnet") -> Backbone:
    return seen_backbone(name).train()


def features_and_gradients(
    backbone: Backbone, network: nn.Module, image: Tensor
) -> tuple[list[Tensor], list[Tensor]]:
    """Features of a network, and gradients of the backbone's parameters and the image."""
    image = image.clone().requires_grad_()
    torch.manual_seed(0)  # stochastic depth
    features = network(image)
    generator = torch.Generator().manual_seed(3)
    loss = sum(
        (feature.float() * torch.randn(feature.shape, generator=generator)).sum()
        for feature in features
    )
    trained = [parameter for parameter in backbone.parameters() if parameter.requires_grad]
    return [f.detach() for f in features], list(torch.autograd.grad(loss, [image, *trained]))


def assert_equal_training(backbone: Backbone, image: Tensor, tolerance: float = 1e-4) -> None:
    """The backbone gives what timm's network gives, features and gradients."""
    expected = features_and_gradients(backbone, backbone.conv_encoder["model"], image)
    got = features_and_gradients(backbone, backbone, image)
    assert_close(got[0], expected[0], tolerance)
    assert_close(got[1], expected[1], tolerance)


def folded_convolutions(backbone: Backbone) -> list[FoldedConvolution]:
    """What was folded in the last step."""
    twin = backbone.folded_training.twin
    return [] if twin is None else [m for m in twin[0].modules() if type(m) is FoldedConvolution]


@pytest.mark.parametrize("name", FOLDED)
def test_features_and_gradients(name: str) -> None:
    """Protects training: the same in float64, for every norm that can be folded.

    In float32 features are compared alone: rounding takes values to the other side of a ReLU.
    """
    backbone, image = training_backbone(name).double(), image_for(name).double()
    assert_equal_training(backbone, image, tolerance=1e-9)
    assert len(folded_convolutions(backbone)) == FOLDED[name]
    backbone.float()
    assert_close(backbone(image.float()), backbone.conv_encoder["model"](image.float()))


@pytest.mark.parametrize("how", CHANGES)
def test_every_change_is_noticed(how: str) -> None:
    """Protects gradients of outdated weights, however they were changed."""
    backbone, image = training_backbone("resnet18").double(), image_for("resnet18").double()
    backbone(image)
    with torch.no_grad() if how != "optimiser" else torch.enable_grad():
        changed(backbone, how if how != "double" else "in place")
    image = image.to(next(backbone.parameters()).dtype)
    assert_equal_training(backbone, image, tolerance=1e-9)


def test_frozen_and_thawed_stages() -> None:
    """Protects `requires_grad`, which may change between steps."""
    backbone, image = training_backbone(), image_for("test_resnet")
    for stages in (1, 3, 0):
        backbone.freeze(stages)
        assert_equal_training(backbone, image, tolerance=1e-3)


def test_part_in_another_mode() -> None:
    """Protects dropout that was switched off in a part of the network after a step."""
    backbone, image = training_backbone(), image_for("test_resnet")
    network = backbone.conv_encoder["model"]
    network.layer3.append(nn.Dropout(0.5))
    features, _ = features_and_gradients(backbone, backbone, image)
    network.layer3.eval()
    assert_equal_training(backbone, image, tolerance=1e-3)
    again, _ = features_and_gradients(backbone, backbone, image)
    assert not torch.allclose(features[-1], again[-1])


def test_changed_setting() -> None:
    """Protects plain attributes, such as rates of stochastic depth, changed after a step."""
    backbone, image = training_backbone("resnet18").double(), image_for("resnet18").double()
    backbone(image)
    backbone.conv_encoder["model"].layer3[0].bn1.eps = 1.0
    assert_equal_training(backbone, image, tolerance=1e-9)
    assert len(folded_convolutions(backbone)) == FOLDED["resnet18"]


def test_dropout_in_a_norm() -> None:
    """Protects regularisation that timm's norms do between normalisation and activation."""
    backbone, image = (
        training_backbone("tf_efficientnet_lite0").double(),
        image_for("tf_efficientnet_lite0"),
    )
    norm = next(m for m in backbone.modules() if isinstance(m, OneStepBatchNormAct2d))
    norm.drop = nn.Dropout2d(0.5)
    assert_equal_training(backbone, image.double(), tolerance=1e-9)
    assert len(folded_convolutions(backbone)) == FOLDED["tf_efficientnet_lite0"]


def test_backward_hooks() -> None:
    """Protects hooks that get gradients of a convolution's output, which a twin doesn't compute."""
    backbone, image = training_backbone("resnet18").double(), image_for("resnet18").double()
    network, seen = backbone.conv_encoder["model"], []
    network.layer3[0].conv1.register_full_backward_hook(lambda _, __, output: seen.append(*output))
    assert_equal_training(backbone, image, tolerance=1e-9)
    assert_close([seen[0]], [seen[1]])


def test_functional_call() -> None:
    """Protects meta-learning: no twin for each set of weights, which would keep its graph."""
    backbone, image = training_backbone(), image_for("test_resnet")
    weights = {name: 1.1 * parameter for name, parameter in backbone.named_parameters()}
    got = torch.func.functional_call(backbone, weights, (image,))
    names = {name.removeprefix("conv_encoder.model."): name for name in weights}
    own = {name: weights[full] for name, full in names.items()}
    assert_close(got, torch.func.functional_call(backbone.conv_encoder["model"], own, (image,)))
    assert backbone.folded_training.twin is None


def test_twin_lives_while_training() -> None:
    """Protects that `Trainer`, which calls train() before each step, doesn't make it each time."""
    backbone, image = training_backbone(), image_for("test_resnet")
    backbone(image)
    first = backbone.folded_training.twin
    backbone.train()
    backbone(image)
    assert first is not None and backbone.folded_training.twin is first
    backbone.eval()
    assert backbone.folded_training.twin is None


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m))])
def test_copies_train_their_own_weights(copied: object) -> None:
    """Protects copies made in training, such as averaged weights."""
    backbone, image = training_backbone(), image_for("test_resnet")
    names = list(backbone.state_dict())
    backbone(image)
    assert list(backbone.state_dict()) == names
    twin = copied(backbone)
    twin(image)[-1].sum().backward()
    assert all(parameter.grad is None for parameter in backbone.parameters())
    assert any(parameter.grad is not None for parameter in twin.parameters())


def test_gradient_checkpointing() -> None:
    """Protects steps whose activations are computed again in the backward pass."""
    backbone, image = training_backbone("resnet18"), image_for("resnet18")
    expected = features_and_gradients(backbone, backbone, image)
    backbone.conv_encoder["model"].set_grad_checkpointing(True)
    got = features_and_gradients(backbone, backbone, image)
    assert len(folded_convolutions(backbone)) == FOLDED["resnet18"]
    assert_close(got[0], expected[0])
    assert_close(got[1], expected[1])


def test_bfloat16_autocast() -> None:
    """Protects mixed precision: as near to float32 as the network itself is."""
    backbone, image = training_backbone("resnet18"), image_for("resnet18")
    network = backbone.conv_encoder["model"]
    exact, _ = features_and_gradients(backbone, network, image)
    with torch.autocast("cpu", torch.bfloat16):
        got, _ = features_and_gradients(backbone, backbone, image)
    assert folded_convolutions(backbone) and got[-1].dtype == torch.bfloat16
    assert_close([feature.float() for feature in got], exact, tolerance=0.04)


def test_saved_for_the_backward_pass() -> None:
    """Protects memory: no map is kept that only a norm would read."""
    backbone, image = training_backbone("resnet50"), image_for("resnet50").repeat(8, 1, 1, 1)

    def saved_bytes(network: nn.Module) -> int:
        storages = {}

        def pack(tensor: Tensor) -> Tensor:
            if tensor.ndim == 4 and len(tensor) == 8:  # a map, not a weight
                storages[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            features = network(image)
        assert features
        return sum(storages.values())

    assert saved_bytes(backbone) < 0.6 * saved_bytes(backbone.conv_encoder["model"])


def test_few_pixels_are_not_worth_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """Protects small batches from scaling weights for longer than the network itself takes."""
    backbone = training_backbone()
    weights = sum(p.numel() for p in backbone.parameters() if p.ndim == 4)
    monkeypatch.setattr(folded_training, "MOST_WEIGHTS_PER_PIXEL", weights / (2 * 64 * 64))
    backbone(torch.randn(1, 3, 64, 64))
    assert backbone.folded_training.twin is None
    backbone(torch.randn(2, 3, 64, 64))
    assert folded_convolutions(backbone)


def test_half_precision_is_worth_it_sooner(monkeypatch: pytest.MonkeyPatch) -> None:
    """Protects the speed of small images in bfloat16, of the model or of autocast."""
    monkeypatch.setattr(folded_training, "MOST_WEIGHTS_PER_PIXEL", 0)
    backbone, image = training_backbone(), torch.randn(1, 3, 64, 64)
    backbone(image)
    assert backbone.folded_training.twin is None
    with torch.autocast("cpu", torch.bfloat16):
        backbone(image)
    assert folded_convolutions(backbone)
    backbone.folded_training.drop()
    backbone.bfloat16()(image.bfloat16())
    assert folded_convolutions(backbone)


def test_a_detector_trains() -> None:
    """Protects a whole model: every trained parameter has the gradient that it had."""
    model = tiny_detector("deformable_detr").double().train()
    pixel_values, pixel_mask = padded_batch()
    labels = [
        {"class_labels": torch.tensor([1]), "boxes": torch.tensor([[0.5, 0.5, 0.2, 0.2]])}
        for _ in pixel_values
    ]

    def gradients() -> list[Tensor]:
        model.zero_grad()
        torch.manual_seed(0)
        model(pixel_values.double(), pixel_mask, labels=labels).loss.backward()
        return [p.grad for p in model.parameters() if p.requires_grad]

    got = gradients()
    assert folded_convolutions(model.model.backbone)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(folded_training, "LEAST_PIXELS", torch.inf)
        expected = gradients()
    for one, other in zip(got, expected, strict=True):
        torch.testing.assert_close(one, other, atol=1e-12, rtol=1e-6)


@pytest.mark.skipif(not has_fast_onednn(), reason="oneDNN isn't chosen on this processor")
@pytest.mark.parametrize("batch_size", [1, 2])
def test_small_maps_do_not_take_the_slow_convolution(batch_size: int) -> None:
    """Protects that no operator of torch's dilated convolution runs, whatever the size."""
    backbone, image = training_backbone("resnet50"), torch.randn(batch_size, 3, 64, 64)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        assert_close(backbone(image), backbone.conv_encoder["model"](image))
        with profile(activities=[ProfilerActivity.CPU]) as record:
            backbone(image)
    finally:
        torch.set_num_threads(threads)
    names = {event.key for event in record.key_averages()}
    assert any("convolution" in name for name in names)
    assert not any("dilated" in name for name in names)
