"""Protects the learning rates of the papers: which parameters learn slower, or faster."""

import pytest
import torch

from ..tiny import tiny_detector


def test_parameter_groups(variant: str) -> None:
    """The papers' rates: a tenth for the backbone, and for offsets and reference points."""
    model = tiny_detector(variant)
    groups = {group["name"]: group for group in model.parameter_groups(2e-4, class_factor=10)}
    points = {"points": 2e-5} if "points" in groups else {}
    expected = {"other": 2e-4, "backbone": 2e-5, **points, "classes": 2e-3}
    assert {name: group["lr"] for name, group in groups.items()} == pytest.approx(expected)
    heads = {id(p) for head in model.class_heads() for p in head.parameters()}
    assert {id(p) for p in groups["classes"]["params"]} == heads
    grouped = [p for group in groups.values() for p in group["params"]]
    trained = [p for p in model.parameters() if p.requires_grad]
    assert {id(p) for p in grouped} == {id(p) for p in trained} and len(grouped) == len(trained)
    # Offsets of every encoder and decoder layer and the reference points, weight and bias each.
    num_points = {"deformable_detr": 2 * (2 + 3 + 1), "dino_detr": 2 * (2 + 3)}.get(variant, 0)
    assert len(groups.get("points", {"params": []})["params"]) == num_points
    torch.optim.AdamW(groups.values(), weight_decay=1e-4)
