"""Objects of data sets whose rows have an image and its objects: names of keys, tables."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from .annotation_table import AnnotationTable, Problem, make_table
from .box_formats import BOX_FORMATS, find_box_format
from .image_source import ImageSource, fill_in_sizes_hw, turned_size_hw
from .object_columns import is_integer

# Alternative names in data sets on the Hub.
BOX_KEYS = ("bbox", "bboxes", "boxes")
CATEGORY_KEYS = ("category", "category_id", "categories", "label", "labels")
CROWD_KEYS = ("iscrowd", "is_crowd")
OBJECT_KEYS = (*BOX_KEYS, *CATEGORY_KEYS, *CROWD_KEYS, "area")
OBJECTS = ("objects", "annotations")  # keys of a row, one of which has its objects


@dataclass
class ObjectRows:
    """The objects of a split, with COCO's keys, and its images."""

    images: ImageSource
    entries: list[dict[str, Any]]
    owners: list[int]  # the row of each object
    image_ids: list[int]
    sizes_hw: list[tuple[int, int]]
    names: dict[int, str] | None  # of the category ids, if the data have some
    problems: list[Problem]


def read_entries(value: Any, row: int) -> list[dict[str, Any]]:
    """Convert a dict of lists or a list of dicts to one dict with COCO's keys per object."""
    value = [] if value is None else value
    if isinstance(value, Mapping):
        lists = {key: entries for key, entries in value.items() if isinstance(entries, list)}
        if len(set(map(len, lists.values()))) > 1:
            lengths = {key: len(entries) for key, entries in lists.items()}
            raise ValueError(
                f"row {row} has lists of different lengths for its objects: {lengths}."
            )
        value = [
            dict(zip(lists, entry, strict=True)) for entry in zip(*lists.values(), strict=True)
        ]
    return [_with_coco_keys(entry, row) for entry in value]


def _with_coco_keys(entry: Mapping[str, Any], row: int) -> dict[str, Any]:
    renamed = dict(entry)
    for key, names in (("bbox", BOX_KEYS), ("category_id", CATEGORY_KEYS), ("iscrowd", CROWD_KEYS)):
        found = [name for name in names if entry.get(name) is not None]
        if len(found) > 1:
            raise ValueError(
                f"row {row} has objects with {found}, which are all names of {key!r}; remove or "
                "rename all but one."
            )
        renamed[key] = entry[found[0]] if found else None
    if not is_integer(entry.get("id")):
        renamed["id"] = None  # some data sets have text ids
    return renamed


def rows_of_values(images: ImageSource, values: Sequence[Any]) -> ObjectRows:
    """Return the objects of rows.

    Args:
        images: the image of each row.
        values: of each row a dict with one of the keys `OBJECTS`, or with lists of the objects'
            values, and optionally `width`, `height` and `image_id`; or a list of objects.
    """
    entries, owners, problems = [], [], []
    for row, value in enumerate(values):
        objects = value
        if isinstance(value, Mapping):
            found = [value[key] for key in OBJECTS if key in value]
            objects = found[0] if found else value
        new = read_entries(objects, row)
        entries += new
        owners += [row] * len(new)
    fields = [value if isinstance(value, Mapping) else {} for value in values]
    ids = [one.get("image_id") for one in fields]
    is_usable = all(type(one) is int for one in ids) and len(set(ids)) == len(ids)
    sizes = [(one.get("height"), one.get("width")) for one in fields]
    sizes_hw = fill_in_sizes_hw(sizes, images, problems)
    return ObjectRows(
        images,
        entries,
        owners,
        ids if is_usable else list(range(len(ids))),
        sizes_hw,
        None,
        problems,
    )


def tables_of_rows(
    splits: Sequence[ObjectRows],
    box_format: str | None,
    id2label: Mapping[int, str] | None = None,
    stuff_ids: Iterable[int] = (),
    read_others: Callable[[], Sequence[ObjectRows]] = tuple,
) -> list[AnnotationTable]:
    """Make the tables of several splits.

    Args:
        splits: the objects of each.
        box_format: of all boxes; None finds the only one that fits them.
        id2label: names of the category ids; None: the data's own, or the sorted names of all
            splits' text categories.
        stuff_ids: ids of the stuff categories.
        read_others: as in `find_box_format_of_rows`.

    Raises:
        ValueError: if names are missing, or several box formats fit.
    """
    if box_format is None:
        box_format = find_box_format_of_rows(splits, read_others)
    names = [id2label or rows.names for rows in splits]
    texts = None if all(names) else _text_names([e for rows in splits for e in rows.entries])
    return [
        _table(rows, one or texts, box_format, stuff_ids)
        for rows, one in zip(splits, names, strict=True)
    ]


def _text_names(entries: list[dict[str, Any]]) -> dict[int, str]:
    """Return the numbers of text categories.

    Raises:
        ValueError: if the categories are numbers without names.
    """
    categories = {entry["category_id"] for entry in entries} - {None}
    if all(isinstance(category, str) for category in categories) and categories:
        return dict(enumerate(sorted(categories)))
    raise ValueError(
        f"The categories are numbers without names, such as {sorted(map(str, categories))[:5]}; "
        "pass id2label={0: 'name', ...} (--names on the command line)."
    )


def find_box_format_of_rows(
    splits: Sequence[ObjectRows], read_others: Callable[[], Sequence[ObjectRows]] = tuple
) -> str:
    """Find the format that fits all boxes, and note it in the problems of the first split.

    Args:
        splits: the objects of each.
        read_others: reads further splits of the data, for boxes of `splits` that fit several
            formats: each split has to be read as it is with the others.

    Raises:
        ValueError: if several formats fit, or none.
    """
    boxes = _known_boxes(splits)
    if not len(boxes[0]):
        return BOX_FORMATS[0]
    try:
        found, reason = find_box_format(*boxes)
    except ValueError as unclear:
        try:
            others = read_others()
        except ValueError:  # such as a test split without annotations
            raise unclear from None
        if not others:
            raise
        found, reason = find_box_format(*_known_boxes([*splits, *others]))
    text = f"the boxes are read as {found}, because {reason}; box_format (--box-format) changes it"
    splits[0].problems.append(Problem("box format found", None, text, False))
    return found


def _known_boxes(splits: Sequence[ObjectRows]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return the valid boxes, their areas, and the sizes of their images."""
    boxes, areas, sizes = [], [], []
    for rows in splits:
        for entry, row in zip(rows.entries, rows.owners, strict=True):
            box, area = entry["bbox"], entry.get("area")
            if isinstance(box, list) and len(box) == 4 and all(map(_is_number, box)):
                boxes.append(box)  # others are reported later
                areas.append(area if _is_number(area) else np.nan)
                sizes.append(rows.sizes_hw[row])
    return np.array(boxes, dtype=float), np.array(areas), np.array(sizes)


def _is_number(value: Any) -> bool:
    return type(value) in (int, float)


def _table(
    rows: ObjectRows, names: Mapping[int, str], box_format: str, stuff_ids: Iterable[int]
) -> AnnotationTable:
    names = {int(key): name for key, name in names.items()}  # keys are text in JSON
    id_of_name = {name: key for key, name in names.items()}
    for entry in rows.entries:
        if isinstance(entry["category_id"], str):
            entry["category_id"] = id_of_name.get(entry["category_id"], entry["category_id"])
    return make_table(
        names,
        rows.image_ids,
        rows.sizes_hw,
        rows.entries,
        rows.owners,
        box_format,
        stuff_ids,
        rows.problems,
        turned_hw=partial(turned_size_hw, rows.images),
    )
