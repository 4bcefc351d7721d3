"""COCO average precision and recall, also in distributed runs, equal to pycocotools."""

import warnings
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..distributed import gather_from_processes

IOU_TYPES = ("bbox", "segm")
AREAS = ("all", "small", "medium", "large")
MAX_DETECTIONS = 100  # per image and class, as in COCO
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

    Raises:
        ValueError: if two categories have the same name, a segmentation is missing, or
            `max_detections` isn't above 10.
        ImportError: if faster-coco-eval isn't installed.
    """

    def __init__(
        self,
        ground_truth: Mapping[str, Any],
        iou_types: Sequence[str] = ("bbox",),
        max_detections: int = MAX_DETECTIONS,
    ) -> None:
        _backend()
        if type(max_detections) is not int or max_detections <= max(RECALL_DETECTIONS):
            raise ValueError(f"max_detections is {max_detections!r}; expected an integer above 10.")
        self.max_detections = max_detections
        if isinstance(iou_types, str) or not iou_types or set(iou_types) - set(IOU_TYPES):
            raise ValueError(f"iou_types is {iou_types!r}; expected a sequence of {IOU_TYPES}.")
        self.iou_types = tuple(iou_types)
        self.names = {int(c["id"]): str(c["name"]) for c in ground_truth["categories"]}
        if len(set(self.names.values())) < len(self.names):
            raise ValueError("Two categories have the same name; names must be unique.")
        self._images = {int(image["id"]): dict(image) for image in ground_truth["images"]}
        self._annotations = [
            _target_entry(annotation, number, self.iou_types)
            for number, annotation in enumerate(ground_truth["annotations"], 1)
        ]
        self._found: dict[int, dict[str, Any]] = {}
        self._warn_of_many_objects()

    def update(
        self, image_ids: Iterable[int | Tensor], detections: Iterable[Mapping[str, Tensor]]
    ) -> None:
        """Add the detections of some images. Images that were added before are ignored.

        Args:
            image_ids: id of each image.
            detections: for each image `scores` (n,), `labels` (n,) and `boxes` (n, 4) as (x0, y0,
                x1, y1) in pixels of the original image, and for "segm" `masks` (n, height, width)
                bool of its size.

        Raises:
            ValueError: if an image or a label isn't in the ground truth, or a number isn't finite.
        """
        for image_id, found in zip(image_ids, detections, strict=True):
            image_id = int(image_id)
            if image_id not in self._images:
                raise ValueError(
                    f"image_id {image_id} is not in the ground truth; use the same data set."
                )
            if image_id not in self._found:
                self._found[image_id] = self._read(image_id, found)

    def compute(self) -> Metrics:
        """Compute the metrics of the detections of all processes; all processes must call this.

        Images that were never added have no detections; a warning reports them.

        Returns:
            `AP` (mean over IoU 0.50 … 0.95 and classes), `AP50`, `AP75`, `AP_small`, `AP_medium`,
            `AP_large`, `AR_1`, `AR_10`, `AR_100` (recall with this number of detections per image
            and class; the last number is `max_detections`),
            `AR_small`, `AR_medium`, `AR_large`, in [0, 1], or -1 without objects; the same for
            masks as `segm_AP`, …; and `per_class`, for each class name `num_objects`, `AP`, `AP50`,
            `AP75` and `AR_100`.
        """
        found: dict[int, dict[str, Any]] = {}
        for share in reversed(gather_from_processes(self._found)):
            found |= share  # the first process has precedence
        missing = len(self._images) - len(found)
        if missing:
            warnings.warn(
                f"{missing} of {len(self._images)} images were never evaluated and have no "
                "detections; remove them from the ground truth if this isn't intended.",
                stacklevel=2,
            )
        counts = dict.fromkeys(self.names, 0)
        for annotation in self._annotations:
            counts[annotation["category_id"]] += not annotation["iscrowd"]
        per_class: dict[str, Metrics] = {
            name: {"num_objects": counts[label]} for label, name in self.names.items()
        }
        metrics: Metrics = {}
        for iou_type in self.iou_types:
            precision, recall, labels = self._accumulate(found, iou_type)
            prefix = "" if iou_type == "bbox" else f"{iou_type}_"
            numbers = (*RECALL_DETECTIONS, self.max_detections)
            summary = _summarize(precision, recall, numbers)
            metrics |= {prefix + name: value for name, value in summary.items()}
            for index, label in enumerate(labels):
                one = _summarize(precision[:, :, [index]], recall[:, [index]], numbers)
                names = "AP", "AP50", "AP75", f"AR_{self.max_detections}"
                per_class[self.names[label]] |= {prefix + name: one[name] for name in names}
        return {**metrics, "per_class": per_class}

    def _warn_of_many_objects(self) -> None:
        counts = Counter(a["image_id"] for a in self._annotations if not a["iscrowd"])
        crowded = {image: count for image, count in counts.items() if count > self.max_detections}
        if crowded:
            image, most = max(crowded.items(), key=lambda pair: pair[1])
            warnings.warn(
                f"{len(crowded)} images have more than {self.max_detections} objects, up to {most} "
                f"(image_id {image}), but only {self.max_detections} detections per image and "
                "class count, so AP can be too low for them. This is COCO's rule; max_detections="
                f"{most} (--max-detections {most}) counts more.",
                stacklevel=3,
            )

    def _read(self, image_id: int, found: Mapping[str, Tensor]) -> dict[str, Any]:
        """Check an image's detections and convert them to arrays, and masks to run lengths."""
        dtypes = {"scores": torch.float64, "labels": torch.int64, "boxes": torch.float64}
        scores, labels, boxes = (
            found[key].detach().to("cpu", dtype).numpy() for key, dtype in dtypes.items()
        )
        if not np.isfinite(scores).all() or not np.isfinite(boxes).all():
            raise ValueError(f"image_id {image_id} has scores or boxes that are NaN or infinite.")
        unknown = sorted(set(labels.tolist()) - set(self.names))
        if unknown:
            raise ValueError(
                f"image_id {image_id} has detections with the labels {unknown[:5]}; expected ids "
                f"of the ground truth's categories ({min(self.names)} … {max(self.names)})."
            )
        boxes_xywh = np.concatenate([boxes[:, :2], boxes[:, 2:] - boxes[:, :2]], axis=1)
        record = {"scores": scores, "labels": labels, "boxes_xywh": boxes_xywh}
        if "segm" in self.iou_types:
            record["rles"] = self._read_masks(image_id, found, len(scores))
        return record

    def _read_masks(
        self, image_id: int, found: Mapping[str, Tensor], number: int
    ) -> list[dict[str, Any]]:
        image = self._images[image_id]
        expected = (number, image["height"], image["width"])
        shape = tuple(found["masks"].shape) if "masks" in found else None
        if shape != expected:
            raise ValueError(
                f"image_id {image_id} has masks of shape {shape}; expected {expected}, (n, height, "
                "width) of the original image."
            )
        masks = found["masks"].detach().cpu().numpy().astype(np.uint8)
        return _backend().mask.encode(np.asfortranarray(masks.transpose(1, 2, 0)))

    def _accumulate(
        self, found: Mapping[int, dict[str, Any]], iou_type: str
    ) -> tuple[np.ndarray, np.ndarray, list[int]]:
        """Compute precision (T, R, K, A, M), recall (T, K, A, M) and the labels (K,).

        T IoU thresholds, R recall thresholds, K classes, A areas, M maximum numbers of detections.
        """
        backend = _backend()
        truth = backend.COCO(
            {
                "images": list(self._images.values()),
                "annotations": [dict(annotation) for annotation in self._annotations],
                "categories": [{"id": label, "name": name} for label, name in self.names.items()],
            }
        )
        entries = []
        # Sorted, because the result depends on the order of detections with equal scores.
        for image_id, record in sorted(found.items()):
            columns = record["labels"].tolist(), record["scores"].tolist()
            shapes = record["boxes_xywh"].tolist() if iou_type == "bbox" else record["rles"]
            # Not both: COCO would compute the area from the box instead of the mask.
            key = "bbox" if iou_type == "bbox" else "segmentation"
            entries += [
                {"image_id": image_id, "category_id": label, "score": score, key: shape}
                for label, score, shape in zip(*columns, shapes, strict=True)
            ]
        evaluation = backend.COCOeval_faster(truth, truth.loadRes(entries), iou_type)
        evaluation.params.maxDets = [*RECALL_DETECTIONS, self.max_detections]
        evaluation.evaluate()
        evaluation.accumulate()
        counts = evaluation.eval["counts"]  # T, R, K, A, M
        precision = np.asarray(evaluation.eval["precision"]).reshape(counts)
        recall = np.asarray(evaluation.eval["recall"]).reshape(counts[0], *counts[2:])
        return precision, recall, list(evaluation.params.catIds)


