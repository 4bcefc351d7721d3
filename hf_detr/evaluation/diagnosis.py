"""What a detector does wrong: thresholds, confused classes, kinds of errors, images to look at.

Errors are counted at the score thresholds of best F1 and at an IoU of 0.5. A DETR returns all its
queries, so that without thresholds nearly all detections would be errors.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np

from ..inference.score_thresholds import DEFAULT
from .detection_columns import DetectionColumns
from .ground_truth import GroundTruth
from .score_curves import ScoreCurve, joined_curve

MOST_IMAGES = 12  # of each kind, to be shown
CONFIDENT = 0.5  # score from which a detection casts doubt on the targets
IOU = 0.5
# The kinds of TIDE (arXiv 2008.08115), and the backend's names
KINDS = {
    "class": "Cls",
    "place": "Loc",
    "class and place": "Both",
    "duplicate": "Dupe",
    "background": "Bkg",
    "missed": "Miss",
}


@dataclass(frozen=True)
class LabelDoubt:
    """A confident detection that contradicts the targets.

    Attributes:
        label, score: of the detection.
        target_label: label of the target at its place; None: there is no target.
    """

    label: int
    score: float
    target_label: int | None


@dataclass(frozen=True)
class ImageErrors:
    """The detections of one image above the thresholds, and its targets.

    Attributes:
        image_id: of the data set.
        num_true, num_false, num_missed: detections with and without an object, missed objects.
        doubts: confident detections that contradict the targets, best first.
        scores, labels, boxes_xyxy: of n detections; boxes in pixels.
        target_labels, target_boxes_xyxy: of m objects, without crowds.
    """

    image_id: int
    num_true: int
    num_false: int
    num_missed: int
    doubts: list[LabelDoubt]
    scores: np.ndarray
    labels: np.ndarray
    boxes_xyxy: np.ndarray
    target_labels: np.ndarray
    target_boxes_xyxy: np.ndarray


@dataclass(frozen=True)
class Diagnosis:
    """Errors of a detector on a data set of K classes.

    Attributes:
        names: of the classes.
        thresholds: per class the score of the best F1, see `ScoreCurve.best_threshold`; None for a
            class without objects that are found.
        class_thresholds: those as a model's configuration has them, class name -> score; by
            `evaluate` with the model's names.
        curves: per class.
        precision: (K, 101) at an IoU of 0.5, over recalls 0, 0.01, … 1; -1 without objects.
        confusion: (K + 1, K + 1) numbers of targets of a class (row) that were found as a class
            (column); the last row are detections without target, the last column missed targets.
        errors: numbers of the kinds of `KINDS`.
        gains: AP50 that the model would gain if the errors of a kind were corrected.
        worst: images with the lowest F1, and of equal ones those with the most errors.
        doubtful: images whose targets may be wrong, the most confident contradiction first.
        num_images, num_doubtful: of the data set, and those of `doubtful` before the limit.
    """

    names: list[str]
    thresholds: list[float | None]
    class_thresholds: dict[str, float]
    curves: list[ScoreCurve]
    precision: np.ndarray
    confusion: np.ndarray
    errors: dict[str, int]
    gains: dict[str, float]
    worst: list[ImageErrors]
    doubtful: list[ImageErrors]
    num_images: int
    num_doubtful: int

    def used_thresholds(self) -> list[float]:
        """Return the threshold of each class at which errors are counted."""
        return [DEFAULT if best is None else best for best in self.thresholds]


def make_diagnosis(evaluation: Any, truth: GroundTruth, found: DetectionColumns) -> Diagnosis:
    """Count the errors of boxes.

    Args:
        evaluation: the backend's, after `accumulate`.
        truth: what was to be found.
        found: all detections.
    """
    matched = evaluation.image_diagnostics(iou_thr=IOU, score_thr=2.0)["dt_status"]
    # Without those beyond the maximum number, and in crowds, which count as nothing.
    counted = np.fromiter(matched, np.int64, len(matched)) - 1
    is_true = np.fromiter((s == "tp" for s in matched.values()), bool, len(matched))
    curves = _curves(truth, found.labels[counted], found.scores[counted], is_true)
    names = [category["name"] for category in truth.categories]
    of_all = joined_curve(curves)
    thresholds = [curve.best_threshold(of_all) for curve in curves]
    named = {name: best for name, best in zip(names, thresholds, strict=True) if best is not None}
    used = np.array([DEFAULT if best is None else best for best in thresholds])
    keep = np.zeros(len(found.scores), dtype=bool)
    keep[counted] = found.scores[counted] > used[found.labels[counted]]
    kept = _of_rows(evaluation, found, keep)
    counts = kept.tide_errors(pos_thr=IOU)["counts"]
    gains = evaluation.tide_errors(pos_thr=IOU)["delta_ap"]
    summaries = kept.image_diagnostics(iou_thr=IOU)["img_summary"]
    # Alone, so that a target isn't matched with an unlikely second class of the same query.
    confident = _of_rows(evaluation, found, keep & (found.scores > CONFIDENT))
    doubts = confident.image_diagnostics(iou_thr=IOU, score_thr=CONFIDENT)["label_errors"]
    worst, doubtful = _images(summaries, doubts)
    images = _ImageReader(truth, found, keep)
    return Diagnosis(
        names=names,
        thresholds=thresholds,
        class_thresholds=named,
        curves=curves,
        precision=evaluation.eval["precision"][0, :, :, 0, -1].T,
        confusion=kept.confusion_matrix(iou_thr=IOU, max_det=len(keep))["matrix"].astype(np.int64),
        errors={kind: counts[name] for kind, name in KINDS.items()},
        gains={kind: gains[name] for kind, name in KINDS.items()},
        worst=[images.read(*one) for one in worst[:MOST_IMAGES]],
        doubtful=[images.read(*one) for one in doubtful[:MOST_IMAGES]],
        num_images=len(truth.images),
        num_doubtful=len(doubtful),
    )


def _of_rows(evaluation: Any, found: DetectionColumns, keep: np.ndarray) -> Any:
    """Return the backend's evaluation of some of the detections."""
    truth = evaluation.coco_gt
    some = type(evaluation)(truth, truth.load_res(found.rows()[keep]), "bbox")
    some.params.max_dets = evaluation.params.max_dets
    some.evaluate()
    return some


