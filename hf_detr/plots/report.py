"""The report of an evaluation: one HTML page, which needs neither network nor JavaScript."""

import base64
import io
import os
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jinja2 import Environment
from torch.utils.data import Dataset

from ..atomic_saving import atomic_file
from ..data.dataset import DetectionDataset, as_detection_dataset
from ..data.image_source import READING_ERRORS
from ..data.streamed import StreamedDataset
from ..evaluation.coco_evaluator import Metrics
from ..evaluation.diagnosis import CONFIDENT, Diagnosis, ImageErrors, LabelDoubt
from ..evaluation.score_curves import SCORES
from ..inference.drawing import draw_predictions, make_picture
from ..inference.score_thresholds import DEFAULT
from .figures import COLORS, Axes, Figure, make_chart

TEMPLATE = Path(__file__).with_name("report.html")
LARGEST_MATRIX = 100  # classes
MOST_CONFUSIONS = 12
MOST_DOUBTS = 3  # that are described per image
# Pixels of a picture's longer side; small images are enlarged, for letters that can be read.
SMALLEST, LARGEST = 384, 512
JPEG_QUALITY = 82
CHART_INCHES, DOTS_PER_INCH = (4.6, 3.5), 170
COLORED = [color for color in COLORS if color != "#F0E442"]  # yellow is too pale for lines
GRAY = {"color": "0.8", "linewidth": 0.7}
NO_PICTURES = "There are no pictures: the images were streamed and can't be read a second time."
WORDS = {
    "class": "At the place of an object of another class. Look at the confused classes and "
    "doubtful targets below; more examples of these classes.",
    "place": "The right class, but an IoU of 0.1 to 0.5. Check how tightly boxes are drawn; longer "
    "training, larger images.",
    "class and place": "Another class, and an IoU of 0.1 to 0.5.",
    "duplicate": "An object that was found with a higher score already. A higher threshold.",
    "background": "No object is near. Look for objects without label among the doubtful targets; "
    "more images without objects.",
    "missed": "An object that no detection came near. More examples; larger images if it is small.",
}


def write_report(
    file: str | os.PathLike[str],
    metrics: Metrics,
    dataset: Dataset | None = None,
    model: str = "the model",
    data: str = "the data set",
) -> None:
    """Write the report of an evaluation.

    Args:
        file: the HTML file, whose pictures are part of it.
        metrics: the result of `evaluate(…, diagnose=True)`; `panoptic` can have that of
            `evaluate_panoptic`.
        dataset: the data set, from which images are read again; None, or a stream, which can't be,
            leaves pictures out.
        model, data: names for the title.

    Raises:
        ValueError: if `metrics` has no `diagnosis`, or is of other images.
    """
    diagnosis = metrics.get("diagnosis")
    if not isinstance(diagnosis, Diagnosis):
        raise ValueError("metrics has no diagnosis; call evaluate with diagnose=True.")
    if isinstance(dataset, StreamedDataset):
        dataset = None
    objects = sum(curve.num_objects for curve in diagnosis.curves)
    facts = {"image": diagnosis.num_images, "object": objects, "class": len(diagnosis.names)}
    values = {
        "title": f"{model} on {data}",
        "subtitle": ", ".join(_number_of(noun, number) for noun, number in facts.items()),
        "numbers": _numbers(metrics),
        "default_threshold": DEFAULT,
        "confident": CONFIDENT,
        "num_images": diagnosis.num_images,
        "num_doubtful": diagnosis.num_doubtful,
        "no_pictures": NO_PICTURES if dataset is None else "",
        **_errors(diagnosis),
        **_classes(metrics, diagnosis),
        **_charts(diagnosis),
        **_confusion(diagnosis),
    }
    if dataset is not None:
        pictures = _Pictures(as_detection_dataset(dataset))
        values["worst"] = [pictures.describe(one, False) for one in diagnosis.worst]
        values["doubtful"] = [pictures.describe(one, True) for one in diagnosis.doubtful]
    template = TEMPLATE.read_text(encoding="utf-8")
    page = Environment(autoescape=True).from_string(template).render(values)
    with atomic_file(file) as unfinished:
        unfinished.write_text(page, encoding="utf-8")


def _number_of(noun: str, number: int) -> str:
    plural = "es" if noun.endswith("s") else "s"
    return f"{number:,} {noun}{'' if number == 1 else plural}"


