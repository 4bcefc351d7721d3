"""Plots of predictions with targets, and of the regions that object queries specialise in."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from PIL import ImageOps
from torch import Tensor

from ..inference.attention_record import AttentionRecord
from ..inference.drawing import LEAST_SIDE, draw_predictions, make_picture
from .figures import (
    BLUE,
    FONT_SIZE,
    GREEN,
    RED,
    Axes,
    Figure,
    add_heading,
    add_legend,
    legend_key,
    make_panels,
    show_image,
)

LARGE = 0.3  # square root of a box's share of the image from which it counts as large


def draw_detections(
    records: AttentionRecord | Sequence[AttentionRecord],
    targets: Mapping[str, Any] | Sequence[Mapping[str, Any]] | None = None,
    threshold: float = 0.5,
) -> Figure:
    """Predictions on some images, below the targets if there are any.

    Args:
        records: from `record_attention`; attention isn't needed.
        targets: per image `class_labels` (n,), as the model numbers them, and `boxes` (n, 4) as
            (x0, y0, x1, y1) in pixels of the image, as a `DetectionDataset` gives them.
        threshold: the score that predictions must exceed.

    Raises:
        ValueError: if the numbers of targets and images differ, or boxes are in other units.
    """
    records = [records] if isinstance(records, AttentionRecord) else list(records)
    targets = [targets] if isinstance(targets, Mapping) else targets
    if not records or (targets is not None and len(targets) != len(records)):
        raise ValueError(
            f"Got {len(records)} records and {len(targets or ())} targets; expected at least one "
            "record, and one target per record or none."
        )
    largest_wh = torch.stack([one.size_wh for one in records]).amax(0)
    figure, axes = make_panels(1 if targets is None else 2, len(records), largest_wh)
    for index, (one, panel) in enumerate(zip(records, axes[-1], strict=True)):
        found = one.scores > threshold
        _show_objects(panel, one, one.boxes_xyxy[found], one.labels[found], one.scores[found])
        panel.set_title(f"found: {int(found.sum())}, score above {threshold}", fontsize=FONT_SIZE)
        if targets is not None:
            boxes, labels = targets[index]["boxes"], targets[index]["class_labels"]
            if len(boxes) and float(boxes.max()) <= 1:
                raise ValueError(
                    "no coordinate of the target's boxes is above 1, so they seem to be relative; "
                    "give (x0, y0, x1, y1) in pixels of the image, as a DetectionDataset does."
                )
            _show_objects(axes[0, index], one, boxes, labels)
            axes[0, index].set_title(f"targets: {len(boxes)}", fontsize=FONT_SIZE)
    return figure


def draw_query_slots(boxes_cxcywh: Tensor, most: int = 20) -> Figure:
    """The centres of each object query's boxes in many images (DETR, Figure 7).

    A panel is a query, a point the centre of its box in one image. Trained queries prefer
    different positions and sizes; a query whose points cover the whole image, or a single spot,
    hasn't specialised.

    Args:
        boxes_cxcywh: (N, Q, 4) in [0, 1], from `query_boxes`.
        most: number of queries drawn, from the first.

    Raises:
        ValueError: if the boxes have another shape.
    """
    if boxes_cxcywh.ndim != 3 or boxes_cxcywh.shape[-1] != 4:
        raise ValueError(
            f"the boxes have shape {tuple(boxes_cxcywh.shape)}; give (images, queries, 4), as "
            "query_boxes does."
        )
    number = min(most, boxes_cxcywh.shape[1])
    columns = min(number, 10)
    figure, axes = make_panels(-(-number // columns), columns, (1, 1), inches=1.2)
    for query, panel in enumerate(axes.flat[:number]):
        boxes = boxes_cxcywh[:, query]
        panel.set_axis_on()
        panel.set(xlim=(0, 1), ylim=(1, 0), xticks=[], yticks=[], aspect="equal")
        x, y = boxes[:, :2].unbind(-1)
        panel.scatter(x, y, s=4, c=slot_colors(boxes), alpha=0.6, linewidths=0)
        panel.set_title(f"query {query}", fontsize=FONT_SIZE - 1)
    kinds = ((GREEN, "small box"), (RED, "large, wide"), (BLUE, "large, tall"))
    keys = [legend_key(name, "o", color=color, markersize=5) for color, name in kinds]
    add_legend(figure, keys)
    title = f"A point is the centre of the query's box in one of {len(boxes_cxcywh)} images"
    add_heading(figure, title)
    return figure


def slot_colors(boxes_cxcywh: Tensor) -> list[str]:
    """The paper's colours of boxes (n, 4): green small, red large and wide, blue large and tall."""
    width, height = boxes_cxcywh[:, 2:].unbind(-1)
    is_small, is_wide = (width * height).sqrt() < LARGE, width >= height
    return [
        GREEN if small else RED if wide else BLUE
        for small, wide in zip(is_small.tolist(), is_wide.tolist(), strict=True)
    ]


def _show_objects(
    panel: Axes,
    record: AttentionRecord,
    boxes_xyxy: Tensor,
    labels: Tensor,
    scores: Tensor | None = None,
) -> None:
    """Show the image with its objects drawn as `draw_predictions` does."""
    picture = make_picture(record.image)
    scale = max(LEAST_SIDE / max(picture.size), 1)
    result = {"boxes": boxes_xyxy * scale, "labels": labels}
    if scores is not None:
        result["scores"] = scores
    picture = draw_predictions(ImageOps.scale(picture, scale), result, record.id2label)
    show_image(panel, torch.from_numpy(np.array(picture)).permute(2, 0, 1))
