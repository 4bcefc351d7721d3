"""Panoptic quality (arXiv 1801.00868) by COCO's rules, on one process or many.

Ours, because of the kept implementations torchmetrics knows no crowds, and hotcoco, which the tests
compare with, reads whole datasets from files and can't take a process's share.

A segment is found if a predicted one of its class overlaps it by more than half (IoU > 0.5); there
can be only one. Per class, SQ is the mean IoU of what was found, RQ = TP / (TP + FP/2 + FN/2), and
PQ = SQ * RQ.
"""

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .processes import gather_from_processes

# The classes of an image (k,), and for each the sum of its found segments' IoU, and how many were
# found (TP), predicted in vain (FP) and missed (FN): (k, 4).
ImageSums = tuple[np.ndarray, np.ndarray]


class PanopticQuality:
    """Gathers segments image by image, then computes PQ, SQ and RQ.

    Args:
        id2label: the classes' names by label id, as in the model's configuration.
        thing_label_ids: the classes that are things, counted one by one; the others are stuff.

    Raises:
        ValueError: if a thing is no class.
    """

    def __init__(self, id2label: Mapping[int, str], thing_label_ids: Collection[int]) -> None:
        self.id2label = dict(id2label)
        self.thing_label_ids = frozenset(thing_label_ids)
        strangers = sorted(self.thing_label_ids - set(self.id2label))
        if strangers:
            raise ValueError(
                f"thing_label_ids has {strangers}, which aren't in id2label; give label ids of the "
                "model, not the data's own category ids."
            )
        self._images: dict[int, ImageSums] = {}

    def update(
        self,
        image_ids: Sequence[int | Tensor],
        predictions: Sequence[Mapping[str, Any]],
        targets: Sequence[Mapping[str, Any]],
    ) -> None:
        """Add images. One that was seen before, as samplers pad their last batch, is left out.

        Args:
            image_ids: one whole number per image.
            predictions: per image, as `post_process_panoptic_segmentation` returns it,
                `segmentation` (h, w) of segments' ids, 0 and -1 for none, and `segments_info`, with
                `id` and `label_id` in each. Parts of a fused segment share their id.
            targets: per image `segmentation` (h, w) of ids, 0 for void, and `segments_info`, with
                `id` and `category_id` or `label_id` in each, and `iscrowd` (0 or 1) if it has any.
                A `category_id` is a label id too.

        Raises:
            ValueError: if sizes differ, ids and records don't belong together, or a class is
                unknown; it names the image.
        """
        if not len(image_ids) == len(predictions) == len(targets):
            raise ValueError(
                f"There are {len(image_ids)} image_ids, {len(predictions)} predictions and "
                f"{len(targets)} targets; give one of each per image."
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
                    f"(height, width) and a true one of {true.index.shape}; give the true size as "
                    "target_sizes to post_process_panoptic_segmentation."
                )
            self._images[image_id] = _compare(predicted, true)

    def compute(self) -> dict[str, Any]:
        """Quality over the images of all processes; every process must call it.

        Returns:
            `pq`, `sq` and `rq` in [0, 1], means over the `num_classes` classes that were true or
            predicted somewhere, NaN if there is none; the same with the suffixes `_things` and
            `_stuff`; and `per_class`, by label id the class's `label`, `pq`, `sq`, `rq` and counts
            `tp`, `fp` and `fn`.
        """
        sums = {label_id: np.zeros(4) for label_id in self.id2label}
        images: dict[int, ImageSums] = {}
        for share in gather_from_processes(self._images):
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

    def reset(self) -> None:
        """Forget all images, for the next evaluation."""
        self._images = {}

    def _read(self, record: Mapping[str, Any], name: str) -> "_Segments":
        """The segments of one image, checked."""
        for key in ("segmentation", "segments_info"):
            if key not in record:
                raise ValueError(f"{name} has no {key!r}, only {sorted(record)}.")
        label_ids: dict[int, int] = {}
        crowds = set()
        for info in record["segments_info"]:
            number = int(info["id"])
            label_id = int(info["label_id"] if "label_id" in info else info["category_id"])
            if number < 1:
                raise ValueError(f"{name} has a segment of id {number}; give ids from 1.")
            if label_id not in self.id2label:
                raise ValueError(
                    f"{name}, segment {number} has class {label_id}, which isn't in id2label; turn "
                    "the data's category ids into the model's label ids first."
                )
            if label_ids.setdefault(number, label_id) != label_id:
                raise ValueError(
                    f"{name} gives id {number} to segments of the classes {label_ids[number]} and "
                    f"{label_id}; only parts of a fused segment may share an id."
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
    """One image's n segments: `index` (h, w), 0 for none, else 1 + the place in the (n,) others."""

    index: np.ndarray
    classes: np.ndarray
    is_crowd: np.ndarray


def _index_of_segments(
    segmentation: Tensor | np.ndarray, numbers: list[int], name: str
) -> np.ndarray:
    """(h, w) of 0 for none, else 1 + the place in the sorted numbers of the records."""
    ids = torch.as_tensor(segmentation).cpu().to(torch.int64).numpy()
    if ids.ndim != 2:
        raise ValueError(
            f"{name} has a segmentation of shape {ids.shape}; give segments' ids (height, width)."
        )
    ids = np.where(ids == -1, 0, ids)  # what post-processing writes where it finds nothing
    known = np.array([0, *numbers])
    index = np.searchsorted(known[1:], ids, side="right")
    strangers = np.unique(ids[known[index] != ids])
    if len(strangers):
        raise ValueError(
            f"{name} has pixels of the segments {strangers[:5].tolist()}, which segments_info "
            "doesn't have; add their records, or give such pixels the id 0."
        )
    areas = np.bincount(index.ravel(), minlength=len(known))
    missing = known[areas == 0]
    missing = missing[missing != 0]
    if len(missing):
        raise ValueError(
            f"{name} has records of the segments {missing[:5].tolist()}, which have no pixel in "
            "the segmentation; leave such records out."
        )
    return index


def _compare(predicted: _Segments, true: _Segments) -> ImageSums:
    """One image's classes and their sums."""
    shape = len(true.classes) + 1, len(predicted.classes) + 1
    pairs = np.bincount(
        (true.index * shape[1] + predicted.index).ravel(), minlength=shape[0] * shape[1]
    ).reshape(shape)  # common pixels; row 0 is void, column 0 what wasn't predicted
    common, void = pairs[1:, 1:], pairs[0, 1:]
    true_area, predicted_area = pairs[1:].sum(1), pairs[:, 1:].sum(0)

    same_class = true.classes[:, None] == predicted.classes  # (true, predicted)
    is_crowd = true.is_crowd[:, None]
    iou = common / (true_area[:, None] + predicted_area - void - common)
    # Void is no fault of what covers it, so it isn't in the union.
    is_match = same_class & ~is_crowd & (iou > 0.5)
    # Nor is it a fault to predict on void or in a crowd of one's own class.
    # Deviation: panopticapi looks at the last of several crowds of a class; COCO has one at most.
    excused = void + (common * (same_class & is_crowd)).sum(0)
    in_vain = ~is_match.any(0) & (2 * excused <= predicted_area)
    missed = ~is_match.any(1) & ~true.is_crowd

    found, found_iou = is_match.any(1), np.where(is_match, iou, 0).sum(1)
    classes, index = np.unique(
        np.concatenate([true.classes, predicted.classes]), return_inverse=True
    )
    of_true, of_predicted = np.split(index, [len(true.classes)])
    sums = [
        np.bincount(of_true, found_iou, len(classes)),
        np.bincount(of_true, found, len(classes)),
        np.bincount(of_predicted, in_vain, len(classes)),
        np.bincount(of_true, missed, len(classes)),
    ]
    return classes, np.stack(sums, axis=1)


def _quality(iou: float, tp: float, fp: float, fn: float) -> dict[str, float]:
    """PQ, SQ, RQ and the counts of a class from its sums."""
    sq = iou / tp if tp else 0.0
    rq = tp / (tp + fp / 2 + fn / 2)
    return {"pq": sq * rq, "sq": sq, "rq": rq, "tp": int(tp), "fp": int(fp), "fn": int(fn)}
