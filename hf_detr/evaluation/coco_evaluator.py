"""COCO average precision and recall, also in distributed runs, equal to pycocotools."""

import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from numbers import Integral
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..distributed import compute_on_main_process, process_index
from ..wording import aligned
from .coco_summary import summarize
from .detection_columns import DetectionColumns, join_columns
from .diagnosis import make_diagnosis
from .ground_truth import read_ground_truth

IOU_TYPES = ("bbox", "segm")
MAX_DETECTIONS = 100  # per image and class, as in COCO
MASKS_AT_ONCE = 10  # all masks of an image at full size can need more memory than the model
RECALL_DETECTIONS = (1, 10)  # numbers of detections that recall is computed for besides
Metrics = dict[str, Any]


class CocoEvaluator:
    """Collects detections and computes COCO metrics.

    Args:
        ground_truth: COCO dict of `images` (`id`, `height`, `width`), `categories` (`id`, the label
            of detections, and `name`) and `annotations` (`image_id`, `category_id`, `bbox` as
            (left, top, width, height) in pixels, optionally `area` and `iscrowd`, and
            `segmentation` for "segm").
        iou_types: "bbox" compares boxes, "segm" masks.
        max_detections: number of detections that count, the best ones of each image and class. A
            warning reports images with more objects.
        lvis: whether to compute AP by LVIS' rules: a class counts in the images that were searched
            for it only. Images need LVIS' `neg_category_ids` and `not_exhaustive_category_ids`, and
            categories its `frequency`. `max_detections`, in LVIS 300, is then per image.
        diagnose: whether to look at the errors of boxes, too; not with `lvis`.

    Raises:
        ValueError: if two categories have the same name, an image or category is unknown, a
            segmentation or a field of LVIS is missing, `max_detections` isn't above 10, or
            `diagnose` can't be used.
        ImportError: if hotcoco isn't installed.
    """

    def __init__(
        self,
        ground_truth: Mapping[str, Any],
        iou_types: Sequence[str] = ("bbox",),
        max_detections: int = MAX_DETECTIONS,
        lvis: bool = False,
        diagnose: bool = False,
    ) -> None:
        _backend()
        self.diagnose = diagnose
        is_integer = isinstance(max_detections, Integral) and not isinstance(max_detections, bool)
        if not is_integer or max_detections <= max(RECALL_DETECTIONS):
            raise ValueError(f"max_detections is {max_detections!r}; expected an integer above 10.")
        self.max_detections = int(max_detections)
        if isinstance(iou_types, str) or not iou_types or set(iou_types) - set(IOU_TYPES):
            raise ValueError(f"iou_types is {iou_types!r}; expected a sequence of {IOU_TYPES}.")
        if diagnose and (lvis or "bbox" not in iou_types):
            raise ValueError(
                "diagnose counts the errors of boxes by COCO's rules; leave out lvis, and add "
                "'bbox' to iou_types."
            )
        self.iou_types = tuple(iou_types)
        self._truth = read_ground_truth(ground_truth, "segm" in iou_types, lvis)
        self.names = {int(c["id"]): str(c["name"]) for c in ground_truth["categories"]}
        self._recall_numbers = (*(() if lvis else RECALL_DETECTIONS), self.max_detections)
        self._parts = [join_columns([])]
        self._is_found = np.zeros(len(self._truth.images), dtype=bool)
        self._warn_of_many_objects(lvis)
        if process_index() > 0:  # only the main process computes
            self._truth = replace(self._truth, objects=None)

    def update(
        self, image_ids: Iterable[int | Tensor], detections: Iterable[Mapping[str, Tensor]]
    ) -> None:
        """Add the detections of some images. Images that were added before are ignored.

        Args:
            image_ids: id of each image.
            detections: for each image `scores` (n,), `labels` (n,) and `boxes` (n, 4) as (x0, y0,
                x1, y1) in pixels of the original image, and for "segm" `masks` (n, height, width)
                bool of its size, a tensor or `JoinedMasks`.

        Raises:
            ValueError: if an image or a label isn't in the ground truth, or a number isn't finite.
        """
        for image_id, found in zip(image_ids, detections, strict=True):
            image_id = int(image_id)
            index = self._truth.index_of_image.get(image_id)
            if index is None:
                raise ValueError(
                    f"image_id {image_id} is not in the ground truth; use the same data set."
                )
            if not self._is_found[index]:
                self._parts.append(self._read(index, found))
                self._is_found[index] = True

    def compute(self) -> Metrics:
        """Compute the metrics of the detections of all processes; all processes must call this.

        Only the main process computes, with the detections of all; the others wait for the result.
        Images that were never added have no detections; a warning reports them.

        Returns:
            `AP` (mean over IoU 0.50 … 0.95 and classes), `AP50`, `AP75`, `AP_small`, `AP_medium`,
            `AP_large`, `AR_1`, `AR_10`, `AR_100` (recall with this number of detections per image
            and class; the last number is `max_detections`),
            `AR_small`, `AR_medium`, `AR_large`, in [0, 1], or -1 without objects; the same for
            masks as `segm_AP`, …; and `per_class`, for each class name `num_objects`, `AP`, `AP50`,
            `AP75` and `AR_100`. With `lvis` also `AP_rare`, `AP_common` and `AP_frequent`, but
            neither `AR_1` nor `AR_10`. With `diagnose` also `diagnosis`, a `Diagnosis`.
        """
        self._parts = [join_columns(self._parts)]
        return compute_on_main_process(self._compute, self._parts[0])

    def _compute(self, shares: Sequence[DetectionColumns]) -> Metrics:
        found = join_columns(shares)  # the first process has precedence
        total = len(self._truth.images)
        missing = total - len(found.images)
        if missing:
            warnings.warn(
                f"{missing} of {total} images were never evaluated and have no "
                "detections; remove them from the ground truth if this isn't intended.",
                stacklevel=4,
            )
        labels = self._truth.objects.labels[~self._truth.objects.is_crowd]
        counts = np.bincount(labels, minlength=len(self._truth.labels)).tolist()
        counts = dict(zip(self._truth.labels, counts, strict=True))
        per_class: dict[str, Metrics] = {
            name: {"num_objects": counts[label]} for label, name in self.names.items()
        }
        metrics: Metrics = {}
        numbers = self._recall_numbers
        for iou_type in self.iou_types:
            evaluation = self._accumulate(found, iou_type)
            precision, recall = evaluation.eval["precision"], evaluation.eval["recall"]
            prefix = "" if iou_type == "bbox" else f"{iou_type}_"
            summary = summarize(precision, recall, numbers, self._truth.frequencies)
            metrics |= {prefix + name: value for name, value in summary.items()}
            for index, label in enumerate(self._truth.labels):
                one = summarize(precision[:, :, [index]], recall[:, [index]], numbers)
                names = "AP", "AP50", "AP75", f"AR_{self.max_detections}"
                per_class[self.names[label]] |= {prefix + name: one[name] for name in names}
            if self.diagnose and iou_type == "bbox":
                metrics["diagnosis"] = make_diagnosis(evaluation, self._truth, found)
        return {**metrics, "per_class": per_class}

    def _warn_of_many_objects(self, lvis: bool) -> None:
        images = self._truth.objects.images[~self._truth.objects.is_crowd]
        counts = np.bincount(images, minlength=1)
        num_crowded, most = int((counts > self.max_detections).sum()), int(counts.max())
        if num_crowded:
            image_id = self._truth.image_ids[counts.argmax()]
            limit = f"{self.max_detections} detections per image"
            limit += " (LVIS' rule)" if lvis else " and class (COCO's rule)"
            warnings.warn(
                f"{num_crowded} images have more than {self.max_detections} objects, up to {most} "
                f"(image_id {image_id}), but only {limit} count, and "
                "models with sigmoid scores return no more per image. So AP can be too low; "
                f"max_detections={most} (--max-detections {most}) counts more.",
                stacklevel=3,
            )

    def _read(self, index: int, found: Mapping[str, Tensor]) -> DetectionColumns:
        """Check an image's detections and convert them to arrays, and masks to run lengths."""
        scores, boxes = (_floats(found[key]) for key in ("scores", "boxes"))
        labels, image_id = found["labels"].tolist(), self._truth.image_ids[index]
        shapes = scores.shape, tuple(found["labels"].shape), boxes.shape
        if shapes != ((len(labels),), (len(labels),), (len(labels), 4)):
            raise ValueError(
                f"image_id {image_id} has scores, labels and boxes of shapes {shapes}; expected "
                "(n,), (n,) and (n, 4)."
            )
        if not np.isfinite(scores).all() or not np.isfinite(boxes).all():
            raise ValueError(f"image_id {image_id} has scores or boxes that are NaN or infinite.")
        unknown = sorted(set(labels) - set(self.names))
        if unknown:
            raise ValueError(
                f"image_id {image_id} has detections with the labels {unknown[:5]}; expected ids "
                f"of the ground truth's categories ({min(self.names)} … {max(self.names)})."
            )
        rles = [b""] * len(scores)
        if "segm" in self.iou_types:
            rles = self._read_masks(index, found, len(scores))
        return DetectionColumns(
            images=np.array([index], dtype=np.int32),
            counts=np.array([len(scores)], dtype=np.int32),
            scores=scores,
            labels=np.array(
                [self._truth.index_of_label[label] for label in labels], dtype=np.int32
            ),
            boxes_xyxy=boxes,
            rles=np.array(rles, dtype=object),
        )

    def _read_masks(self, index: int, found: Mapping[str, Tensor], number: int) -> list[bytes]:
        expected = (number, *self._truth.size_hw(index))
        shape = tuple(found["masks"].shape) if "masks" in found else None
        if shape != expected:
            raise ValueError(
                f"image_id {self._truth.image_ids[index]} has masks of shape {shape}; expected "
                f"{expected}, (n, height, width) of the original image."
            )
        rles = []
        for start in range(0, number, MASKS_AT_ONCE):
            masks = found["masks"][start : start + MASKS_AT_ONCE].detach().cpu().numpy()
            masks = np.asfortranarray(masks.astype(np.uint8).transpose(1, 2, 0))
            rles += [rle["counts"] for rle in _backend().mask.encode(masks)]
        return rles

    def _accumulate(self, found: DetectionColumns, iou_type: str) -> Any:
        """Return the backend's evaluation, with `precision` (T, R, K, A, M), `recall` (T, K, A, M).

        T IoU thresholds, R recall thresholds, K classes, A areas, M maximum numbers of detections.
        """
        backend, objects = _backend(), self._truth.objects
        truth = backend.COCO.from_arrays(
            self._truth.images,
            self._truth.categories,
            objects.images,
            objects.labels,
            objects.boxes_xywh,
            area=objects.areas,
            iscrowd=objects.is_crowd,
            segmentation=objects.segmentations,
        )
        images, rows = found.image_of_rows(), found.rows()
        if iou_type == "bbox":
            results = truth.load_res(rows)
        else:
            pairs = zip(images.tolist(), found.rles, strict=True)
            rles = [
                {"size": self._truth.size_hw(index), "counts": counts} for index, counts in pairs
            ]
            results = truth.load_res(rows, segmentation=rles)
            # Otherwise it would be that of the box.
            results.update_anns(ids=np.arange(1, len(rles) + 1), area=backend.mask.area(rles))
        is_lvis = bool(self._truth.frequencies)
        if is_lvis:
            results = results.cap_detections_per_image(self.max_detections)
        evaluation = backend.COCOeval(truth, results, iou_type, lvis_style=is_lvis)
        evaluation.params.max_dets = list(self._recall_numbers)
        evaluation.evaluate()
        evaluation.accumulate()
        return evaluation


