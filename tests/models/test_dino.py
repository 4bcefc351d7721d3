"""Tests DINO's heads and positions; `test_parity.py` compares with the official code."""

import re
from typing import Any

import pytest
import torch
from huggingface_hub.errors import StrictDataclassError
from torch import Tensor
from torch.testing import assert_close

from hf_detr import DinoDetrForObjectDetection

from ..tiny import tiny_detector


def batch() -> tuple[Tensor, list[dict[str, Tensor]]]:
    torch.manual_seed(0)
    labels = [
        {"class_labels": torch.tensor([1, 3]), "boxes": 0.3 + 0.4 * torch.rand(2, 4)},
        {"class_labels": torch.tensor([2]), "boxes": 0.3 + 0.4 * torch.rand(1, 4)},
    ]
    return torch.randn(2, 3, 64, 96), labels


def random_detector(**changes: Any) -> DinoDetrForObjectDetection:
    """A small detector whose weights are random where they would start as zeros."""
    model = tiny_detector("dino_detr", auxiliary_loss=True, **changes)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.05 * torch.randn_like(parameter)
    return model


def test_equal_heads_are_one_head() -> None:
    """Layers with equal heads of their own compute what layers that share the heads do."""
    shared, separate = random_detector(), random_detector(shared_heads=False)
    weights = shared.state_dict()
    separate.load_state_dict(
        {name: weights[re.sub(r"_embed\.\d\.", "_embed.", name)] for name in separate.state_dict()}
    )
    pixel_values, labels = batch()
    losses = [model(pixel_values, labels=labels).loss_dict for model in (shared, separate)]
    assert_close(*losses)


def test_each_layer_has_its_heads() -> None:
    """Boxes and classes of a layer depend on the heads of this layer; all of them learn."""
    model = random_detector(shared_heads=False)
    pixel_values, labels = batch()
    expected = model(pixel_values, labels=labels).auxiliary_outputs
    with torch.no_grad():
        model.class_embed[1].bias += 1
    changed = model(pixel_values, labels=labels)
    for layer, (before, after) in enumerate(zip(expected, changed.auxiliary_outputs, strict=True)):
        assert_close(after["logits"], before["logits"] + (layer == 1))
    model.train()(pixel_values, labels=labels).loss.backward()
    for heads in (model.class_embed, model.model.decoder.bbox_embed):
        assert len(heads) == model.config.decoder_layers
        for name, parameter in heads.named_parameters():
            assert parameter.grad.abs().sum() > 0, name


def test_classes_of_separate_heads() -> None:
    """All heads are resized to new classes."""
    model = tiny_detector("dino_detr", shared_heads=False)
    model.resize_classes({0: "cat", 1: "dog"})
    assert model(batch()[0]).logits.shape[-1] == 2
    assert {head.out_features for head in model.class_heads()} == {2}
    assert len(model.class_heads()) == model.config.decoder_layers + 1  # and the proposals'


def test_position_offset() -> None:
    """Positions are counted from the configuration's offset."""
    pixel_values, _ = batch()
    outputs = []
    for offset in (0, -0.5):
        model = random_detector(position_offset=offset)
        outputs.append(model(pixel_values).logits)
        assert model.model.position_embedding.offset == offset
    assert not torch.allclose(*outputs)
    with pytest.raises(StrictDataclassError, match="position_offset is -2"):
        tiny_detector("dino_detr", position_offset=-2)