def _curves(
    truth: GroundTruth, labels: np.ndarray, scores: np.ndarray, is_true: np.ndarray
) -> list[ScoreCurve]:
    number = len(truth.labels)
    objects = np.bincount(truth.objects.labels[~truth.objects.is_crowd], minlength=number)
    order = np.lexsort((scores, labels))
    labels, scores, is_true = labels[order], scores[order], is_true[order]
    starts = np.searchsorted(labels, np.arange(1, number))
    parts = zip(np.split(scores, starts), np.split(is_true, starts), strict=True)
    return [
        ScoreCurve(of_class[true], of_class, int(objects[label]))
        for label, (of_class, true) in enumerate(parts)
    ]


_Image = tuple[int, dict[str, Any], list[dict[str, Any]]]  # index, summary, doubts


def _images(
    summaries: dict[int, dict[str, Any]], label_errors: list[dict[str, Any]]
) -> tuple[list[_Image], list[_Image]]:
    """Return the images with errors, the worst first, and those with doubtful targets."""
    doubts: dict[int, list[dict[str, Any]]] = {}
    for one in sorted(label_errors, key=lambda one: (-one["dt_score"], one["dt_id"])):
        doubts.setdefault(one["image_id"], []).append(one)
    errors = {index: one["fp"] + one["fn"] for index, one in summaries.items()}
    worst = sorted(
        (index for index, number in errors.items() if number),
        key=lambda index: (summaries[index]["f1"], -errors[index], index),
    )
    return (
        [(index, summaries[index], doubts.get(index, [])) for index in worst],
        [(index, summaries[index], ones) for index, ones in doubts.items()],
    )


class _ImageReader:
    """Takes single images from the columns of all."""

    def __init__(self, truth: GroundTruth, found: DetectionColumns, keep: np.ndarray) -> None:
        self.truth, self.found, self.keep = truth, found, keep
        self.image_of_rows = found.image_of_rows()

    def read(
        self, index: int, summary: dict[str, Any], doubts: list[dict[str, Any]]
    ) -> ImageErrors:
        objects, found, labels = self.truth.objects, self.found, np.array(self.truth.labels)
        rows = np.flatnonzero((self.image_of_rows == index) & self.keep)
        targets = (objects.images == index) & ~objects.is_crowd
        boxes = objects.boxes_xywh[targets]
        category = ("dt_category_id", "dt_score", "gt_category_id")
        return ImageErrors(
            image_id=self.truth.image_ids[index],
            num_true=summary["tp"],
            num_false=summary["fp"],
            num_missed=summary["fn"],
            doubts=[
                LabelDoubt(
                    self.truth.labels[label], score, None if of is None else self.truth.labels[of]
                )
                for label, score, of in ([one[key] for key in category] for one in doubts)
            ],
            scores=found.scores[rows],
            labels=labels[found.labels[rows]],
            boxes_xyxy=found.boxes_xyxy[rows],
            target_labels=labels[objects.labels[targets]],
            target_boxes_xyxy=np.concatenate([boxes[:, :2], boxes[:, :2] + boxes[:, 2:]], axis=1),
        )