def metrics_table(metrics: Metrics) -> str:
    """Format the result of `CocoEvaluator.compute`: a line per IoU type and per class."""
    prefixes = {"boxes": "", "masks": "segm_"}
    prefixes = {kind: prefix for kind, prefix in prefixes.items() if f"{prefix}AP" in metrics}
    every = [name for name, value in metrics.items() if isinstance(value, float)]
    names = [name for name in every if not name.startswith("segm_")]
    names = names or [name[5:] for name in every]
    rows = [["", *names]]
    rows += [
        [kind, *(_percent(metrics[prefix + name]) for name in names)]
        for kind, prefix in prefixes.items()
    ]
    head = ["class", "objects"]
    columns = [prefix + name for prefix in prefixes.values() for name in ("AP", "AP50", "AP75")]
    per_class = [[*head, *columns]]
    per_class += [
        [name, str(one["num_objects"]), *(_percent(one[column]) for column in columns)]
        for name, one in metrics["per_class"].items()
    ]
    return f"{aligned(rows)}\n\n{aligned(per_class)}\n(all but objects in percent)"


def _floats(values: Tensor) -> np.ndarray:
    """Copy to an array of at least 32 bits, in which the values are exact."""
    dtype = torch.float64 if values.dtype == torch.float64 else torch.float32
    return values.detach().to("cpu", dtype).numpy().copy()


def _backend() -> Any:
    # Imported here, because it is an optional dependency.
    try:
        import hotcoco
    except ImportError as error:
        raise ImportError(
            "Evaluation needs hotcoco; install it with pip install 'hf_detr[train]'."
        ) from error
    return hotcoco


def _percent(value: float) -> str:
    return "-" if value < 0 else f"{100 * value:.1f}"
