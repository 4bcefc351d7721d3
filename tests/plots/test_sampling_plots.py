"""Sampling points: every marker is where the model sampled, in the level's shape."""

import io
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import AutoImageProcessor, AutoModelForObjectDetection

from hf_detr import embedded_model_folder, plots
from hf_detr.inference.attention_record import AttentionRecord, SamplingPoints
from hf_detr.plots.figures import MARKERS, Axes

from ..some_attention_records import tiny_records

REPOSITORY = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def garments() -> AttentionRecord:
    """What the model of the package sees in a photograph, padded beside a wide one."""
    folder = embedded_model_folder()
    model = AutoModelForObjectDetection.from_pretrained(folder)
    processor = AutoImageProcessor.from_pretrained(folder)
    photo = Image.open(REPOSITORY / "examples" / "images" / "garments.jpg")
    record, _ = plots.record_attention(model, processor, [photo, Image.new("RGB", (300, 200))])
    return record


def assert_drawn(axis: Axes, found: SamplingPoints, index: int) -> None:
    """A panel has one group of markers per level, at the positions, coloured by weight."""
    num_levels = found.weights.shape[2]
    assert len(axis.collections) == num_levels
    for level, drawn in enumerate(axis.collections):
        weights = found.weights[index, :, level].flatten()
        order = weights.argsort()
        positions = found.positions_xy[index, :, level].reshape(-1, 2)[order]
        np.testing.assert_allclose(drawn.get_offsets(), positions, rtol=1e-5)
        np.testing.assert_allclose(drawn.get_array(), weights[order], rtol=1e-5)


def test_decoder_points(garments: AttentionRecord) -> None:
    """A panel per object, with all M * L * K points, its box, and the box it started from."""
    figure = plots.draw_sampling_points(garments)
    queries = garments.best_queries(0.5, 4)
    found = garments.query_points(queries)
    for index, query in enumerate(queries):
        axis = figure.axes[index]
        assert_drawn(axis, found, index)
        boxes = {tuple(np.round(patch.get_bbox().extents, 2)) for patch in axis.patches}
        expected = (found.references[index], garments.boxes_xyxy[query])
        assert boxes == {tuple(np.round(box.double().numpy(), 2)) for box in expected}
    labels = [text.get_text() for text in figure.legends[0].get_texts()]
    height, width = garments.spatial_shapes[1]
    assert f"sampled on level 1: {width} x {height} cells" in labels
    figure.savefig(io.BytesIO())


def test_trained_queries_look_into_their_boxes(garments: AttentionRecord) -> None:
    """Weight is in and near the predicted box: wrong pixels would put it elsewhere."""
    queries = garments.best_queries(0.5, 4)
    found = garments.query_points(queries)
    for index, query in enumerate(queries):
        box = garments.boxes_xyxy[query]
        margin = (box[2:] - box[:2]) * 0.1
        positions = found.positions_xy[index]
        inside = ((positions > box[:2] - margin) & (positions < box[2:] + margin)).all(-1)
        share = found.weights[index][inside].sum() / found.weights[index].sum()
        assert share > 0.9


def test_encoder_points(garments: AttentionRecord) -> None:
    """A panel per pixel, whose cross marks the centre of the cell that looks."""
    points = [(60.0, 80.0), (150.0, 90.0)]
    figure = plots.draw_encoder_sampling_points(garments, points, level=1)
    tokens = [garments.token_at(point, 1) for point in points]
    found = garments.encoder_points(tokens)
    for index in range(2):
        assert_drawn(figure.axes[index], found, index)
        cross = figure.axes[index].lines[0].get_xydata()[0]
        np.testing.assert_allclose(cross, found.references[index], rtol=1e-6)
    figure.savefig(io.BytesIO())


def test_overview_draws_the_strongest_points(garments: AttentionRecord) -> None:
    """Each query has its strongest points only, in its colour; shapes are levels; all is said."""
    queries = garments.best_queries(0.5, 4)
    figure = plots.draw_sampling_overview(garments, strongest=10)
    _, decoder = figure.axes
    found = garments.query_points(queries)
    per_query = [decoder.collections[3 * i : 3 * i + 3] for i in range(len(queries))]
    for index, groups in enumerate(per_query):
        drawn = np.concatenate([group.get_offsets() for group in groups])
        best = found.weights[index].flatten().topk(10).indices
        expected = found.positions_xy[index].reshape(-1, 2)[best].numpy()
        np.testing.assert_allclose(np.sort(drawn, 0), np.sort(expected, 0), rtol=1e-5)
    colors = {
        tuple(group.get_facecolor()[0])
        for groups in per_query
        for group in groups
        if len(group.get_facecolor())
    }
    assert len(colors) == len(queries)
    handles = figure.legends[0].legend_handles
    assert [handle.get_marker() for handle in handles[:3]] == list(MARKERS[:3])
    labels = [text.get_text() for text in figure.legends[0].get_texts()]
    assert any("10 strongest of 96" in label for label in labels)
    figure.savefig(io.BytesIO())


def test_points_beyond_the_picture_are_counted() -> None:
    """Markers outside the image aren't record, so the legend says how many there are."""
    _, (_, record) = tiny_records("deformable_detr")
    figure = plots.draw_encoder_sampling_points(record, [(1, 1)])
    positions = record.encoder_points([record.token_at((1, 1))]).positions_xy
    outside = ((positions < 0) | (positions > record.size_wh)).any(-1).sum()
    labels = [text.get_text() for text in figure.legends[0].get_texts()]
    assert 0 < outside < 64
    assert f"{outside} of 64 points are outside the image" in labels


def test_single_stage_queries_start_from_points() -> None:
    """Without refinement the reference is a point, drawn as a cross and called so."""
    _, (_, record) = tiny_records("deformable_detr")
    figure = plots.draw_sampling_points(record, queries=[2, 6])
    cross = figure.axes[0].lines[0].get_xydata()[0]
    np.testing.assert_allclose(cross, record.query_points([2]).references[0], rtol=1e-6)
    labels = [text.get_text() for text in figure.legends[0].get_texts()]
    assert "reference point of the query" in labels
    figure.savefig(io.BytesIO())


@pytest.mark.parametrize("size_wh", [(1200, 100), (2, 24)])
def test_any_shape_of_image(size_wh: tuple[int, int]) -> None:
    """Long and tiny images leave room for the text: no warning of a layout that collapsed."""
    _, (record, _) = tiny_records("deformable_detr")
    width, height = size_wh
    long = AttentionRecord(**{**vars(record), "image": torch.zeros(3, height, width)})
    plots.draw_sampling_overview(long, threshold=0.0).savefig(io.BytesIO(), dpi=30)
    plots.draw_sampling_points(long, threshold=0.0).savefig(io.BytesIO(), dpi=30)


@pytest.mark.parametrize("variant", ["detr", "conditional_detr", "table-transformer"])
def test_other_variants_have_no_sampling_points(variant: str) -> None:
    """The error says what to draw instead."""
    _, (record, _) = tiny_records(variant)
    for draw in (
        plots.draw_sampling_overview,
        plots.draw_sampling_points,
        plots.draw_encoder_sampling_points,
    ):
        with pytest.raises(ValueError, match="attention maps instead"):
            draw(record, threshold=0.0)