def metrics_table(metrics: Metrics) -> str:
    """Format the result of `CocoEvaluator.compute`: a line per IoU type and per class."""
    prefixes = {"boxes": "", "masks": "segm_"}
    prefixes = {kind: prefix for kind, prefix in prefixes.items() if f"{prefix}AP" in metrics}
    names = [name for name in metrics if name != "per_class" and not name.startswith("segm_")]
    names = names or [name[5:] for name in metrics if name.startswith("segm_")]
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
    return f"{_aligned(rows)}\n\n{_aligned(per_class)}\n(all but objects in percent)"


def _summarize(
    precision: np.ndarray, recall: np.ndarray, max_detections: Sequence[int]
) -> dict[str, float]:
    """Compute the twelve metrics of COCO's summary."""
    best = {f"AR_{number}": recall[:, :, 0, m] for m, number in enumerate(max_detections)}
    parts = {
        "AP": precision[:, :, :, 0, -1],
        "AP50": precision[0, :, :, 0, -1],
        "AP75": precision[5, :, :, 0, -1],
        **{f"AP_{area}": precision[:, :, :, a, -1] for a, area in enumerate(AREAS) if a},
        **best,
        **{f"AR_{area}": recall[:, :, a, -1] for a, area in enumerate(AREAS) if a},
    }
    # -1 means that there are no objects.
    valid = {name: part[part > -1] for name, part in parts.items()}
    return {name: float(part.mean()) if part.size else -1.0 for name, part in valid.items()}


