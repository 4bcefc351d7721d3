"""Plots of attention over all pixels: of pixels in the encoder, of objects in the decoder."""

from collections.abc import Sequence

import torch
from torch import Tensor

from .box_ops import box_iou
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
from .observation import Observation

MOST = 4  # panels, unless more are asked for
CAPTION = "attention relative to the panel's brightest cell"
SAME_OBJECT = 0.5  # overlap of boxes from which they are taken for duplicates
PARTS = {"content": "content\nalone", "place": "place\nalone", "all": "both,\nas used"}


def draw_encoder_attention(
    seen: Observation,
    points_xy: Sequence[Sequence[float]] | None = None,
    threshold: float = 0.5,
    layer: int = -1,
) -> Figure:
    """The encoder attention of chosen pixels, mean of the heads (DETR, Figure 3).

    A trained encoder separates objects: a pixel attends to its own object.

    Args:
        seen: from `observe`.
        points_xy: pixels (x, y) of the image; None: the centres of the best objects.
        threshold: the score that the best objects must exceed.
        layer: of the encoder; -1 is the last.

    Raises:
        ValueError: if there is no such attention, or no such point.
    """
    if points_xy is None:
        points_xy = object_centers(seen, threshold)
    maps = seen.encoder_maps(points_xy, layer).mean(1)  # (n, h, w)
    figure, axes = make_panels(1, len(points_xy) + 1, seen.size_wh)
    first = axes[0, 0]
    show_image(first, seen.image)
    first.set_title("chosen pixels", fontsize=FONT_SIZE)
    for index, point in enumerate(points_xy):
        mark_point(first, point, color_of(index), str(index + 1))
        panel = axes[0, index + 1]
        show_map(panel, maps[index], seen.image)
        mark_point(panel, point, color_of(index))
        panel.set_title(f"attention of pixel {index + 1}", fontsize=FONT_SIZE)
    add_caption(figure, CAPTION)
    return figure


def draw_decoder_attention(
    seen: Observation,
    queries: Sequence[int] | None = None,
    threshold: float = 0.5,
    layer: int = -1,
) -> Figure:
    """The decoder attention of object queries, mean of the heads (DETR, Figure 6).

    A trained decoder attends to the parts that decide box and class: heads, feet, handles.

    Args:
        seen: from `observe`.
        queries: by number; None: the best ones.
        threshold: the score that the best objects must exceed.
        layer: of the decoder; -1 is the last.

    Raises:
        ValueError: if there is no such attention, or nothing was found.
    """
    if queries is None:
        queries = seen.best_queries(threshold, MOST)
    maps = seen.query_maps(queries, layer).mean(1)  # (n, h, w)
    figure, axes = make_panels(1, len(queries), seen.size_wh)
    for index, (query, panel) in enumerate(zip(queries, axes[0], strict=True)):
        show_map(panel, maps[index], seen.image)
        draw_box(panel, seen.boxes_xyxy[query], color_of(index))
        panel.set_title(f"query {query}: {seen.name(query)}", fontsize=FONT_SIZE)
    add_caption(figure, CAPTION)
    return figure


def draw_attention_heads(
    seen: Observation, query: int | None = None, threshold: float = 0.5, layer: int = -1
) -> Figure:
    """The decoder attention of one object query, head by head.

    If the model compares content and place separately, three rows show content alone, place
    alone, and both. Place alone gives a band at one side of the box or a spot in it, another one
    in every head (Conditional DETR, Figure 1).

    Args:
        seen: from `observe`.
        query: its number; None: the best one.
        threshold: the score that the best query must exceed.
        layer: of the decoder; -1 is the last.

    Raises:
        ValueError: if there is no such attention, or nothing was found.
    """
    if query is None:
        [query] = seen.best_queries(threshold, 1)
    parts = ("all",) if seen.place_attentions is None else tuple(PARTS)
    maps = {part: seen.query_maps([query], layer, part)[0] for part in parts}  # (M, h, w) each
    num_heads = len(maps["all"])
    figure, axes = make_panels(len(parts), num_heads, seen.size_wh, inches=1.7)
    for row, (part, panels) in enumerate(zip(parts, axes, strict=True)):
        for head, panel in enumerate(panels):
            show_map(panel, maps[part][head], seen.image)
            draw_box(panel, seen.boxes_xyxy[query], color_of(0))
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
    add_heading(figure, f"query {query}: {seen.name(query)}")
    add_caption(figure, CAPTION)
    return figure


def object_centers(seen: Observation, threshold: float) -> list[tuple[float, float]]:
    """Centres (x, y) of the best objects, in pixels within the image; duplicates are left out.

    Raises:
        ValueError: if nothing scores above the threshold.
    """
    chosen: list[Tensor] = []
    for box in seen.boxes_xyxy[seen.best_queries(threshold)]:
        if all(box_iou(box, other)[0] < SAME_OBJECT for other in chosen):
            chosen.append(box)
    boxes = torch.stack(chosen[:MOST])
    centers = (boxes[:, :2] + boxes[:, 2:]) / 2
    return [tuple(center) for center in centers.clamp(min=0).minimum(seen.size_wh).tolist()]
