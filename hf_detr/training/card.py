"""Write a model card with metrics, training curve and detections in some images."""

import os
from pathlib import Path
from typing import Any

from transformers import AutoConfig, ObjectDetectionPipeline

from ..checkpoints.model_card import (
    CARD_NAME,
    CardResults,
    make_model_card,
    markdown_table,
    needs_hf_detr,
)
from ..data.dataset import DetectionDataset
from ..data.layouts import HUB_NAME
from ..inference.record_attention import record_attention
from ..plots.detection_plots import draw_detections
from ..plots.training_plots import draw_training_curves

SAMPLES = 4
THRESHOLD = 0.5
SUMMARY = ("AP", "AP50", "AP75", "AP_small", "AP_medium", "AP_large", "AR_100", "pq", "sq", "rq")


def write_card(
    folder: Path,
    name: str,
    detector: ObjectDetectionPipeline,
    data: DetectionDataset,
    data_name: str,
    history: list[dict[str, Any]],
    best: dict[str, Any],
    losses: Path,
    options: dict[str, Any],
) -> None:
    """Write `README.md`, `curve.png` and `samples.png` to the folder of a model.

    Args:
        folder: the model's folder.
        name: folder or repository from which the card's code loads the model.
        detector: pipeline of the trained model.
        data: validation data; samples are the first images.
        data_name: name of the data set.
        history: metrics of all evaluations.
        best: those of the model.
        losses: CSV file with the columns `step` and `loss`.
        options: options of the training.
    """
    draw_training_curves(losses, history).savefig(folder / "curve.png", dpi=120)
    draw_samples(folder / "samples.png", detector, data)
    # A metric that can't be computed is -1.
    known = [metric for metric in SUMMARY if best.get(metric, -1) >= 0]
    card = make_model_card(
        AutoConfig.from_pretrained(folder),
        name=name,
        description=f"Detects {', '.join(data.id2label.values())}.",
        results=[
            CardResults(
                {metric: round(best[metric], 3) for metric in known},
                f"{data_name}, {len(data)} images",
                data_name,
            )
        ],
        evaluation=describe_evaluation(best),
        training=markdown_table(
            ("option", "value"),
            # The description has the classes.
            [(option, value) for option, value in options.items() if option != "classes"],
        ),
        base_model=base_model(options["model"]),
        only_here=needs_hf_detr(detector.model),
    )
    card.save(folder / CARD_NAME)


def describe_evaluation(best: dict[str, Any]) -> str:
    """Metrics per class of the best epoch, and the images."""
    classes = [
        (name, one["num_objects"], f"{one['AP']:.3f}", f"{one['AP50']:.3f}")
        for name, one in best["per_class"].items()
    ]
    return f"""COCO's metrics after {best["epoch"]} epochs ({best["step"]} steps).

{markdown_table(("class", "objects", "AP", "AP50"), classes)}

![Loss and AP over the training](curve.png)

Detections with scores above {THRESHOLD} in the first validation images:

![Detections](samples.png)"""


def name_of_data(data: Any) -> str:
    """The name of a folder or file; other data are the user's own."""
    if not isinstance(data, str | os.PathLike):
        return "own data"
    path = Path(data).resolve()  # "." has a name too
    return path.name if path.is_dir() else path.stem


def base_model(model: str) -> str | None:
    """The Hub's name of the fine-tuned model; None for new and local models."""
    return (
        model if "/" in model and HUB_NAME.fullmatch(model) and not Path(model).exists() else None
    )


def draw_samples(file: Path, detector: ObjectDetectionPipeline, data: DetectionDataset) -> None:
    """Draw detections in the first images."""
    records = [
        record
        for index in range(min(SAMPLES, len(data)))
        for record in record_attention(
            detector.model,
            detector.image_processor,
            data.images.open(index),
            attentions=False,
        )
    ]
    draw_detections(records, threshold=THRESHOLD).savefig(file, dpi=100)
