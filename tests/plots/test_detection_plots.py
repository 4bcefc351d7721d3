"""Predictions beside targets, and the slots of queries."""

import io

import numpy as np
import pytest
import torch

from hf_detr import plots
from hf_detr.plots.detection_plots import slot_colors
from hf_detr.plots.figures import BLUE, GREEN, RED

from ..some_attention_records import tiny_records
from ..tiny import random_sample


def test_predictions_below_targets() -> None:
    """Each image has its targets' boxes above and what scores enough below, with their names."""
    _, records = tiny_records("conditional_detr", id2label={i: f"class {i}" for i in range(5)})
    targets = [random_sample(image_id=1)[1], random_sample(num_objects=0)[1]]
    threshold = float(records[0].scores.median())
    figure = plots.draw_detections(records, targets, threshold)
    assert len(figure.axes) == 4
    drawn = [patch.get_bbox().extents for patch in figure.axes[0].patches]
    np.testing.assert_allclose(drawn, targets[0]["boxes"], atol=1e-3)
    assert [text.get_text() for text in figure.axes[0].texts] == ["class 0", "class 1", "class 2"]
    assert not figure.axes[1].patches
    for one, axis in zip(records, figure.axes[2:], strict=True):
        kept = one.boxes_xyxy[one.scores > threshold]
        drawn = [patch.get_bbox().extents for patch in axis.patches]
        np.testing.assert_allclose(np.reshape(drawn, (-1, 4)), kept, atol=1e-3)
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
