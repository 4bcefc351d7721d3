"""Annotated and detected objects of many images in flat arrays, which are small."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np


@dataclass(frozen=True)
class ObjectColumns:
    """The n annotated objects of the ground truth."""

    images: np.ndarray  # (n,) int32, indices of images
    labels: np.ndarray  # (n,) int32, indices of classes
    boxes_xywh: np.ndarray  # (n, 4) float64, left, top, width, height in pixels
    areas: np.ndarray  # (n,) float64 in square pixels
    is_crowd: np.ndarray  # (n,) bool
    segmentations: list[Any] | None  # COCO polygons or RLE of each object


def read_annotations(
    annotations: Sequence[Mapping[str, Any]],
    index_of_image: Mapping[int, int],
    index_of_label: Mapping[int, int],
    masks: bool,
) -> ObjectColumns:
    """Convert COCO annotations. An object without `area` has that of its box.

    Args:
        annotations: as in a COCO file.
        index_of_image: image id -> index.
        index_of_label: category id -> index of the class.
        masks: whether to read segmentations.

    Raises:
        ValueError: if an image or category is unknown, or a segmentation is missing.
    """
    images, labels, areas, segmentations = [], [], [], []
    boxes = np.array([annotation["bbox"] for annotation in annotations], dtype=np.float64)
    boxes = boxes.reshape(-1, 4)
    for number, annotation in enumerate(annotations):
        image_id, category_id = int(annotation["image_id"]), int(annotation["category_id"])
        if image_id not in index_of_image or category_id not in index_of_label:
            raise ValueError(
                f"annotation {number} of the ground truth has image_id {image_id} and category_id "
                f"{category_id}; expected ids of its images and categories."
            )
        if masks and not annotation.get("segmentation"):
            raise ValueError(
                f"annotation {number} of the ground truth has no segmentation, which 'segm' "
                "requires; read the data set with masks=True."
            )
        images.append(index_of_image[image_id])
        labels.append(index_of_label[category_id])
        area = annotation.get("area")
        areas.append(boxes[number, 2] * boxes[number, 3] if area is None else area)
        segmentations.append(annotation["segmentation"] if masks else None)
    is_crowd = [bool(annotation.get("iscrowd")) for annotation in annotations]
    return ObjectColumns(
        images=np.array(images, dtype=np.int32),
        labels=np.array(labels, dtype=np.int32),
        boxes_xywh=boxes,
        areas=np.array(areas, dtype=np.float64),
        is_crowd=np.array(is_crowd, dtype=bool),
        segmentations=segmentations if masks else None,
    )


@dataclass(frozen=True)
class DetectionColumns:
    """The n detections of I images, in the order of the images."""

    images: np.ndarray  # (I,) int32, indices of images, each once
    counts: np.ndarray  # (I,) int32, number of detections of each image
    scores: np.ndarray  # (n,) float32 or float64
    labels: np.ndarray  # (n,) int32, indices of classes
    boxes_xyxy: np.ndarray  # (n, 4) float32 or float64, in pixels
    rles: np.ndarray  # (n,) of bytes, COCO's packed run lengths of the masks; b"" without masks

    def image_of_rows(self) -> np.ndarray:
        """Return the index of each detection's image, (n,) int32."""
        return np.repeat(self.images, self.counts)


NO_DETECTIONS = DetectionColumns(
    images=np.empty(0, np.int32),
    counts=np.empty(0, np.int32),
    scores=np.empty(0, np.float32),
    labels=np.empty(0, np.int32),
    boxes_xyxy=np.empty((0, 4), np.float32),
    rles=np.empty(0, object),
)


def join_columns(parts: Sequence[DetectionColumns]) -> DetectionColumns:
    """Join and sort by image. An image in several parts keeps the detections of the first one."""
    columns = {
        name: np.concatenate([getattr(part, name) for part in (*parts, NO_DETECTIONS)])
        for name in DetectionColumns.__dataclass_fields__
    }
    counts = columns.pop("counts")
    images, first = np.unique(columns.pop("images"), return_index=True)
    starts = (counts.cumsum() - counts)[first]
    counts = counts[first]
    new_starts = counts.cumsum() - counts
    rows = np.repeat(starts - new_starts, counts) + np.arange(counts.sum())
    return DetectionColumns(images, counts, **{name: c[rows] for name, c in columns.items()})
