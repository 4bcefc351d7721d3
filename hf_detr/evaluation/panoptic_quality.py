"""Panoptic quality (arXiv 1801.00868) as in COCO, also in distributed runs.

Other implementations don't support crowds (torchmetrics) or distributed runs (hotcoco, the
reference in the tests).

A target segment is found if a predicted segment of its class has an IoU above 0.5 with it; there
can be only one. For each class, SQ is the mean IoU of the found segments, RQ = TP / (TP + FP/2 +
FN/2), and PQ = SQ * RQ.
"""

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..data.dataset import DetectionDataset
from ..data.image_source import read_segment_ids
from ..distributed import compute_on_main_process

# The classes of an image (k,), and for each class (k, 4) the sum of the IoU of found segments, and
# the numbers of true positives, false positives and false negatives.
ImageSums = tuple[np.ndarray, np.ndarray]


class PanopticQuality:
    """Collects segments and computes PQ, SQ and RQ.

    Args:
        id2label: label id -> class name, as in the model's configuration.
        thing_label_ids: label ids of things; the other classes are stuff.

    Raises:
        ValueError: if `thing_label_ids` has ids that aren't in `id2label`.
    """

    def __init__(self, id2label: Mapping[int, str], thing_label_ids: Collection[int]) -> None:
        self.id2label = dict(id2label)
        self.thing_label_ids = frozenset(thing_label_ids)
        unknown = sorted(self.thing_label_ids - set(self.id2label))
        if unknown:
            raise ValueError(
                f"thing_label_ids has {unknown}; expected label ids of the model in id2label, not "
                "category ids of the data set."
            )
        self._images: dict[int, ImageSums] = {}

    def update(
        self,
        image_ids: Sequence[int | Tensor],
        predictions: Sequence[Mapping[str, Any]],
        targets: Sequence[Mapping[str, Any]],
    ) -> None:
        """Add images. Images that were added before, such as repeats of a sampler, are ignored.

        Args:
            image_ids: id of each image.
            predictions: for each image, as returned by `post_process_panoptic_segmentation`,
                `segmentation` (h, w) of segment ids, 0 and -1 for none, and `segments_info` with
                the `id` and `label_id` of each segment. Parts of a fused segment share their id.
            targets: for each image `segmentation` (h, w) of segment ids, 0 for void, and
                `segments_info` with the `id` and the `category_id` or `label_id` of each segment,
                both label ids, and optionally `iscrowd` (0 or 1).

        Raises:
            ValueError: if sizes differ, ids and records don't match, or a class is unknown.
        """
        if not len(image_ids) == len(predictions) == len(targets):
            raise ValueError(
                f"There are {len(image_ids)} image_ids, {len(predictions)} predictions and "
                f"{len(targets)} targets; expected one of each per image."
            )
        for image_id, prediction, target in zip(image_ids, predictions, targets, strict=True):
            image_id = int(image_id)
            if image_id in self._images:
                continue
            predicted = self._read(prediction, f"image_id {image_id}, prediction")
            true = self._read(target, f"image_id {image_id}, target")
            if predicted.index.shape != true.index.shape:
                raise ValueError(
                    f"image_id {image_id} has a predicted segmentation of {predicted.index.shape} "
                    f"(height, width), but a target of {true.index.shape}; pass the size of the "
                    "target as target_sizes to post_process_panoptic_segmentation."
                )
            self._images[image_id] = _compare(predicted, true)

    def compute(self) -> dict[str, Any]:
        """Compute the quality over the images of all processes; all processes must call this.

        Returns:
            `pq`, `sq` and `rq` in [0, 1], means over the `num_classes` classes in targets or
            predictions, NaN if there is none; the same with the suffixes `_things` and `_stuff`;
            and `per_class`, for each label id its `label`, `pq`, `sq`, `rq` and the counts `tp`,
            `fp` and `fn`.
        """
        return compute_on_main_process(self._compute, self._images)

    def reset(self) -> None:
        """Remove all images, for the next evaluation."""
        self._images = {}

    def _compute(self, shares: Sequence[Mapping[int, ImageSums]]) -> dict[str, Any]:
        sums = {label_id: np.zeros(4) for label_id in self.id2label}
        images: dict[int, ImageSums] = {}
        for share in shares:
            images.update(share)
        for classes, image_sums in images.values():
            for label_id, class_sums in zip(classes.tolist(), image_sums, strict=True):
                sums[label_id] += class_sums
        per_class = {
            label_id: {"label": self.id2label[label_id], **_quality(*class_sums.tolist())}
            for label_id, class_sums in sums.items()
            if class_sums.any()
        }
        stuff = set(self.id2label) - self.thing_label_ids
        results: dict[str, Any] = {}
        groups = {"": set(self.id2label), "_things": self.thing_label_ids, "_stuff": stuff}
        for suffix, group in groups.items():
            members = [quality for label_id, quality in per_class.items() if label_id in group]
            for name in ("pq", "sq", "rq"):
                values = [quality[name] for quality in members]
                results[name + suffix] = sum(values) / len(values) if values else math.nan
            results["num_classes" + suffix] = len(members)
        return {**results, "per_class": per_class}

    def _read(self, record: Mapping[str, Any], name: str) -> "_Segments":
        """Check and convert the segments of an image."""
        for key in ("segmentation", "segments_info"):
            if key not in record:
                raise ValueError(f"{name} has no {key!r}; its keys are {sorted(record)}.")
        label_ids: dict[int, int] = {}
        crowds = set()
        for info in record["segments_info"]:
            number = int(info["id"])
            label_id = int(info["label_id"] if "label_id" in info else info["category_id"])
            if number < 1:
                raise ValueError(f"{name} has a segment with id {number}; expected ids >= 1.")
            if label_id not in self.id2label:
                raise ValueError(
                    f"{name}, segment {number} has class {label_id}, which is not in id2label; "
                    "convert the category ids of the data set to label ids of the model."
                )
            if label_ids.setdefault(number, label_id) != label_id:
                raise ValueError(
                    f"{name} has the id {number} for segments of the classes {label_ids[number]} "
                    f"and {label_id}; only parts of a fused segment can share an id."
                )
            if info.get("iscrowd", 0):
                crowds.add(number)
        numbers = sorted(label_ids)
        return _Segments(
            index=_index_of_segments(record["segmentation"], numbers, name),
            classes=np.array([label_ids[number] for number in numbers], dtype=np.int64),
            is_crowd=np.array([number in crowds for number in numbers], dtype=bool),
        )


