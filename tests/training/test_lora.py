"""Tests LoRA: what it trains, and that merging changes no output."""

import pytest
import torch
from torch.testing import assert_close

from hf_detr.training.lora import LAYERS, add_lora, merge_lora

from ..tiny import PREFIXES, padded_batch, tiny_detector


@pytest.mark.parametrize("variant", PREFIXES)
def test_adapters_and_heads_are_trained(variant: str) -> None:
    """Layers and backbone keep their weights; class and box heads, of all models, are trained."""
    model = tiny_detector(variant, auxiliary_loss=True)
    model.unfreeze_backbone()
    before = {name: weight.clone() for name, weight in model.named_parameters()}
    add_lora(model, 2)
    trained = {name for name, p in model.named_parameters() if p.requires_grad}
    assert {name for name in trained if LAYERS.search(name)} == {
        name for name, _ in model.named_parameters() if ".lora_" in name
    }
    assert not any("backbone" in name for name in trained)
    heads = (
        [name for name in trained if "class" in name],
        [name for name in trained if "box" in name],
    )
    assert all(heads)
    labels = [{"class_labels": torch.tensor([1]), "boxes": torch.full((1, 4), 0.4)}] * 2
    model(*padded_batch(), labels=labels).loss.backward()
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=0.1)
    optimizer.step()
    expected = model(*padded_batch())
    merge_lora(model)
    assert model.state_dict().keys() == tiny_detector(variant).state_dict().keys()
    got = model(*padded_batch())
    # float32: the changes are added to the weights instead of to the outputs.
    assert_close(got.logits, expected.logits, atol=1e-4, rtol=1e-4)
    assert_close(got.pred_boxes, expected.pred_boxes, atol=1e-4, rtol=1e-4)
    after = dict(model.named_parameters())
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert any(LAYERS.search(name) for name in changed)
    assert not any("backbone" in name for name in changed)
