"""Attention maps: what is drawn is what the model attended to."""

import io

import numpy as np
import pytest
import torch

from hf_detr import plots
from hf_detr.plots.attention_plots import object_centers

from ..some_attention_records import tiny_records


def opacity(axis: object) -> np.ndarray:
    """The map drawn over a panel's image."""
    return axis.get_images()[1].get_array()[..., 3]


def assert_shows(axis: object, weights: torch.Tensor) -> None:
    """A panel shows weights (h, w), the largest one brightest."""
    share = (opacity(axis) / opacity(axis).max()) ** 2
    np.testing.assert_allclose(share, weights / weights.max(), atol=1e-5)


@pytest.mark.parametrize("variant", ["detr", "conditional_detr", "table-transformer"])
def test_decoder_attention(variant: str) -> None:
    """A panel per object, best first: the heads' mean, on the box."""
    _, (_, record) = tiny_records(variant)
    figure = plots.draw_decoder_attention(record, threshold=0.0)
    queries = record.best_queries(0.0, 4)
    assert len(figure.axes) == 4
    for query, axis in zip(queries, figure.axes, strict=True):
        assert_shows(axis, record.query_maps([query])[0].mean(0))
        corners = torch.tensor(axis.patches[0].get_bbox().extents)
        torch.testing.assert_close(corners.float(), record.boxes_xyxy[query], atol=1e-3, rtol=0)
        assert record.name(query) in axis.get_title()
    figure.savefig(io.BytesIO())


def test_encoder_attention() -> None:
    """The image with its points, then the map of each point; both show where it is."""
    _, (_, record) = tiny_records("detr")
    points = [(10, 20), (70, 150)]
    figure = plots.draw_encoder_attention(record, points, layer=0)
    first, *others = figure.axes
    assert [line.get_xydata()[0].tolist() for line in first.lines] == [[10, 20], [70, 150]]
    for point, axis in zip(points, others, strict=True):
        assert_shows(axis, record.encoder_maps([point], layer=0)[0].mean(0))
        assert axis.lines[0].get_xydata()[0].tolist() == list(point)
    figure.savefig(io.BytesIO())


def test_heads_show_content_and_place_where_they_are_separate() -> None:
    """Conditional DETR: a row for content, place and both; DETR: one row."""
    _, (record, _) = tiny_records("conditional_detr")
    figure = plots.draw_attention_heads(record, query=3)
    assert len(figure.axes) == 3 * 4
    for row, part in enumerate(("content", "place", "all")):
        for head in range(4):
            assert_shows(figure.axes[4 * row + head], record.query_maps([3], part=part)[0, head])
    _, (record, _) = tiny_records("detr")
    assert len(plots.draw_attention_heads(record, threshold=0.0).axes) == 4


def test_object_centers_leave_duplicates_out() -> None:
    """Queries with the same box count once."""
    _, (record, _) = tiny_records("detr")
    record.boxes_xyxy[:] = torch.tensor([10.0, 10, 50, 30])
    record.boxes_xyxy[4] = torch.tensor([100.0, 20, 300, 40])
    assert sorted(object_centers(record, 0.0)) == [(30, 20), (192, 30)]


def test_deformable_attention_has_no_maps() -> None:
    """The error says what to draw instead."""
    _, (record, _) = tiny_records("deformable_detr")
    for draw in (
        plots.draw_encoder_attention,
        plots.draw_decoder_attention,
        plots.draw_attention_heads,
    ):
        with pytest.raises(ValueError, match="sampling points instead"):
            draw(record, threshold=0.0)
