"""Readers of data sets of the library `datasets`: boxes or panoptic segments."""

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from tqdm.auto import tqdm

from .annotation_table import Problem
from .box_formats import checked_box_format
from .dataset import DetectionDataset
from .hub_loading import HubImages, import_datasets
from .image_source import fill_in_sizes_hw, with_boxes
from .object_columns import is_integer
from .object_rows import (
    BOX_KEYS,
    CATEGORY_KEYS,
    OBJECT_KEYS,
    ObjectRows,
    read_entries,
    tables_of_rows,
)

if TYPE_CHECKING:
    from datasets import Dataset


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
    others: Sequence["Dataset"] = (),
) -> list[DetectionDataset]:
    """Read several splits as `read_hf_dataset` does.

    The names of text categories and the box format are found in all of them together. `others` are
    further splits, which are only read where these leave the box format open.
    """

    def collect(datasets: Sequence["Dataset"]) -> list[ObjectRows]:
        return [
            _collect(dataset, HubImages(dataset, image_column), objects_column, box_format)
            for dataset in datasets
        ]

    found = collect(splits)
    tables = tables_of_rows(found, box_format, id2label, read_others=lambda: collect(others))
    return [
        DetectionDataset(table, rows.images, seed=seed)
        for table, rows in zip(tables, found, strict=True)
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
    [table] = tables_of_rows([rows], box_format, id2label, stuff_ids)
    return DetectionDataset(table, images, maps, masks, seed)


def class_label_names(feature: Any) -> dict[int, str] | None:
    """Return the names of the `ClassLabel` of the category in the objects' feature, if any."""
    class_label = _find_class_label(feature)
    return None if class_label is None else dict(enumerate(class_label.names))


def _find_class_label(feature: Any) -> Any:
    """Find the `ClassLabel` of the category in the objects' feature; None if there is none."""
    if isinstance(feature, import_datasets().ClassLabel):
        return feature
    if isinstance(feature, Mapping):
        inner = [feature[key] for key in CATEGORY_KEYS if key in feature]
    else:
        inner = [feature.feature] if hasattr(feature, "feature") else []
    return next(filter(None, map(_find_class_label, inner)), None)


def _collect(
    dataset: "Dataset",
    images: HubImages,
    column: str,
    box_format: str | None,
    maps: HubImages | None = None,
) -> ObjectRows:
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
        found = read_entries(values[column] if columns == [column] else values, row)
        if maps is not None:
            found = with_boxes(found, maps, row, box_format)
        entries += found
        owners += [row] * len(found)
    features = {name: dataset.features[name] for name in columns}
    problems: list[Problem] = []
    found = _image_ids_and_sizes(dataset, images, problems)
    names = class_label_names(features.get(column, features))
    return ObjectRows(images, entries, owners, *found, names, problems)


def _object_columns(dataset: "Dataset") -> list[str]:
    """Return the columns of lists of the objects' values; none without boxes or classes."""
    features = dataset.features
    columns = [key for key in OBJECT_KEYS if key in features and _has_lists(features[key])]
    has_all = set(columns) & set(BOX_KEYS) and set(columns) & set(CATEGORY_KEYS)
    return columns if has_all else []


def _has_lists(feature: Any) -> bool:
    return hasattr(feature, "feature") or hasattr(feature, "shape")  # `List` or such as `Array2D`


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
