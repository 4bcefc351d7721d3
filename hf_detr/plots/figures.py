"""The style and the parts of all plots; the only module that imports matplotlib.

It doesn't use pyplot, so no window opens and no figure stays in memory. Axes count pixels from the
image's top left corner. Colour-blind readers can distinguish the colours (the palette of Okabe and
Ito; maps from dark to bright).
"""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from torch import Tensor

from ..inference.drawing import INK, OUTLINE, place_labels

try:
    from matplotlib import colormaps
    from matplotlib.axes import Axes
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import Normalize
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D
    from matplotlib.patches import Rectangle
    from matplotlib.patheffects import withStroke
    from matplotlib.textpath import TextPath
except ImportError as error:
    raise ImportError(
        "hf_detr draws with matplotlib, which isn't installed: pip install 'hf_detr[plots]'"
    ) from error

COLORS = ("#E69F00", "#56B4E9", "#009E73", "#CC79A7", "#F0E442", "#D55E00", "#0072B2")
MARKERS = ("o", "s", "^", "D", "P", "v", "X", "*")  # one per feature level
ORANGE, BLUE, GREEN, RED = COLORS[0], COLORS[6], COLORS[2], COLORS[5]
FONT_SIZE = 9
PAD = 1.2  # points around a label's text
LINE = 0.25  # height of a line of text in inches
LEGEND_COLUMN = 3.4  # inches
DASHES = (0, (4, 2))
HEAT = colormaps["inferno"]
WEIGHT = colormaps["magma_r"]  # small weights are pale, for pale images
# Width to height of a panel, which leaves room for text; other images leave a part of it empty.
NARROWEST, WIDEST = 0.5, 3.0
CHART_INCHES = 7.0, 4.0
NARROWEST_FIGURE = 5.0  # inches
DARK, PALE = 0.6, 0.6  # of the contrast of images that are drawn on


def color_of(index: int) -> str:
    """The colour of an object, query or curve by its number; colours repeat after seven."""
    return COLORS[index % len(COLORS)]


def make_panels(
    rows: int, columns: int, image_wh: Sequence[float], inches: float = 3.0
) -> tuple[Figure, np.ndarray]:
    """A figure with equal panels that fit an image, and its axes (rows, columns).

    Args:
        rows, columns: of panels.
        image_wh: width and height of the content, in any unit.
        inches: longer side of a panel.

    Raises:
        ValueError: if there are no panels.
    """
    if not rows * columns:
        raise ValueError("there is nothing to draw; give at least one point, query or image.")
    width, height = (float(side) for side in image_wh)
    ratio = min(max(width / height, NARROWEST), WIDEST)
    panel_wh = (inches, inches / ratio) if ratio > 1 else (inches * ratio, inches)
    size_wh = (max(columns * panel_wh[0], NARROWEST_FIGURE), rows * (panel_wh[1] + LINE))
    figure = Figure(figsize=size_wh, layout="constrained")
    figure.get_layout_engine().set(h_pad=0.07, w_pad=0.05)
    axes = figure.subplots(rows, columns, squeeze=False)
    for axis in axes.flat:
        axis.set_axis_off()
    return figure, axes


def make_chart(x: str, y: str, size_wh: tuple[float, float] = CHART_INCHES) -> tuple[Figure, Axes]:
    """A figure for curves over named axes, with a grid; its size is in inches."""
    figure = Figure(figsize=size_wh, layout="constrained")
    axis = figure.subplots()
    axis.grid(color="0.9", linewidth=0.8)
    axis.spines[["top", "right"]].set_visible(False)
    axis.set_xlabel(x, fontsize=FONT_SIZE)
    name_values(axis, y)
    return figure, axis


def name_values(axis: Axes, y: str) -> None:
    """Name what a chart's vertical axis shows."""
    axis.set_ylabel(y, fontsize=FONT_SIZE)
    axis.tick_params(labelsize=FONT_SIZE - 1)


def show_image(axis: Axes, image: Tensor, style: str = "plain") -> None:
    """Show an image (3, H, W): "plain"; "dark" gray below heat; "pale" gray below points."""
    pixels = image.permute(1, 2, 0).numpy()
    height, width = pixels.shape[:2]
    if style != "plain":
        pixels = pixels / (255 if pixels.dtype == np.uint8 else 1)
        gray = pixels @ [0.299, 0.587, 0.114]
        gray = gray * DARK if style == "dark" else 1 - (1 - gray) * PALE
        pixels = np.repeat(gray[..., None], 3, axis=-1)
    axis.imshow(pixels, extent=(0, width, height, 0))
    axis.autoscale(False)  # drawing beyond the image must not shrink it
    axis.set_axis_off()


def show_map(axis: Axes, weights: Tensor, image: Tensor) -> None:
    """Lay weights (h, w) over an image (3, H, W): the more, the brighter and more opaque."""
    show_image(axis, image, "dark")
    share = (weights / (weights.max().item() or 1.0)).numpy()
    heat = HEAT(0.25 + 0.75 * share)
    heat[..., 3] = share**0.5 * 0.85
    height, width = image.shape[1:]
    axis.imshow(heat, extent=(0, width, height, 0), interpolation="nearest")


