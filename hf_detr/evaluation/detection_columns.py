"""Detections of many images in flat arrays, which are small to keep and to send."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np


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

    def rows(self) -> np.ndarray:
        """Return (n, 7) float64 as the backend reads it: image, box (x, y, w, h), score, class."""
        boxes = self.boxes_xyxy.astype(np.float64)
        boxes[:, 2:] -= boxes[:, :2]
        return np.column_stack([self.image_of_rows(), boxes, self.scores, self.labels])


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
