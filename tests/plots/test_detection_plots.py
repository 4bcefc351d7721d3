"""Predictions beside targets, and the slots of queries."""

import io
from typing import Any

import numpy as np
import PIL.Image
import pytest
import torch

from hf_detr import plots
from hf_detr.inference.drawing import draw_predictions
from hf_detr.plots import detection_plots
from hf_detr.plots.detection_plots import slot_colors
from hf_detr.plots.figures import BLUE, GREEN, RED

from ..some_attention_records import tiny_records
from ..tiny import random_sample


def test_predictions_below_targets(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each image has its targets above and what scores enough below, drawn as everywhere else."""
    drawn: list[dict[str, torch.Tensor]] = []

    def draw(image: PIL.Image.Image, result: dict[str, torch.Tensor], names: dict[int, str]) -> Any:
        width = records[len(drawn) // 2].image.shape[2]
        drawn.append({**result, "scale": image.width / width})
        return draw_predictions(image, result, names)

    monkeypatch.setattr(detection_plots, "draw_predictions", draw)
    _, records = tiny_records("conditional_detr", id2label={i: f"class {i}" for i in range(5)})
    targets = [random_sample(image_id=1)[1], random_sample(num_objects=0)[1]]
    threshold = float(records[0].scores.median())
    figure = plots.draw_detections(records, targets, threshold)
    assert [len(axis.images) for axis in figure.axes] == [1] * 4
    titles = [axis.get_title() for axis in figure.axes]
    assert titles[:2] == ["targets: 3", "targets: 0"]
    for number, (one, target) in enumerate(zip(records, targets, strict=True)):
        found, given = drawn[2 * number : 2 * number + 2]
        kept = one.scores > threshold
        torch.testing.assert_close(found["boxes"], one.boxes_xyxy[kept] * found["scale"])
        torch.testing.assert_close(found["scores"], one.scores[kept])
        torch.testing.assert_close(given["boxes"], target["boxes"] * found["scale"])
        assert torch.equal(given["labels"], target["class_labels"]) and "scores" not in given
        assert titles[2 + number].startswith(f"found: {int(kept.sum())}, ")
    figure.savefig(io.BytesIO())


def test_predictions_alone() -> None:
    """One record needs no list, and no target; without detections there is a plot, too."""
    _, (record, _) = tiny_records("detr")
    figure = plots.draw_detections(record, threshold=0.99)
    assert len(figure.axes) == 1 and "found: 0" in figure.axes[0].get_title()


def test_wrong_targets_are_refused() -> None:
    """Relative boxes would be a dot in the corner; too few would be those of others."""
    _, records = tiny_records("detr")
    relative = {"boxes": torch.rand(2, 4), "class_labels": torch.tensor([0, 1])}
    with pytest.raises(ValueError, match="seem to be relative.*in pixels"):
        plots.draw_detections(records[0], relative)
    with pytest.raises(ValueError, match="2 records and 1 targets"):
        plots.draw_detections(records, [relative])


def test_slots_have_the_papers_colors() -> None:
    """Green small, red large and wide, blue large and tall."""
    boxes = torch.tensor([[0.5, 0.5, 0.1, 0.2], [0.5, 0.5, 0.9, 0.4], [0.5, 0.5, 0.3, 0.8]])
    assert slot_colors(boxes) == [GREEN, RED, BLUE]


def test_query_slots() -> None:
    """A panel per query with the centre of its box in every image."""
    boxes = torch.rand(9, 30, 4, generator=torch.Generator().manual_seed(0))
    figure = plots.draw_query_slots(boxes, most=12)
    panels = [axis for axis in figure.axes if axis.axison]
    assert len(panels) == 12
    for query, axis in enumerate(panels):
        np.testing.assert_allclose(axis.collections[0].get_offsets(), boxes[:, query, :2])
        assert axis.get_title() == f"query {query}"
    figure.savefig(io.BytesIO())
    with pytest.raises(ValueError, match="query_boxes"):
        plots.draw_query_slots(boxes[0])
