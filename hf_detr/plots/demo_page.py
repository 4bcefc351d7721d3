"""The page of `hf-detr demo`: drop an image, see detections, attention and sampling points."""

import html
import io
import os
from collections import Counter
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any

from PIL import Image, ImageOps

from ..inference.attention_record import AttentionRecord
from ..inference.drawing import LEAST_SIDE, draw_predictions
from ..inference.model_loading import embedded_model_folder
from ..inference.prediction import read_outputs
from ..inference.record_attention import record_attention
from ..inference.score_thresholds import threshold_of_labels
from ..models.variants import VARIANTS
from .attention_plots import draw_attention_heads, draw_decoder_attention, draw_encoder_attention
from .demo_run import ALERT, Run, load, look
from .figures import Figure
from .sampling_plots import (
    draw_encoder_sampling_points,
    draw_sampling_overview,
    draw_sampling_points,
)

# Garments of Fashion-MNIST (MIT, Zalando SE) on a photograph (CC0)
EXAMPLE = Path(__file__).with_name("garments.jpg")
GARMENTS = str(embedded_model_folder())
# Tabs, and the embedded models that can draw them
EMBEDDED = {"attention": str(embedded_model_folder(attention=True)), "points": GARMENTS}
MODELS = [
    ("garments (comes with hf_detr)", GARMENTS),
    ("garments, less exact, with attention (comes with hf_detr)", EMBEDDED["attention"]),
    *(name for variant in VARIANTS.values() for name in variant.on_the_hub),
]
COLUMNS = ["object", "score", "left", "top", "right", "bottom"]
TABS = {"attention": "Attention", "points": "Sampling"}
NUM_FIGURES = 3  # in each of these tabs
STAND_INS = {
    "attention": "The chosen model has no attention over all pixels. This is the attention of the "
    "other model that comes with hf_detr",
    "points": "The chosen model has no sampling points. These are the sampling points of the other "
    "model that comes with hf_detr",
}
HINT = "Click on your image to choose the pixel whose attention is drawn."
# On narrow screens what was found is above the choices.
STYLE = """
#table table { width: 100%; border-collapse: collapse; }
#table tr { border: 0; }
#table th, #table td { border: 0; border-bottom: 1px solid var(--border-color-primary); }
#table th, #table td { padding: 0.3em; text-align: right; overflow-wrap: break-word; }
#table th:first-child, #table td:first-child { text-align: left; }
@media (max-width: 768px) {
    #columns { flex-direction: column-reverse; flex-wrap: nowrap; }
    #picture { height: auto !important; min-height: 200px; }
    #table { font-size: 80%; }
}
"""
Points = list[tuple[float, float]] | None  # pixels (x, y); None: the objects' centres
Records = dict[str, AttentionRecord]  # of the image, by the models' names


def show(
    run: Run | None, threshold: float, own: bool = False
) -> tuple[Image.Image | None, str, str]:
    """The image with detections above the threshold, a summary, and a table in HTML.

    With `own`, the thresholds are those of the model's classes.
    """
    if run is None:
        return None, "", ""
    scale = max(LEAST_SIDE / max(run.picture.size), 1)
    picture = ImageOps.scale(run.picture, scale)
    least = threshold_of_labels(None if own else threshold, run.model.config)
    [result] = read_outputs(run.processor, run.outputs, least, [picture.size[::-1]])
    names = run.model.config.id2label
    columns = (
        values.tolist() for values in (result["scores"], result["labels"], result["boxes"] / scale)
    )
    objects = sorted(zip(*columns, strict=True), reverse=True)
    rows = [[names[label], f"{score:.2f}", *map(round, box)] for score, label, box in objects]
    counts = Counter(names[label] for _, label, _ in objects).most_common()
    summary = ", ".join(f"{count} × {name}" for name, count in counts)
    above = "its class's threshold" if own else f"{threshold:.2f}"
    summary = summary or f"No detection scores above {above}: move the threshold down."
    return draw_predictions(picture, result, names), summary, make_table(rows)