def _percent(value: float) -> str:
    return f"{100 * value:.1f}" if value >= 0 else "–"  # NaN and -1: there is nothing to measure


def _numbers(metrics: Metrics) -> list[tuple[str, list[tuple[str, str]]]]:
    """Titles of the kinds of metrics, and their names and values in percent."""
    floats = {name: value for name, value in metrics.items() if isinstance(value, float)}
    masks = {name[5:]: value for name, value in floats.items() if name.startswith("segm_")}
    boxes = {name: value for name, value in floats.items() if not name.startswith("segm_")}
    panoptic = metrics.get("panoptic", {}).items()
    segments = {name: value for name, value in panoptic if isinstance(value, float)}
    kinds = {"Boxes": boxes, "Masks": masks, "Segments": segments}
    return [
        (kind, [(name.replace("_", " "), _percent(value)) for name, value in values.items()])
        for kind, values in kinds.items()
        if values
    ]


def _errors(diagnosis: Diagnosis) -> dict[str, Any]:
    total = max(sum(diagnosis.errors.values()), 1)
    counts = [
        curve.counts(threshold)
        for curve, threshold in zip(diagnosis.curves, diagnosis.used_thresholds(), strict=True)
    ]
    num_true, num_found = (int(sum(column)) for column in zip(*counts, strict=True))
    rows = [
        {
            "kind": kind,
            "number": number,
            "percent": round(100 * number / total, 1),
            "gain": f"+{100 * diagnosis.gains[kind]:.1f}",
            "words": WORDS[kind],
        }
        for kind, number in diagnosis.errors.items()
    ]
    return {
        "errors": rows,
        "num_true": num_true,
        "num_found": num_found,
        "num_false": num_found - num_true,
        "num_objects": sum(curve.num_objects for curve in diagnosis.curves),
    }


def _classes(metrics: Metrics, diagnosis: Diagnosis) -> dict[str, Any]:
    """The table of classes, the lowest AP first and those without objects last."""
    averages = [f"{prefix}{ap}" for prefix in ("", "segm_") for ap in ("AP", "AP50", "AP75")]
    averages = [name for name in averages if name in metrics]
    rows = []
    columns = diagnosis.names, diagnosis.curves, diagnosis.thresholds, diagnosis.used_thresholds()
    for name, curve, best, threshold in zip(*columns, strict=True):
        one = metrics["per_class"][name]
        true, found = (int(number) for number in curve.counts(threshold))
        has_objects = curve.num_objects > 0
        shown = f"{threshold:.3f}" if best is not None else "–"
        cells = [
            curve.num_objects,
            *(_percent(one[average]) for average in averages),
            shown,
            _percent(true / found if found else -1),
            _percent(true / curve.num_objects if has_objects else -1),
            _percent(float(curve.f1(threshold)) if has_objects else -1),
        ]
        rows.append(((not has_objects, one["AP"], name), cells))
    rows.sort(key=lambda row: row[0])
    names = [average.replace("segm_", "mask ") for average in averages]
    return {
        "class_columns": ["objects", *names, "threshold", "precision", "recall", "F1"],
        "classes": [(key[-1], cells) for key, cells in rows],
    }


def _charts(diagnosis: Diagnosis) -> dict[str, Any]:
    """Curves of all classes with objects, those with the lowest AP50 in colour."""
    known = [k for k, curve in enumerate(diagnosis.curves) if curve.num_objects]
    if not known:
        return {"charts": []}
    known.sort(key=lambda k: diagnosis.precision[k].mean())
    curves = [diagnosis.curves[k] for k in known]
    precision, recall = make_chart("recall", "precision", CHART_INCHES)
    _draw_curves(recall, np.linspace(0, 1, 101), diagnosis.precision[known])
    f1, score = make_chart("score threshold", "F1", CHART_INCHES)
    _draw_curves(score, SCORES, np.stack([curve.f1() for curve in curves]))
    for color, k, curve in zip(COLORED, known, curves, strict=False):
        if (best := diagnosis.thresholds[k]) is not None:
            score.plot([best], [curve.f1(best)], "o", color=color, markeredgecolor="black")
    return {
        "charts": [
            {"src": _chart(precision), "text": "Precision over recall at an IoU of 0.5"},
            {"src": _chart(f1), "text": "F1 over the threshold; a point is the one chosen"},
        ],
        "key": [(color, diagnosis.names[k]) for color, k in zip(COLORED, known, strict=False)],
        "num_gray": max(len(known) - len(COLORED), 0),
    }


