"""Tables of some of the images of another table, or of all images of several."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from .annotation_table import AnnotationTable
from .packed_values import PackedValues

PER_OBJECT = ("ids", "class_labels", "boxes_xywh", "areas", "is_crowd")
CLASSES = ("id2label", "label_ids_of_stuff")


def select_images(table: AnnotationTable, images: Sequence[int]) -> AnnotationTable:
    """Return the table of some images, in the given order, with all classes.

    Args:
        table: the table of all images.
        images: their indices, each at most once.
    """
    new_index = {old: new for new, old in enumerate(images)}
    problems = [p for p in table.problems if p.image is None or p.image in new_index]
    kept = np.array(images, dtype=np.int64)
    counts = np.diff(table.offsets)[kept]
    offsets = np.concatenate([[0], np.cumsum(counts)])
    # For each image the rows from its first one on: row - new first row + old first row.
    rows = np.arange(offsets[-1]) + np.repeat(table.offsets[kept] - offsets[:-1], counts)
    segmentations = table.segmentations
    return replace(
        table,
        image_ids=table.image_ids[kept],
        image_hw=table.image_hw[kept],
        offsets=offsets,
        segmentations=None if segmentations is None else segmentations.take(rows),
        problems=tuple(replace(p, image=new_index.get(p.image)) for p in problems),
        **{name: getattr(table, name)[rows] for name in PER_OBJECT},
    )


def join_tables(tables: Sequence[AnnotationTable]) -> AnnotationTable:
    """Return the table of the images of all tables.

    Category ids are those of the first table. Image ids become 0, 1, 2, … if an id is in several.

    Raises:
        ValueError: if the classes of the tables differ.
    """
    first = tables[0]
    for table in tables:
        if any(getattr(table, name) != getattr(first, name) for name in CLASSES):
            raise ValueError(
                f"The data sets have different classes, {table.id2label} and {first.id2label}; a "
                "label would have two meanings. Read them with the same categories."
            )
    starts = np.cumsum([0, *map(len, tables)])
    image_ids = np.concatenate([table.image_ids for table in tables])
    if len(np.unique(image_ids)) < len(image_ids):
        image_ids = np.arange(len(image_ids))
    problems = [
        p if p.image is None else replace(p, image=p.image + int(start))
        for start, table in zip(starts[:-1], tables, strict=True)
        for p in table.problems
    ]
    has_segmentations = all(table.segmentations is not None for table in tables)
    parts = [table.segmentations for table in tables]
    counts = np.concatenate([np.diff(table.offsets) for table in tables])
    return replace(
        first,
        image_ids=image_ids,
        image_hw=np.concatenate([table.image_hw for table in tables]),
        offsets=np.concatenate([[0], np.cumsum(counts)]),
        segmentations=PackedValues.join(parts) if has_segmentations else None,
        problems=tuple(problems),
        **{name: np.concatenate([getattr(table, name) for table in tables]) for name in PER_OBJECT},
    )
