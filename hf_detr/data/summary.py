"""Numbers that describe a data set: classes, sizes of images and boxes, objects per image."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from ..wording import aligned
from .annotation_table import AnnotationTable

# COCO's limits, in square pixels
SMALL, LARGE = 32**2, 96**2
MOST_CLASSES = 40


@dataclass(frozen=True)
class DataSummary:
    """Numbers of a data set; sizes are in pixels, and those of unreadable images are left out.

    Objects are those that are trained: crowds are counted apart, dropped boxes aren't.
    """

    images: int
    objects: int
    crowds: int
    classes: dict[str, int]  # name -> number of objects
    width: tuple[int, int, int]  # of images: smallest, median, largest
    height: tuple[int, int, int]
    objects_per_image: tuple[int, int]  # median, most
    box_sizes: dict[str, float]  # shares of small, medium and large boxes as in COCO


def summarize(table: AnnotationTable) -> DataSummary:
    """Compute the summary of a data set."""
    is_object = table.are_trained()
    labels = table.class_labels[is_object & (table.class_labels >= 0)]
    counts = np.bincount(labels, minlength=len(table.id2label)).tolist()
    per_image = np.bincount(table.image_of_rows()[is_object], minlength=len(table))
    sizes_hw = table.image_hw[(table.image_hw > 0).all(-1)]
    return DataSummary(
        images=len(table),
        objects=int(is_object.sum()),
        crowds=int(table.is_crowd.sum()),
        classes={name: counts[label] for label, name in table.id2label.items()},
        width=_spread(sizes_hw[:, 1]),
        height=_spread(sizes_hw[:, 0]),
        objects_per_image=_spread(per_image)[1:],
        box_sizes=_box_sizes(table.boxes_xywh[is_object, 2:]),
    )


def _spread(values: np.ndarray) -> tuple[int, int, int]:
    if not len(values):
        return 0, 0, 0
    return int(values.min()), int(np.median(values)), int(values.max())


def _box_sizes(sizes_wh: np.ndarray) -> dict[str, float]:
    areas, number = sizes_wh.prod(-1), max(1, len(sizes_wh))
    small, large = (areas < SMALL).sum() / number, (areas >= LARGE).sum() / number
    medium = ((areas >= SMALL) & (areas < LARGE)).sum() / number
    return {"small": float(small), "medium": float(medium), "large": float(large)}


def summary_text(summaries: Mapping[str, DataSummary], most: int = MOST_CLASSES) -> str:
    """Return a table with a column per split.

    Args:
        summaries: name of the split -> its numbers.
        most: number of classes that are listed, with the most frequent ones first.
    """
    parts = list(summaries.values())

    def row(name: str, *values: object) -> list[str]:
        return [name, *map(str, values)]

    rows = [row("", *summaries), row("images", *(p.images for p in parts))]
    rows.append(row("objects", *(p.objects for p in parts)))
    if any(p.crowds for p in parts):
        rows.append(row("crowds", *(p.crowds for p in parts)))
    spreads = "objects_per_image", "width", "height"
    titles = "objects per image: median, most", "width: smallest, median, largest", "height"
    for title, name in zip(titles, spreads, strict=True):
        rows.append(row(title, *(", ".join(map(str, getattr(p, name))) for p in parts)))
    for size in ("small", "medium", "large"):
        rows.append(row(f"{size} boxes", *(f"{p.box_sizes[size]:.0%}" for p in parts)))
    names = list(dict.fromkeys(name for p in parts for name in p.classes))
    rows.append(row(f"{len(names)} classes"))
    for name in _most_frequent(names, parts)[:most]:
        rows.append(row(f"  {name}", *(p.classes.get(name, "no such class") for p in parts)))
    if len(names) > most:
        rows.append(row(f"  ... and {len(names) - most} less frequent ones"))
    return aligned(rows)


def _most_frequent(names: Sequence[str], parts: Sequence[DataSummary]) -> list[str]:
    return sorted(names, key=lambda name: -sum(p.classes.get(name, 0) for p in parts))