def _draw_curves(axis: Axes, x: np.ndarray, values: np.ndarray) -> None:
    """Draw the curves (K, n) of classes, the first ones in colour, and their mean."""
    for k in reversed(range(len(values))):
        style = {"color": COLORED[k], "linewidth": 1.4} if k < len(COLORED) else GRAY
        axis.plot(x, values[k], **style)
    axis.plot(x, values.mean(0), color="black", linewidth=2)
    axis.set(xlim=(0, 1), ylim=(0, 1.02))


def _confusion(diagnosis: Diagnosis) -> dict[str, Any]:
    matrix, names = diagnosis.confusion, diagnosis.names
    totals = matrix.sum(1)
    wrong = matrix[:-1, :-1] * (1 - np.eye(len(names), dtype=matrix.dtype))
    order = np.argsort(-wrong, axis=None, kind="stable")[:MOST_CONFUSIONS]
    pairs = [divmod(int(place), len(names)) for place in order]
    confusions = [
        {
            "target": names[t],
            "found": names[f],
            "number": int(wrong[t, f]),
            "objects": int(totals[t]),
        }
        for t, f in pairs
        if wrong[t, f]
    ]
    if len(names) > LARGEST_MATRIX:
        return {"confusions": confusions}
    shares = matrix / np.maximum(totals, 1)[:, None]
    rows = [
        (name, [_cell(int(matrix[r, c]), float(shares[r, c]), r == c) for c in range(len(matrix))])
        for r, name in enumerate([*names, "no target"])
    ]
    return {"confusions": confusions, "matrix": rows, "matrix_names": names}


def _cell(number: int, share: float, is_right: bool) -> dict[str, Any]:
    kind = " ".join(["right"] * is_right + ["strong"] * (share > 0.6))
    return {"number": number, "share": f"{max(share, 0.06):.2f}", "kind": kind}


class _Pictures:
    """Reads the images again, one at a time."""

    def __init__(self, dataset: DetectionDataset) -> None:
        self.dataset, self.names = dataset, dataset.id2label
        self.index_of = {int(id_): index for index, id_ in enumerate(dataset.table.image_ids)}

    def describe(self, errors: ImageErrors, is_doubtful: bool) -> dict[str, Any]:
        """The two pictures of an image, or why there are none, with its name and a line of text."""
        index = self.index_of.get(errors.image_id)
        if index is None:
            raise ValueError(
                f"The data set has no image {errors.image_id}; give the one that was evaluated."
            )
        words = f"{errors.num_true} found, {errors.num_missed} missed, {errors.num_false} wrong"
        if is_doubtful:
            words = "; ".join(map(self._describe_doubt, errors.doubts[:MOST_DOUBTS]))
        image = {"name": Path(self.dataset.images.name(index)).name, "words": words}
        try:
            with self.dataset.images.open(index) as opened:
                picture = make_picture(opened)
        except READING_ERRORS as error:
            return {**image, "problem": f"The image can't be read again: {error}"}
        side = max(picture.size)
        scale = min(max(side, SMALLEST), LARGEST) / side
        picture = picture.resize([max(round(scale * length), 1) for length in picture.size])
        found = {"scores": torch.from_numpy(errors.scores), "labels": errors.labels}
        for name, result, boxes in (
            ("found", found, errors.boxes_xyxy),
            ("targets", {"labels": errors.target_labels}, errors.target_boxes_xyxy),
        ):
            result["labels"] = torch.from_numpy(result["labels"])
            result["boxes"] = torch.from_numpy(boxes * scale).float()
            drawn = io.BytesIO()
            draw_predictions(picture, result, self.names).save(drawn, "JPEG", quality=JPEG_QUALITY)
            image[name] = _data_uri("jpeg", drawn)
        return image

    def _describe_doubt(self, doubt: LabelDoubt) -> str:
        target = "no target"
        if doubt.target_label is not None:
            target = f"but the target is {self.names[doubt.target_label]}"
        return f"{self.names[doubt.label]} with score {doubt.score:.2f}, {target}"


def _chart(figure: Figure) -> str:
    pixels = io.BytesIO()
    figure.savefig(pixels, format="png", dpi=DOTS_PER_INCH)
    return _data_uri("png", pixels)


def _data_uri(kind: str, file: io.BytesIO) -> str:
    return f"data:image/{kind};base64,{base64.b64encode(file.getvalue()).decode()}"
