"""Protects that a variant outside the package costs under 100 lines and changes nothing else."""

from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from torch.testing import assert_close
from transformers import AutoModelForObjectDetection

from .. import own_variant
from ..own_variant import OwnConfig, OwnForObjectDetection
from ..tiny import NO_DROPOUT, padded_batch, some_labels, tiny_config


def tiny_own_detector(**changes: bool) -> OwnForObjectDetection:
    """A seeded detector without dropout that trains every layer, in training mode."""
    torch.manual_seed(0)
    fields = {"auxiliary_loss": True, **NO_DROPOUT, **changes}
    settings = tiny_config(**fields).to_dict()
    return OwnForObjectDetection(OwnConfig.from_dict(settings, model_type="own_variant")).train()


def test_it_is_short() -> None:
    """Protects the promise: decoder layer, denoising queries and all, without blank lines."""
    lines = Path(own_variant.__file__).read_text().splitlines()
    assert sum(bool(line.strip()) for line in lines) < 100


def test_it_learns_and_is_loaded(tmp_path: Path) -> None:
    """Its loss, denoising included, falls; the file predicts the same and holds no noise."""
    model, batch, labels = tiny_own_detector(), padded_batch(), some_labels((3, 1))
    optimizer = torch.optim.AdamW(model.parameter_groups(lr=1e-3))
    losses, denoising = [], []
    for _ in range(30):
        output = model(*batch, labels=labels)
        assert output.logits.shape[:2] == (2, 7)
        optimizer.zero_grad()
        output.loss.backward()
        optimizer.step()
        losses.append(output.loss.item())
        denoising.append(output.loss_dict["loss_ce_dn"].item())
    assert sum(losses[-5:]) < 0.8 * sum(losses[:5])
    assert sum(denoising[-5:]) < 0.4 * sum(denoising[:5])
    assert {"loss_ce_dn", "loss_giou_0_dn", "loss_ce_1"} <= set(output.loss_dict)
    assert model.model.label_embeddings.weight.grad.any()

    model.config.auxiliary_loss = False
    model.eval().save_pretrained(tmp_path)
    with safe_open(tmp_path / "model.safetensors", "pt") as file:
        assert not any("label_embeddings" in name for name in list(file.keys()))
    loaded = AutoModelForObjectDetection.from_pretrained(tmp_path)
    assert type(loaded) is OwnForObjectDetection and not loaded.training
    with torch.no_grad():
        expected, got = model(*batch), loaded(*batch)
    assert torch.equal(got.logits, expected.logits)
    assert torch.equal(got.pred_boxes, expected.pred_boxes)


def test_its_own_queries_do_not_see_the_noise() -> None:
    """Predictions are the same with denoising and without; a batch without labels has none."""
    model, batch = tiny_own_detector(), padded_batch()
    noised, plain = model(*batch, labels=some_labels((3, 1))), model(*batch)
    assert_close(noised.logits, plain.logits, atol=1e-5, rtol=0)
    assert_close(noised.pred_boxes, plain.pred_boxes, atol=1e-5, rtol=0)
    assert not any("_dn" in name for name in model(*batch, labels=some_labels((0, 0))).loss_dict)


@pytest.mark.parametrize("with_noise", [False, True])
def test_it_looks_forward_twice(with_noise: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Boxes are relative to references through which the layers before learn; decoding isn't."""
    model, seen = tiny_own_detector(), []
    predict = model.predict
    monkeypatch.setattr(model, "predict", lambda s, refs: seen.append(refs) or predict(s, refs))
    output = model(*padded_batch(), labels=some_labels((3, 1) if with_noise else (0, 0)))
    output.loss.backward()
    assert [len(references) for references in seen] == [3] * (1 + with_noise)
    assert all(reference.requires_grad for references in seen for reference in references[1:])
    states = model.model(*padded_batch(), output_attentions=True)
    assert not any(reference.requires_grad for reference in states.reference_points)
