"""Readers of data sets of the library `datasets`: boxes or panoptic segments."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
from tqdm.auto import tqdm

from .annotation_table import AnnotationTable, Problem, is_integer, make_table
from .box_formats import BOX_FORMATS, checked_box_format, find_box_format
from .dataset import DetectionDataset
from .hub_loading import HubImages, import_datasets
from .image_source import fill_in_sizes_hw, turned_size_hw, with_boxes

if TYPE_CHECKING:
    from datasets import Dataset

# Alternative names in data sets on the Hub.
BOX_KEYS = ("bbox", "bboxes", "boxes")
CATEGORY_KEYS = ("category", "category_id", "categories", "label", "labels")
CROWD_KEYS = ("iscrowd", "is_crowd")


def read_hf_dataset(
    dataset: "Dataset",
    box_format: str | None = None,
    id2label: Mapping[int, str] | None = None,
    image_column: str = "image",
    objects_column: str = "objects",
    seed: int = 0,
) -> DetectionDataset:
    """Read a `datasets.Dataset` in the layout for object detection.

    Each row has an image and `objects`: a dict of lists or a list of dicts with `bbox`, `category`
    and optionally `id`, `area` and `iscrowd`; these lists may be columns of their own instead. The
    optional columns `width`, `height` and `image_id` are used if present.

    Args:
        dataset: one split.
        box_format: `coco_xywh`, `xyxy` or `cxcywh_normalized`; all of them are used on the Hub.
            By default the only one that fits all boxes, see `find_box_format`.
        id2label: names of the category ids. By default those of the `ClassLabel`, or for text
            categories the sorted names of this split; `read_hf_splits` reads several with the
            same.
        image_column, objects_column: names of the columns.
        seed: seed of the transform's random numbers.

    Raises:
        ValueError: if columns or names are missing, or if several box formats fit. Errors in single
            rows are stored in `table.problems` and reported by a warning.
    """
    given = box_format, id2label, image_column, objects_column, seed
    return read_hf_splits([dataset], *given)[0]


def read_hf_splits(
    splits: Sequence["Dataset"],
    box_format: str | None = None,
    id2label: Mapping[int, str] | None = None,
    image_column: str = "image",
    objects_column: str = "objects",
    seed: int = 0,
) -> list[DetectionDataset]:
    """Read several splits as `read_hf_dataset` does.

    The names of text categories and the box format are found in all of them together.
    """
    found = [
        _collect(split, HubImages(split, image_column), objects_column, box_format)
        for split in splits
    ]
    if box_format is None:
        box_format = _find_box_format(found)
    names = [id2label or _class_label_names(rows) for rows in found]
    texts = None if all(names) else _text_names([e for rows in found for e in rows.entries])
    return [
        DetectionDataset(_table(rows, one or texts, box_format), rows.images, seed=seed)
        for rows, one in zip(found, names, strict=True)
    ]


def read_hf_segmentation(
    dataset: "Dataset",
    id2label: Mapping[int, str],
    box_format: str = "coco_xywh",
    stuff_ids: Iterable[int] = (),
    image_column: str = "image",
    map_column: str = "label",
    segments_column: str = "segments_info",
    masks: bool = True,
    seed: int = 0,
) -> DetectionDataset:
    """Read a `datasets.Dataset` in the panoptic layout: an image, a segment map and its segments.

    The map contains each pixel's segment id, as red + 256 * green + 65536 * blue or a gray value.
    `segments_info` is a list of dicts with `id`, `category_id` and optionally `bbox`, `area` and
    `iscrowd`; missing boxes are computed from the map. Maps of classes without `segments_info`, or
    of classes and instances in two channels, are not supported.

    Args:
        dataset: one split.
        id2label: names of the category ids.
        box_format: format of `bbox` in `segments_info`.
        stuff_ids: ids of the stuff categories.
        image_column, map_column, segments_column: names of the columns.
        masks: whether targets have masks.
        seed: seed of the transform's random numbers.

    Raises:
        ValueError: if columns are missing.
    """
    images, maps = HubImages(dataset, image_column), HubImages(dataset, map_column)
    checked_box_format(box_format)
    rows = _collect(dataset, images, segments_column, box_format, maps)
    table = _table(rows, id2label, box_format, stuff_ids)
    return DetectionDataset(table, images, maps, masks, seed)


def _entries(value: Any, row: int) -> list[dict[str, Any]]:
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


def _class_label_names(rows: "_Rows") -> dict[int, str] | None:
    class_label = _find_class_label(rows.feature)
    return None if class_label is None else dict(enumerate(class_label.names))


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


def _find_class_label(feature: Any) -> Any:
    """Find the `ClassLabel` of the category in the objects' feature; None if there is none."""
    if isinstance(feature, import_datasets().ClassLabel):
        return feature
    if isinstance(feature, Mapping):
        inner = [feature[key] for key in CATEGORY_KEYS if key in feature]
    else:
        inner = [feature.feature] if hasattr(feature, "feature") else []
    return next(filter(None, map(_find_class_label, inner)), None)


