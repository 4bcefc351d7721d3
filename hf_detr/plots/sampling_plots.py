"""Plots of deformable attention's sampling points (Deformable DETR, Figures 2 and 6).

A query samples K points in each of M heads and L feature levels. The marker's shape is the level,
its colour the query or the weight, as a legend says on every figure.
"""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from ..inference.attention_record import AttentionRecord, SamplingPoints
from .attention_plots import MOST, object_centers
from .figures import (
    COLORS,
    DASHES,
    FONT_SIZE,
    MARKERS,
    WEIGHT,
    Axes,
    Figure,
    Line2D,
    add_color_scale,
    add_legend,
    color_of,
    draw_box,
    draw_reference,
    legend_key,
    make_panels,
    mark_point,
    show_image,
    write_labels,
)

LARGEST = 60.0  # area of the marker of the largest weight, in square points
REFERENCE = "white"


def draw_encoder_sampling_points(
    record: AttentionRecord,
    points_xy: Sequence[Sequence[float]] | None = None,
    threshold: float = 0.5,
    level: int = 0,
    layer: int = -1,
) -> Figure:
    """The points that chosen pixels sample in the encoder, a panel for each, coloured by weight.

    Args:
        record, points_xy, threshold, layer: as in `draw_encoder_attention`.
        level: of the cells that sample at these pixels; 0 is the finest.

    Raises:
        ValueError: if the model has no sampling points, or for wrong points, levels and layers.
    """
    if points_xy is None:
        points_xy = object_centers(record, threshold)
    tokens = [record.token_at(point, level) for point in points_xy]
    found = record.encoder_points(tokens, layer)
    figure, axes = _weight_panels(record, found)
    for (x, y), reference, panel in zip(points_xy, found.references, axes, strict=True):
        panel.set_title(f"pixel ({round(x)}, {round(y)}) on level {level}", fontsize=FONT_SIZE)
        mark_point(panel, reference, REFERENCE)
    reference = _cross_key("reference point: the sampling cell")
    add_legend(figure, [*_level_keys(record), reference, *_hidden_keys(axes)])
    return figure


def draw_sampling_points(
    record: AttentionRecord,
    queries: Sequence[int] | None = None,
    threshold: float = 0.5,
    layer: int = -1,
) -> Figure:
    """The points that object queries sample in the decoder, a panel for each, coloured by weight.

    Args:
        record, queries, threshold, layer: as in `draw_decoder_attention`.

    Raises:
        ValueError: if the model has no sampling points.
    """
    if queries is None:
        queries = record.best_queries(threshold, MOST)
    found = record.query_points(queries, layer)
    figure, axes = _weight_panels(record, found, record.boxes_xyxy[list(queries)])
    for index, (query, panel) in enumerate(zip(queries, axes, strict=True)):
        panel.set_title(f"query {query}: {record.name(query)}", fontsize=FONT_SIZE)
        draw_reference(panel, found.references[index], REFERENCE)
        draw_box(panel, record.boxes_xyxy[query], COLORS[0])
    keys = [*_level_keys(record), _box_key("predicted box", COLORS[0])]
    add_legend(figure, [*keys, _reference_key(found), *_hidden_keys(axes)])
    return figure


def draw_sampling_overview(
    record: AttentionRecord,
    points_xy: Sequence[Sequence[float]] | None = None,
    queries: Sequence[int] | None = None,
    threshold: float = 0.5,
    level: int = 0,
    strongest: int = 24,
) -> Figure:
    """Deformable DETR's overview (its Figure 2) of a real image: encoder and decoder, last layers.

    Left, every colour is a pixel of the image; right, it is an object query with its predicted
    box. The marker's shape is the feature level, its size the weight.

    Args:
        record, points_xy, queries, threshold, level: as in the functions above.
        strongest: number of points drawn for each query, those of the largest weights.

    Raises:
        ValueError: if the model has no sampling points.
    """
    if queries is None:
        queries = record.best_queries(threshold, MOST)
    if points_xy is None:
        points_xy = object_centers(record, threshold)
    pixels = record.encoder_points([record.token_at(point, level) for point in points_xy])
    objects = record.query_points(queries)
    figure, axes = make_panels(1, 2, record.size_wh, inches=5.0)
    encoder, decoder = axes[0]
    encoder.set_title("Encoder: pixels are queries", fontsize=FONT_SIZE + 1)
    decoder.set_title("Decoder: object queries", fontsize=FONT_SIZE + 1)
    for panel, found in ((encoder, pixels), (decoder, objects)):
        show_image(panel, record.image, "pale")
        for index in range(len(found.weights)):
            _scatter(panel, found, index, 2 * LARGEST, color_of(index), strongest)
    for index, reference in enumerate(pixels.references):
        mark_point(encoder, reference, color_of(index))
    for index, query in enumerate(queries):
        box = record.boxes_xyxy[query]
        draw_reference(decoder, objects.references[index], color_of(index))
        draw_box(decoder, box, color_of(index))
    write_labels(
        decoder,
        record.boxes_xyxy[list(queries)].tolist(),
        [record.name(query) for query in queries],
        [color_of(index) for index in range(len(queries))],
        record.size_wh.tolist(),
    )
    total = objects.weights[0].numel()
    keys = [
        *_level_keys(record),
        _cross_key("pixel, its reference point"),
        _box_key("predicted box", "gray"),
        _reference_key(objects),
        legend_key(
            f"colour: one query; size: weight ({min(strongest, total)} strongest of {total})"
        ),
    ]
    add_legend(figure, [*keys, *_hidden_keys(axes[0])])
    return figure