@dataclass(frozen=True)
class _Segments:
    """The n segments of an image; `index` (h, w) is 0 for none, or 1 + the index of the segment."""

    index: np.ndarray
    classes: np.ndarray
    is_crowd: np.ndarray


def _index_of_segments(
    segmentation: Tensor | np.ndarray, numbers: list[int], name: str
) -> np.ndarray:
    """Convert ids to 0 for none, or 1 + the index in the sorted ids of the records; (h, w)."""
    ids = torch.as_tensor(segmentation).cpu().to(torch.int64).numpy()
    if ids.ndim != 2:
        raise ValueError(
            f"{name} has a segmentation of shape {ids.shape}; expected (height, width)."
        )
    ids = np.where(ids == -1, 0, ids)  # -1 is the result of post-processing without segments
    known = np.array([0, *numbers])
    index = np.searchsorted(known[1:], ids, side="right")
    unlisted = np.unique(ids[known[index] != ids])
    if len(unlisted):
        raise ValueError(
            f"{name} has pixels of the segments {unlisted[:5].tolist()}, which are not in "
            "segments_info; add their records, or set the pixels to 0."
        )
    areas = np.bincount(index.ravel(), minlength=len(known))
    missing = known[1:][areas[1:] == 0]
    if len(missing):
        raise ValueError(
            f"{name} has records of the segments {missing[:5].tolist()}, which have no pixels; "
            "remove the records."
        )
    return index


def _compare(predicted: _Segments, true: _Segments) -> ImageSums:
    """Compute the classes of an image and their sums."""
    shape = len(true.classes) + 1, len(predicted.classes) + 1
    pairs = np.bincount(
        (true.index * shape[1] + predicted.index).ravel(), minlength=shape[0] * shape[1]
    ).reshape(shape)  # number of common pixels; row 0 is void, column 0 not predicted
    common, void = pairs[1:, 1:], pairs[0, 1:]
    true_area, predicted_area = pairs[1:].sum(1), pairs[:, 1:].sum(0)

    same_class = true.classes[:, None] == predicted.classes  # (true, predicted)
    is_crowd = true.is_crowd[:, None]
    iou = common / (true_area[:, None] + predicted_area - void - common)
    # The union excludes void.
    is_match = same_class & ~is_crowd & (iou > 0.5)
    # Predictions mostly on void or on crowds of their class are ignored.
    # Deviation: panopticapi uses the last of several crowds of a class; COCO has at most one.
    ignored_area = void + (common * (same_class & is_crowd)).sum(0)
    false_positive = ~is_match.any(0) & (2 * ignored_area <= predicted_area)
    missed = ~is_match.any(1) & ~true.is_crowd

    found, found_iou = is_match.any(1), np.where(is_match, iou, 0).sum(1)
    classes, index = np.unique(
        np.concatenate([true.classes, predicted.classes]), return_inverse=True
    )
    of_true, of_predicted = np.split(index, [len(true.classes)])
    sums = [
        np.bincount(of_true, found_iou, len(classes)),
        np.bincount(of_true, found, len(classes)),
        np.bincount(of_predicted, false_positive, len(classes)),
        np.bincount(of_true, missed, len(classes)),
    ]
    return classes, np.stack(sums, axis=1)


def _quality(iou: float, tp: float, fp: float, fn: float) -> dict[str, float]:
    """Compute PQ, SQ, RQ and the counts of a class from its sums."""
    sq = iou / tp if tp else 0.0
    rq = tp / (tp + fp / 2 + fn / 2)
    return {"pq": sq * rq, "sq": sq, "rq": rq, "tp": int(tp), "fp": int(fp), "fn": int(fn)}


def target_segments(dataset: DetectionDataset, index: int) -> dict[str, Any]:
    """Return the segments of an image of a panoptic data set, as `PanopticQuality` takes them."""
    table = dataset.table
    segments = [
        {
            "id": int(table.ids[row]),
            "category_id": int(table.class_labels[row]),
            "iscrowd": int(table.is_crowd[row]),
        }
        for row in table.rows(index)
    ]
    segmentation = read_segment_ids(dataset.segment_maps, index)
    # As in COCO's evaluation, unlisted pixels are void, and segments without pixels are ignored.
    ids = set(segmentation.unique().tolist())
    segments = [segment for segment in segments if segment["id"] in ids]
    listed = torch.tensor([segment["id"] for segment in segments], dtype=segmentation.dtype)
    segmentation = segmentation.where(torch.isin(segmentation, listed), 0)
    return {"segmentation": segmentation, "segments_info": segments}
