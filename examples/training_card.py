"""Write a model card: metrics, the training's curve, and detections in a few images."""

import csv
from pathlib import Path
from typing import Any

import matplotlib
import torch
from training_options import RECIPES
from transformers import AutoConfig, ObjectDetectionPipeline

from hf_detr import draw_predictions, predict
from hf_detr.detection_data import DetectionDataset
from hf_detr.model_card import CardResults, make_model_card, markdown_table

matplotlib.use("Agg")
from matplotlib import pyplot as plt  # noqa: E402

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
    losses: Path,
    options: dict[str, Any],
) -> None:
    """Write `README.md`, `curve.png` and `samples.png` beside a model.

    Args:
        folder: the model's.
        name: from what the card's code loads the model, the folder or a repository.
        detector: the trained model.
        data: what it was evaluated on; samples are taken from its beginning.
        data_name: of the data set.
        history: metrics of every evaluation.
        losses: file with the columns `step` and `loss`.
        options: of the training.
    """
    best = max(history, key=lambda entry: entry["AP"])
    draw_curve(folder / "curve.png", history, losses)
    draw_samples(folder / "samples.png", detector, data)
    # -1 stands for what can't be computed.
    known = [metric for metric in SUMMARY if best.get(metric, -1) >= 0]
    card = make_model_card(
        AutoConfig.from_pretrained(folder),
        name=name,
        description=f"Finds {', '.join(data.id2label.values())}.",
        results=[
            CardResults(
                {metric: round(best[metric], 3) for metric in known},
                f"{data_name}, {len(data)} images",
                data_name,
            )
        ],
        evaluation=describe_evaluation(best),
        training=markdown_table(("option", "value"), options.items()),
        base_model=base_model(options["model"]),
    )
    card.save(folder / "README.md")


def describe_evaluation(best: dict[str, Any]) -> str:
    """When the model was best, and how good for each class, with the pictures."""
    classes = [
        (name, one["num_objects"], f"{one['AP']:.3f}", f"{one['AP50']:.3f}")
        for name, one in best["per_class"].items()
    ]
    return f"""COCO's metrics after {best["epoch"]} epochs ({best["step"]} steps).

{markdown_table(("class", "objects", "AP", "AP50"), classes)}

![Loss and AP over the training](curve.png)

Detections above {THRESHOLD} in the first images, none chosen:

![Detections](samples.png)"""


def base_model(model: str) -> str | None:
    """The Hub's name of what the training started from; None if that was no model of the Hub."""
    is_fresh = model in RECIPES or model.endswith(".json")
    return None if is_fresh or Path(model).exists() else model


def draw_curve(file: Path, history: list[dict[str, Any]], losses: Path) -> None:
    """Loss of every step and AP of every evaluation."""
    with losses.open() as lines:
        rows = [row for row in csv.DictReader(lines) if row["loss"]]
    figure, left = plt.subplots(figsize=(7, 4), layout="constrained")
    steps, values = [int(r["step"]) for r in rows], torch.tensor([float(r["loss"]) for r in rows])
    left.plot(steps, values, color="tab:blue", alpha=0.2, linewidth=0.5)
    width = max(len(values) // 100, 1)
    smooth = values.unfold(0, width, 1).mean(-1) if len(values) else values
    left.plot(steps[width - 1 :], smooth, color="tab:blue")
    left.set(xlabel="step", ylabel="loss", ylim=(0, None))
    right = left.twinx()
    for name, style in (("AP", "-"), ("AP50", "--")):
        points = [entry[name] for entry in history]
        right.plot([e["step"] for e in history], points, style, color="tab:orange", label=name)
    right.set(ylabel="AP", ylim=(0, 1))
    right.legend(loc="center right")
    figure.savefig(file, dpi=120)
    plt.close(figure)


def draw_samples(file: Path, detector: ObjectDetectionPipeline, data: DetectionDataset) -> None:
    """Detections in the first images."""
    number = min(SAMPLES, len(data))
    figure, axes = plt.subplots(1, number, figsize=(4 * number, 4), squeeze=False)
    for index, axis in enumerate(axes[0]):
        picture = data.images.open(index)
        (result,) = predict(detector.model, detector.image_processor, picture, THRESHOLD)
        axis.imshow(draw_predictions(picture, result, detector.model.config.id2label))
        axis.axis("off")
    figure.tight_layout()
    figure.savefig(file, dpi=100)
    plt.close(figure)