def _target_entry(
    annotation: Mapping[str, Any], number: int, iou_types: Sequence[str]
) -> dict[str, Any]:
    """Return a COCO annotation with all fields that the backend reads."""
    if "segm" in iou_types and not annotation.get("segmentation"):
        raise ValueError(
            f"annotation {number - 1} of the ground truth has no segmentation, which 'segm' "
            "requires; read the data set with masks=True."
        )
    box = annotation["bbox"]
    area = annotation.get("area")
    entry = {
        "id": number,  # 0 means "not matched"
        "image_id": int(annotation["image_id"]),
        "category_id": int(annotation["category_id"]),
        "bbox": list(box),
        "area": box[2] * box[3] if area is None else area,
        "iscrowd": int(annotation.get("iscrowd") or 0),
    }
    if "segm" in iou_types:
        entry["segmentation"] = annotation["segmentation"]
    return entry


def _backend() -> Any:
    # Imported here, because it is an optional dependency.
    try:
        import faster_coco_eval
    except ImportError as error:
        raise ImportError(
            "Evaluation needs faster-coco-eval; install it with pip install 'hf_detr[train]'."
        ) from error
    return faster_coco_eval


def _percent(value: float) -> str:
    return "-" if value < 0 else f"{100 * value:.1f}"


def _aligned(rows: list[list[str]]) -> str:
    """Align columns, the first one left and the others right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ([row[0].ljust(widths[0]), *map(str.rjust, row[1:], widths[1:])] for row in rows)
    return "\n".join(map("  ".join, lines))