def draw_box(axis: Axes, box_xyxy: Sequence[float], color: str) -> None:
    """Outline a box, with a dark rim that keeps it visible on any image."""
    rim = withStroke(linewidth=3.4, foreground="black", alpha=0.6)
    axis.add_patch(_rectangle(box_xyxy, edgecolor=color, linewidth=2.0, path_effects=[rim]))


def draw_reference(axis: Axes, reference: Sequence[float], color: str) -> None:
    """Mark a reference point, or outline a reference box, visible on the predicted box."""
    if len(reference) == 4:
        axis.add_patch(_rectangle(reference, edgecolor="black", linewidth=1.0, linestyle=DASHES))
    else:
        mark_point(axis, reference, color)


def _rectangle(box_xyxy: Sequence[float], **style: Any) -> Rectangle:
    x0, y0, x1, y1 = (float(value) for value in box_xyxy)
    return Rectangle((x0, y0), x1 - x0, y1 - y0, fill=False, zorder=2, **style)


def write_labels(
    axis: Axes,
    boxes_xyxy: Sequence[Sequence[float]],
    texts: Sequence[str],
    colors: Sequence[str],
    image_wh: Sequence[float],
) -> None:
    """Write beside boxes where `place_labels` puts the labels, the most important first."""
    figure = axis.get_figure()
    panel = axis.get_position()
    inches_wh = panel.width * figure.get_figwidth(), panel.height * figure.get_figheight()
    # Pixels of the image per point; the layout, only known later, enlarges panels a little.
    pixels = max(side / (72 * inches) for side, inches in zip(image_wh, inches_wh, strict=True))
    sizes = []
    for text in texts:
        extent = TextPath((0, 0), text or " ", size=FONT_SIZE).get_extents()
        sizes.append((pixels * (extent.width + 2 * PAD), pixels * (FONT_SIZE + 2 * PAD)))
    places = place_labels(boxes_xyxy, sizes, tuple(image_wh))
    for place, text, color in zip(places, texts, colors, strict=True):
        if place is not None:
            _write(axis, text, (place[0] + pixels * PAD, (place[1] + place[3]) / 2), color)


def _write(axis: Axes, text: str, point_xy: tuple[float, float], color: str, **style: Any) -> None:
    """Write to the right of a point on a coloured plate; letters are as in `draw_predictions`."""
    axis.annotate(
        text,
        point_xy,
        color=INK,
        fontsize=FONT_SIZE - 1,
        verticalalignment="center",
        bbox={"facecolor": color, "edgecolor": "none", "pad": PAD},
        path_effects=[withStroke(linewidth=1.5, foreground=OUTLINE)],
        zorder=5,
        **style,
    )


def mark_point(axis: Axes, point_xy: Sequence[float], color: str, text: str = "") -> None:
    """Mark a point by a cross with a rim, and write beside it."""
    x, y = (float(value) for value in point_xy)
    axis.plot([x], [y], "P", color=color, markersize=9, markeredgecolor="black", zorder=4)
    if text:
        _write(axis, text, (x, y), color, xytext=(7, 7), textcoords="offset points")


def legend_key(label: str, marker: str = "", **style: Any) -> Line2D:
    """An entry of a legend: a marker, a line if `linestyle` says so, or the text alone."""
    return Line2D([], [], **{"linestyle": "", "marker": marker, "label": label, **style})


def add_legend(figure: Figure, handles: Sequence[Line2D]) -> None:
    """A legend below all panels, in as many columns as there is room for."""
    columns = min(max(int(figure.get_figwidth() / LEGEND_COLUMN), 1), len(handles))
    _grow(figure, lines=math.ceil(len(handles) / columns))
    figure.legend(
        handles=list(handles),
        loc="outside lower center",
        ncols=columns,
        fontsize=FONT_SIZE,
        frameon=False,
    )


def add_caption(figure: Figure, text: str) -> None:
    """A line below all panels."""
    _grow(figure, lines=1)
    figure.supxlabel(text, fontsize=FONT_SIZE)


def add_heading(figure: Figure, text: str) -> None:
    """A line above all panels."""
    _grow(figure, lines=1)
    figure.suptitle(text, fontsize=FONT_SIZE + 1)


def add_color_scale(figure: Figure, axes: np.ndarray, most: float, text: str) -> None:
    """A scale of the colours of weights, from 0 to the largest, beside all panels."""
    figure.set_figwidth(figure.get_figwidth() + 4 * LINE)
    scale = figure.colorbar(ScalarMappable(Normalize(0, most), WEIGHT), ax=axes, pad=0.01)
    scale.set_label(text, fontsize=FONT_SIZE)
    scale.ax.tick_params(labelsize=FONT_SIZE - 1)


def _grow(figure: Figure, lines: int) -> None:
    """Add height for lines of text; the panels keep their size."""
    figure.set_figheight(figure.get_figheight() + lines * LINE)
