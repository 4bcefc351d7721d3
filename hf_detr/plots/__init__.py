"""Plots of detectors, their attention and training; needs `pip install 'hf_detr[plots]'`.

    from hf_detr import plots

    [record] = plots.record_attention(model, processor, image)
    plots.draw_sampling_overview(record).savefig("overview.png")

Every `draw_` function returns a `matplotlib.figure.Figure`, which notebooks display.

- `record_attention` (or `observe`) runs a model on images and returns an `AttentionRecord` of each.
- `draw_detections`: predictions, and targets.
- DETR, Conditional DETR and Table Transformer: `draw_encoder_attention`, `draw_decoder_attention`,
  `draw_attention_heads`.
- Deformable DETR and DINO: `draw_sampling_overview`, `draw_sampling_points` (decoder),
  `draw_encoder_sampling_points`.
- A data set: `draw_query_slots(query_boxes(model, processor, images))`.
- An evaluation: `write_report("report.html", evaluate(…, diagnose=True), dataset)`, a page.
- A training: `draw_training_curves(folder / "losses.csv", read_history(folder))`; several:
  `draw_comparison({"DETR": [(1, 0.02), (2, 0.05)], …})`.
"""

from ..inference.attention_record import AttentionRecord, SamplingPoints
from ..inference.record_attention import query_boxes, record_attention
from .attention_plots import draw_attention_heads, draw_decoder_attention, draw_encoder_attention
from .detection_plots import draw_detections, draw_query_slots
from .report import write_report
from .sampling_plots import (
    draw_encoder_sampling_points,
    draw_sampling_overview,
    draw_sampling_points,
)
from .training_plots import draw_comparison, draw_training_curves, read_history

observe = record_attention  # former name

__all__ = [
    "AttentionRecord",
    "SamplingPoints",
    "draw_attention_heads",
    "draw_comparison",
    "draw_decoder_attention",
    "draw_encoder_attention",
    "draw_encoder_sampling_points",
    "draw_detections",
    "draw_query_slots",
    "draw_sampling_overview",
    "draw_sampling_points",
    "draw_training_curves",
    "observe",
    "query_boxes",
    "read_history",
    "record_attention",
    "write_report",
]