def make_table(rows: list[list[Any]]) -> str:
    """A table of objects in HTML, whole at any width; empty without rows."""
    if not rows:
        return ""
    heads = "".join(f"<th>{column}</th>" for column in COLUMNS)
    lines = ("".join(f"<td>{html.escape(str(cell))}</td>" for cell in row) for row in rows)
    body = "".join(f"<tr>{line}</tr>" for line in lines)
    return f"<table><thead><tr>{heads}</tr></thead><tbody>{body}</tbody></table>"


def has_own_thresholds(run: Run | None) -> bool:
    """Whether the model has thresholds of its classes."""
    return run is not None and bool(run.model.config.class_thresholds)


def explain(record: AttentionRecord, tab: str, threshold: float, points: Points) -> list[Figure]:
    """The figures of a tab.

    Raises:
        ValueError: if they don't fit the model.
    """
    if tab == "attention":
        record.query_maps([0])  # raises where attention is deformable
        return [
            draw_decoder_attention(record, threshold=threshold),
            draw_attention_heads(record, threshold=threshold),
            draw_encoder_attention(record, points, threshold),
        ]
    record.query_points([0])  # raises where it isn't
    return [
        draw_sampling_overview(record, points, threshold=threshold),
        draw_sampling_points(record, threshold=threshold),
        draw_encoder_sampling_points(record, points, threshold),
    ]


def draw_tab(
    run: Run | None,
    records: Records,
    tab: str,
    threshold: float,
    points: Points,
) -> tuple[Records, str, list[Image.Image]]:
    """The recorded attention, to be kept; a message; and the plots of a tab, if there are any.

    What one of the embedded models can't draw, the other one does.
    """
    if run is None:
        return records, "There is nothing to show yet.", []
    model, processor, words = run.model, run.processor, []
    if model.name_or_path in EMBEDDED.values() and model.name_or_path != EMBEDDED[tab]:
        model, processor = load(EMBEDDED[tab])
        words.append(f"{STAND_INS[tab]} ({type(model).__name__}).")
    record = records.get(model.name_or_path)
    if record is None:
        [record] = record_attention(model, processor, run.picture)
        records = {**records, model.name_or_path: record}
    if not float(record.scores.max()) > threshold:
        words.append(f"No score is above {threshold:.2f}: the best few.")
    try:
        pictures = [as_picture(figure) for figure in explain(record, tab, threshold, points)]
    except ValueError as error:
        message = str(error)
        return records, message[0].upper() + message[1:], []
    return records, " ".join([*words, HINT]), pictures


def as_picture(figure: Figure) -> Image.Image:
    """The pixels of a figure."""
    file = io.BytesIO()
    figure.savefig(file, dpi=130)
    return Image.open(file)


def make_page(model: str | None = None) -> Any:
    """A page of gradio that starts with a model, by default the package's, and an example."""
    os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")  # gradio asks when it is imported
    os.environ.setdefault("GRADIO_RUN_HISTORY", "False")
    import gradio as gr

    with gr.Blocks(title="hf_detr") as page:
        gr.Markdown("# hf_detr: detections, attention and sampling points")
        with gr.Row(elem_id="columns"):
            with gr.Column(scale=1, min_width=280):
                name, image, threshold, own = _add_inputs(gr, model or GARMENTS)
            with gr.Column(scale=2, min_width=280):
                said = gr.Markdown(elem_id="said")
                tabs, panels = _add_tabs(gr)
        run, records, points, open_tab = (
            gr.State(),
            gr.State({}),
            gr.State(),
            gr.State("detections"),
        )
        drawing = {
            "fn": partial(_draw_open, gr, records, panels),
            "inputs": [run, records, open_tab, threshold, points],
            "outputs": [records, *panels["attention"], *panels["points"]],
        }
        showing = {
            "fn": show,
            "inputs": [run, threshold, own],
            "outputs": panels["detections"],
            "show_progress": "hidden",
        }
        looked = gr.on(
            [page.load, name.change, image.change],
            partial(_look, gr),
            [name, image],
            [run, said],
            preprocess=False,  # gradio opens the image, and shows its own error where that fails
            show_progress_on=panels["detections"][0],
        )
        offered = looked.then(partial(_offer_own, gr), run, own)
        offered.then(lambda: ({}, None), None, [records, points]).then(**showing).then(**drawing)
        own.change(**showing)
        threshold.input(lambda: False, None, own, show_progress="hidden")
        threshold.change(**showing)
        threshold.change(**drawing)

        def choose(event: gr.SelectData) -> list[tuple[float, float]]:
            return [tuple(event.index)]

        image.select(choose, None, points).then(**drawing)
        for key, tab in tabs.items():
            tab.select(partial(str, key), None, open_tab).then(**drawing)
    return page


