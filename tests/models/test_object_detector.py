"""The skeleton of detectors; what they predict is tested with `DetectionTransformer`."""

from pathlib import Path

import pytest
import torch
from torch.testing import assert_close

from tests.tiny import PREFIXES, padded_batch, some_labels, tiny_detector

VARIANTS = [*PREFIXES, "two stages"]


def detector_with_names(variant: str) -> torch.nn.Module:
    """A detector of the classes car, dog and tree."""
    more = {}
    if variant == "two stages":
        variant, more = "deformable_detr", {"two_stage": True, "with_box_refine": True}
        more["two_stage_num_proposals"] = 7
    names = {0: "car", 1: "dog", 2: "tree"}
    return tiny_detector(variant, num_labels=3, id2label=names, **more)


@pytest.mark.parametrize("variant", VARIANTS)
@torch.no_grad()
def test_resized_classes(variant: str) -> None:
    """Known names keep their logits, new ones have the mean; boxes and "no object" don't change."""
    model = detector_with_names(variant)
    before = model(*padded_batch())
    new, first_rest = {0: "Dog", 1: "boat", 2: "car", 3: "kite"}, 3
    if variant == "dino_detr":  # ranks proposals by their best class, so none is left out
        new[4], first_rest = "tree", 2
    kept = model.resize_classes(new)
    after = model(*padded_batch())
    assert kept[:2] == ["Dog", "car"] and model.config.num_labels == len(new)
    assert model.config.id2label[1] == "boat" and model.config.label2id["Dog"] == 0
    assert_close(after.pred_boxes, before.pred_boxes, atol=0, rtol=0)
    mean = before.logits[..., :3].mean(-1)
    columns = [before.logits[..., 1], mean, before.logits[..., 0], mean]
    assert_close(after.logits[..., :4], torch.stack(columns, -1), atol=1e-5, rtol=0)
    assert_close(after.logits[..., 4:], before.logits[..., first_rest:], atol=1e-6, rtol=0)


@pytest.mark.parametrize("variant", VARIANTS)
def test_resized_model_learns_and_reloads(variant: str, tmp_path: Path) -> None:
    """Loss and gradients exist for the highest new class, and a saved model predicts the same."""
    model = detector_with_names(variant)
    model.resize_classes(dict(enumerate("abcde")))
    labels = [{"class_labels": torch.tensor([4]), "boxes": torch.full((1, 4), 0.5)}] * 2
    model.train()(*padded_batch(), labels=labels).loss.backward()
    assert all(head.weight.grad[4].any() for head in model.class_heads()[-1:])
    model.eval().save_pretrained(tmp_path)
    again = type(model).from_pretrained(tmp_path).eval()
    with torch.no_grad():
        expected, logits = model(*padded_batch()).logits, again(*padded_batch()).logits
    assert_close(logits, expected, atol=0, rtol=0)


def test_order_and_capitals() -> None:
    """Names in any order; those that differ in capital letters only keep their own weights."""
    model = detector_with_names("two stages")
    proposals = model.class_embed[-1].weight.detach().clone()
    model.resize_classes({2: "car", 1: "Dog", 0: "dog"})
    assert_close(model.class_embed[-1].weight, proposals, atol=0, rtol=0)
    heads = [head.weight.detach().clone() for head in model.class_heads()]
    torch.nn.init.zeros_(model.class_embed[0].weight[0])
    heads[0][0] = 0
    assert model.resize_classes({0: "dog", 1: "Dog", 2: "car"}) == ["dog", "Dog", "car"]
    for head, weight in zip(model.class_heads(), heads, strict=True):
        assert_close(head.weight, weight, atol=0, rtol=0)


@pytest.mark.parametrize("id2label", [{}, {1: "car"}, {0: "car", 2: "dog"}])
def test_classes_with_gaps(id2label: dict[int, str]) -> None:
    """Classes are numbered from 0; others are an error and change nothing."""
    model = tiny_detector("detr")
    before = dict(model.config.id2label)
    with pytest.raises(ValueError, match="expected names of 0, 1, … without gaps"):
        model.resize_classes(id2label)
    assert model.config.id2label == before


def test_resized_classes_keep_thresholds() -> None:
    """Those of classes that keep their weights stay, under the new spelling; others are dropped."""
    model = tiny_detector(
        num_labels=3,
        id2label={0: "cat", 1: "dog", 2: "bird"},
        class_thresholds={"cat": 0.3, "bird": 0.6},
    )
    model.resize_classes({0: "Bird", 1: "dog", 2: "fish"})
    assert model.config.class_thresholds == {"Bird": 0.6}
    model.config.validate()
    model.resize_classes({0: "fish"})
    assert model.config.class_thresholds is None


def test_sizes_of_labels_are_compared() -> None:
    """A loop that drops the mask of a padded batch is stopped instead of trained on other boxes."""
    pixel_values, pixel_mask = padded_batch()
    labels = some_labels()
    for target, mask in zip(labels, pixel_mask, strict=True):
        target["size"] = torch.stack([mask.any(1).sum(), mask.any(0).sum()])
    model = tiny_detector()
    assert model(pixel_values, pixel_mask, labels=labels).loss.isfinite()
    with pytest.raises(ValueError, match="there is no pixel_mask"):
        model(pixel_values, labels=labels)
    with pytest.raises(ValueError, match="labels has 1 dicts for 2 images"):
        model(pixel_values, pixel_mask, labels=labels[:1])


def test_loss_function_of_transformers() -> None:
    """A loss that would never be called isn't taken silently."""
    model = tiny_detector()
    assert model.loss_function is model.criterion
    assert model.model.loss_function is None  # instead of a warning, and a loss of language models
    with pytest.raises(AttributeError, match="Replace `model.criterion`"):
        model.loss_function = print
