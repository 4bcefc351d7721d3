"""Plots of attention over all pixels: of pixels in the encoder, of objects in the decoder."""

from collections.abc import Sequence

import torch
from torch import Tensor

from ..inference.attention_record import AttentionRecord
from ..ops.box_ops import box_iou
from .figures import (
    FONT_SIZE,
    Figure,
    add_caption,
    add_heading,
    color_of,
    draw_box,
    make_panels,
    mark_point,
    show_image,
    show_map,
)

MOST = 4  # panels, unless more are asked for
CAPTION = "attention relative to the panel's brightest cell"
SAME_OBJECT = 0.5  # overlap of boxes from which they are taken for duplicates
PARTS = {"content": "content\nalone", "place": "place\nalone", "all": "both,\nas used"}


def draw_encoder_attention(
    record: AttentionRecord,
    points_xy: Sequence[Sequence[float]] | None = None,
    threshold: float = 0.5,
    layer: int = -1,
) -> Figure:
    """The encoder attention of chosen pixels, mean of the heads (DETR, Figure 3).

    A trained encoder separates objects: a pixel attends to its own object.

    Args:
        record: from `record_attention`.
        points_xy: pixels (x, y) of the image; None: the centres of the best objects.
        threshold: the score that the best objects must exceed; if none does, the best few of all.
        layer: of the encoder; -1 is the last.

    Raises:
        ValueError: if there is no such attention, or no such point.
    """
    if points_xy is None:
        points_xy = object_centers(record, threshold)
    maps = record.encoder_maps(points_xy, layer).mean(1)  # (n, h, w)
    figure, axes = make_panels(1, len(points_xy) + 1, record.size_wh)
    first = axes[0, 0]
    show_image(first, record.image)
    first.set_title("chosen pixels", fontsize=FONT_SIZE)
    for index, point in enumerate(points_xy):
        mark_point(first, point, color_of(index), str(index + 1))
        panel = axes[0, index + 1]
        show_map(panel, maps[index], record.image)
        mark_point(panel, point, color_of(index))
        panel.set_title(f"attention of pixel {index + 1}", fontsize=FONT_SIZE)
    add_caption(figure, CAPTION)
    return figure


def draw_decoder_attention(
    record: AttentionRecord,
    queries: Sequence[int] | None = None,
    threshold: float = 0.5,
    layer: int = -1,
) -> Figure:
    """The decoder attention of object queries, mean of the heads (DETR, Figure 6).

    A trained decoder attends to the parts that decide box and class: heads, feet, handles.

    Args:
        record, threshold: as in `draw_encoder_attention`.
        queries: by number; None: the best ones.
        layer: of the decoder; -1 is the last.

    Raises:
        ValueError: if there is no such attention.
    """
    if queries is None:
        queries = record.best_queries(threshold, MOST)
    maps = record.query_maps(queries, layer).mean(1)  # (n, h, w)
    figure, axes = make_panels(1, len(queries), record.size_wh)
    for index, (query, panel) in enumerate(zip(queries, axes[0], strict=True)):
        show_map(panel, maps[index], record.image)
        draw_box(panel, record.boxes_xyxy[query], color_of(index))
        panel.set_title(f"query {query}: {record.name(query)}", fontsize=FONT_SIZE)
    add_caption(figure, CAPTION)
    return figure


def draw_attention_heads(
    record: AttentionRecord, query: int | None = None, threshold: float = 0.5, layer: int = -1
) -> Figure:
    """The decoder attention of one object query, head by head.

    If the model compares content and place separately, three rows show content alone, place
    alone, and both. Place alone gives a band at one side of the box or a spot in it, another one
    in every head (Conditional DETR, Figure 1).

    Args:
        record, threshold, layer: as in `draw_decoder_attention`.
        query: its number; None: the best one.

    Raises:
        ValueError: if there is no such attention.
    """
    if query is None:
        [query] = record.best_queries(threshold, 1)
    parts = ("all",) if record.place_attentions is None else tuple(PARTS)
    maps = {part: record.query_maps([query], layer, part)[0] for part in parts}  # (M, h, w) each
    num_heads = len(maps["all"])
    figure, axes = make_panels(len(parts), num_heads, record.size_wh, inches=1.7)
    for row, (part, panels) in enumerate(zip(parts, axes, strict=True)):
        for head, panel in enumerate(panels):
            show_map(panel, maps[part][head], record.image)
            draw_box(panel, record.boxes_xyxy[query], color_of(0))
            if row == 0:
                panel.set_title(f"head {head}", fontsize=FONT_SIZE)
        if len(parts) > 1:
            panels[0].text(
                -0.1,
                0.5,
                PARTS[part],
                transform=panels[0].transAxes,
                fontsize=FONT_SIZE,
                horizontalalignment="right",
                verticalalignment="center",
            )
    add_heading(figure, f"query {query}: {record.name(query)}")
    add_caption(figure, CAPTION)
    return figure


def object_centers(record: AttentionRecord, threshold: float) -> list[tuple[float, float]]:
    """Centres (x, y) of the best objects, in pixels within the image; duplicates are left out."""
    chosen: list[Tensor] = []
    for box in record.boxes_xyxy[record.best_queries(threshold)]:
        if all(box_iou(box, other)[0] < SAME_OBJECT for other in chosen):
            chosen.append(box)
    boxes = torch.stack(chosen[:MOST])
    centers = (boxes[:, :2] + boxes[:, 2:]) / 2
    return [tuple(center) for center in centers.clamp(min=0).minimum(record.size_wh).tolist()]