def _look(gr: ModuleType, name: str | None, upload: dict[str, Any] | None) -> tuple[Any, str]:
    """`look` at an upload; where that fails, its message is also shown above the page."""
    run, said = look(name, upload and upload["path"])
    if run is None and upload and name:
        gr.Warning(said.removeprefix(ALERT), duration=None)
    return run, said


def _offer_own(gr: ModuleType, run: Run | None) -> Any:
    """Check the box of the model's own thresholds if it has them, else hide it."""
    return gr.Checkbox(value=has_own_thresholds(run), visible=has_own_thresholds(run))


def _add_inputs(gr: ModuleType, model: str) -> tuple[Any, Any, Any, Any]:
    """Add the model's name, the image, the threshold, and whether to use the model's own."""
    name = gr.Dropdown(
        MODELS,
        value=model,
        label="Model",
        info="or enter a folder or a name on the Hub",
        allow_custom_value=True,
    )
    image = gr.Image(
        EXAMPLE,
        label="Image",
        type="filepath",
        image_mode=None,  # the file as it is
        height=300,
        elem_id="image",
    )
    threshold = gr.Slider(0.01, 0.99, 0.5, step=0.01, label="Least score")
    own = gr.Checkbox(label="The model's own threshold of each class instead", visible=False)
    gr.Examples([str(EXAMPLE)], image, label="Example")
    return name, image, threshold, own


def _add_tabs(gr: ModuleType) -> tuple[dict[str, Any], dict[str, list[Any]]]:
    """Add the tabs; return them and what is in each: a message or picture, and others."""
    plain = {"show_label": False, "interactive": False, "buttons": ["download", "fullscreen"]}
    tabs, panels = {}, {}
    with gr.Tab("Detections") as tabs["detections"]:
        panels["detections"] = [
            gr.Image(height=480, elem_id="picture", **plain),
            gr.Markdown(elem_id="summary"),
            gr.HTML(elem_id="table", padding=False),
        ]
    for key, title in TABS.items():
        with gr.Tab(title) as tabs[key]:
            words = gr.Markdown(elem_id=f"{key}-words")
            panels[key] = [words, *(gr.Image(visible=False, **plain) for _ in range(NUM_FIGURES))]
    return tabs, panels


def _draw_open(
    gr: ModuleType,
    state: Any,
    panels: dict[str, list[Any]],
    run: Run | None,
    records: Records,
    tab: str,
    threshold: float,
    points: Points,
) -> dict[Any, Any]:
    """The new contents of the open tab's components and of the state of the records."""
    if tab not in TABS:
        return {state: records}
    records, message, pictures = draw_tab(run, records, tab, threshold, points)
    words, *figures = panels[tab]
    pictures = pictures + [None] * (NUM_FIGURES - len(pictures))
    updates = [gr.Image(p, visible=p is not None) for p in pictures]
    return {state: records, words: message, **dict(zip(figures, updates, strict=True))}