def _weight_panels(
    record: AttentionRecord, found: SamplingPoints, boxes_xyxy: Tensor | None = None
) -> tuple[Figure, list[Axes]]:
    """A panel for each query, zoomed to its box if there are boxes, and a scale of the colours."""
    shape_wh = record.size_wh if boxes_xyxy is None else (1, 1)
    figure, axes = make_panels(1, len(found.weights), shape_wh, inches=3.3)
    most = float(found.weights.max())
    for index, panel in enumerate(axes[0]):
        show_image(panel, record.image, "pale")
        if boxes_xyxy is not None:
            _zoom(panel, boxes_xyxy[index], found.positions_xy[index], record.size_wh)
        _scatter(panel, found, index, LARGEST)
    add_color_scale(figure, axes, most, "weight in its head")
    return figure, list(axes[0])


def _scatter(
    panel: Axes,
    found: SamplingPoints,
    index: int,
    largest: float,
    color: str | None = None,
    number: int | None = None,
) -> None:
    """Draw the `number` strongest points of a query, None draws all, by weight or in one colour."""
    weights, positions = found.weights[index].flatten(), found.positions_xy[index].reshape(-1, 2)
    order = weights.argsort(descending=True)[:number].flip(0)  # the largest weights on top
    most = float((weights if color else found.weights).max())
    num_levels, num_points = found.weights.shape[2:]
    for level in range(num_levels):
        chosen = order[order // num_points % num_levels == level]
        x, y = positions[chosen].unbind(-1)
        values = weights[chosen]
        by_weight = {"c": values, "cmap": WEIGHT, "vmin": 0, "vmax": most}
        panel.scatter(
            x,
            y,
            s=10 + largest * values / most,
            marker=MARKERS[level % len(MARKERS)],
            edgecolors="black",
            linewidths=0.5,
            zorder=3,
            **({"color": color} if color else by_weight),
        )


def _zoom(panel: Axes, box_xyxy: Tensor, positions_xy: Tensor, size_wh: Tensor) -> None:
    """Show the square around a box and the positions that are in the image."""
    positions = positions_xy.flatten(0, -2)
    inside = positions[((positions >= 0) & (positions <= size_wh)).all(-1)]
    places = torch.cat([inside, box_xyxy.view(2, 2).clamp(min=0).minimum(size_wh)])
    low, high = places.amin(0), places.amax(0)
    side = max(float((high - low).max()) * 1.1, 1.0)
    x, y = ((low + high - side) / 2).clamp(min=0).minimum((size_wh - side).clamp(min=0)).tolist()
    width, height = size_wh.tolist()
    panel.set_xlim(x, min(x + side, width))
    panel.set_ylim(min(y + side, height), y)


def _reference_key(found: SamplingPoints) -> Line2D:
    if found.references.shape[-1] == 4:
        style = {"color": "black", "linewidth": 1.0, "linestyle": DASHES}
        return legend_key("reference box that the layer starts from", **style)
    return _cross_key("reference point of the query")


def _level_keys(record: AttentionRecord) -> list[Line2D]:
    return [
        legend_key(
            f"sampled on level {level}: {width} x {height} cells",
            MARKERS[level % len(MARKERS)],
            markerfacecolor="lightgray",
            markeredgecolor="black",
        )
        for level, (height, width) in enumerate(record.spatial_shapes)
    ]


def _hidden_keys(panels: Sequence[Axes]) -> list[Line2D]:
    """A legend entry with the number of points outside the panels, if there are any."""
    hidden = total = 0
    for panel in panels:
        (left, right), (bottom, top) = panel.get_xlim(), panel.get_ylim()
        for points in panel.collections:
            x, y = np.asarray(points.get_offsets()).T
            hidden += int(((x < left) | (x > right) | (y < top) | (y > bottom)).sum())
            total += len(x)
    return [legend_key(f"{hidden} of {total} points are outside the image")] if hidden else []


def _cross_key(label: str) -> Line2D:
    return legend_key(label, "P", markerfacecolor=REFERENCE, markeredgecolor="black", markersize=9)


def _box_key(label: str, color: str) -> Line2D:
    return legend_key(label, color=color, linestyle="-", linewidth=2)