@dataclass
class _Rows:
    """A split's objects, with COCO's keys, and its images."""

    images: HubImages
    feature: Any  # of the objects
    entries: list[dict[str, Any]]
    owners: list[int]  # the row of each object
    image_ids: list[int]
    sizes_hw: list[tuple[int, int]]
    problems: list[Problem]


def _collect(
    dataset: "Dataset",
    images: HubImages,
    column: str,
    box_format: str | None,
    maps: HubImages | None = None,
) -> _Rows:
    """Collect the objects in a column; those without box have one from their segment map."""
    columns = [column] if column in dataset.column_names else _object_columns(dataset)
    if not columns:
        raise ValueError(
            f"The data set has no column {column!r}; its columns are {dataset.column_names}. "
            f"Expected it, or lists {BOX_KEYS[0]!r} and {CATEGORY_KEYS[0]!r} as columns."
        )
    entries, owners = [], []
    rows = dataset.select_columns(columns).with_format(None)  # without decoding images
    for row, values in enumerate(tqdm(rows, desc=column, unit="row", disable=None)):
        found = _entries(values[column] if columns == [column] else values, row)
        if maps is not None:
            found = with_boxes(found, maps, row, box_format)
        entries += found
        owners += [row] * len(found)
    features = {name: dataset.features[name] for name in columns}
    problems: list[Problem] = []
    found = _image_ids_and_sizes(dataset, images, problems)
    return _Rows(images, features.get(column, features), entries, owners, *found, problems)


def _find_box_format(splits: Sequence[_Rows]) -> str:
    """Find the format that fits all boxes, and note it in the problems of the first split."""
    boxes, areas, sizes = [], [], []
    for rows in splits:
        for entry, row in zip(rows.entries, rows.owners, strict=True):
            box, area = entry["bbox"], entry.get("area")
            if isinstance(box, list) and len(box) == 4 and all(map(_is_number, box)):
                boxes.append(box)  # others are reported later
                areas.append(area if _is_number(area) else np.nan)
                sizes.append(rows.sizes_hw[row])
    if not boxes:
        return BOX_FORMATS[0]
    found, reason = find_box_format(np.array(boxes, dtype=float), np.array(areas), np.array(sizes))
    text = f"the boxes are read as {found}, because {reason}; box_format (--box-format) changes it"
    splits[0].problems.append(Problem("box format found", None, text, False))
    return found


def _is_number(value: Any) -> bool:
    return type(value) in (int, float)


def _table(
    rows: _Rows, names: Mapping[int, str], box_format: str, stuff_ids: Iterable[int] = ()
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


def _object_columns(dataset: "Dataset") -> list[str]:
    """Return the columns of lists of the objects' values; none without boxes or classes."""
    keys = (*BOX_KEYS, *CATEGORY_KEYS, *CROWD_KEYS, "area")
    features = dataset.features
    columns = [key for key in keys if key in features and hasattr(features[key], "feature")]
    has_all = set(columns) & set(BOX_KEYS) and set(columns) & set(CATEGORY_KEYS)
    return columns if has_all else []


def _image_ids_and_sizes(
    dataset: "Dataset", images: HubImages, problems: list[Problem]
) -> tuple[list[int], list[tuple[int, int]]]:
    """Read image ids and sizes from columns, or use the row numbers and the image headers."""
    image_ids = list(range(len(dataset)))
    if "image_id" in dataset.column_names:
        column = list(dataset["image_id"])
        if all(map(is_integer, column)) and len(set(column)) == len(column):
            image_ids = column
    sizes_hw = [(None, None)] * len(dataset)
    if {"height", "width"} <= set(dataset.column_names):
        sizes_hw = zip(dataset["height"], dataset["width"], strict=True)
    return image_ids, fill_in_sizes_hw(sizes_hw, images, problems)
