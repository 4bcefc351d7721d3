"""Readers of data sets of the library `datasets`: boxes or panoptic segments."""

import io
from collections.abc import Iterable, Mapping
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

import PIL.Image
from tqdm.auto import tqdm

from .annotation_table import Problem, make_table
from .box_formats import checked_box_format
from .dataset import DetectionDataset
from .image_source import fill_in_sizes_hw, turned_size_hw, with_boxes
from .object_columns import is_integer

if TYPE_CHECKING:
    from datasets import Dataset

# Alternative names in data sets on the Hub.
BOX_KEYS = ("bbox", "bboxes", "boxes")
CATEGORY_KEYS = ("category", "category_id", "categories", "label", "labels")
CROWD_KEYS = ("iscrowd", "is_crowd")
SAVED = ("dataset_dict.json", "state.json")  # one of these is in the folders of `save_to_disk`


class HubImages:
    """The images of a column, decoded on access."""

    def __init__(self, dataset: "Dataset", column: str) -> None:
        datasets = _datasets()
        if not isinstance(dataset, datasets.Dataset):
            raise TypeError(
                f"The data set is a {type(dataset).__name__}; expected one split, a "
                "datasets.Dataset, such as load_dataset(..., split='train')."
            )
        image_feature = datasets.Image
        found = dataset.features.get(column)
        # Other programs' Parquet files have the bytes of image files, without saying so.
        is_bytes = isinstance(found, datasets.Value) and "binary" in found.dtype
        self._needs_bytes = is_bytes or (isinstance(found, Mapping) and "bytes" in found)
        if not self._needs_bytes and not isinstance(found, image_feature):
            columns = [name for name, f in dataset.features.items() if isinstance(f, image_feature)]
            raise ValueError(
                f"The data set has no image column {column!r}; its image columns are {columns}."
            )
        undecoded = dataset.select_columns([column]).with_format(None)
        self._dataset = undecoded.cast_column(column, image_feature(decode=False))
        self._column = column

    def __len__(self) -> int:
        return len(self._dataset)

    def name(self, index: int) -> str:
        return f"row {index}, {self._column}"

    def open(self, index: int) -> PIL.Image.Image:
        value = self._dataset[index][self._column]
        if value is None or (self._needs_bytes and value["bytes"] is None):
            raise ValueError("the row has no image")
        return PIL.Image.open(
            value["path"] if value["bytes"] is None else io.BytesIO(value["bytes"])
        )

    def stamp(self, index: int) -> str:
        return self._dataset._fingerprint  # of the whole data set, which is immutable


def read_hf_dataset(
    dataset: "Dataset",
    box_format: str,
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
        id2label: names of the category ids. By default those of the `ClassLabel`, or for text
            categories the sorted names of this split; pass the `id2label` of the first split to
            the others then.
        image_column, objects_column: names of the columns.
        seed: seed of the transform's random numbers.

    Raises:
        ValueError: if columns or names are missing. Errors in single rows are stored in
            `table.problems` and reported by a warning.
    """
    images = HubImages(dataset, image_column)
    return _read(dataset, images, objects_column, id2label, box_format, seed=seed)


def load_hf_dataset(name: str, split: str) -> "Dataset":
    """Load one split of a data set on the Hub or on disk.

    Args:
        name: name on the Hub; a folder that `save_to_disk` wrote, of Parquet files, or of images
            with `metadata.jsonl`; or a Parquet file, which is the split.
        split: name of the split.

    Raises:
        ValueError: if there is no such split.
    """
    datasets, path = _datasets(), Path(name)
    if path.is_file():
        return datasets.load_dataset("parquet", data_files={split: name}, split=split)
    if not any((path / file).is_file() for file in SAVED):
        return datasets.load_dataset(name, split=split)
    loaded = datasets.load_from_disk(name)
    if not isinstance(loaded, datasets.DatasetDict):
        name_of_slice = str(loaded.split or split).partition("[")[0]  # "train" of "train[:100]"
        if split not in (name_of_slice, str(loaded.split)):
            raise ValueError(f"{name} is the split {str(loaded.split)!r}, not {split!r}.")
        return loaded
    if split not in loaded:
        raise ValueError(f"{name} has no split {split!r}; its splits are {sorted(loaded)}.")
    return loaded[split]


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
    return _read(
        dataset, images, segments_column, id2label, box_format, stuff_ids, maps, masks, seed
    )


def _datasets() -> ModuleType:
    try:
        import datasets
    except ImportError as error:
        raise ImportError(
            "Data sets on the Hub need the library `datasets`; install it with "
            "pip install 'hf_detr[train]' or pip install datasets."
        ) from error
    return datasets


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


def _names(feature: Any, entries: list[dict[str, Any]]) -> dict[int, str]:
    """Return category id -> name, from the `ClassLabel` or the text categories.

    Raises:
        ValueError: if the categories are numbers without names.
    """
    class_label = _find_class_label(feature)
    if class_label is not None:
        return dict(enumerate(class_label.names))
    categories = {entry["category_id"] for entry in entries} - {None}
    if all(isinstance(category, str) for category in categories) and categories:
        return dict(enumerate(sorted(categories)))
    raise ValueError(
        f"The categories are numbers without names, such as {sorted(map(str, categories))[:5]}; "
        "pass id2label={0: 'name', ...} (--names on the command line)."
    )


def _find_class_label(feature: Any) -> Any:
    """Find the `ClassLabel` of the category in the objects' feature; None if there is none."""
    if isinstance(feature, _datasets().ClassLabel):
        return feature
    if isinstance(feature, Mapping):
        inner = [feature[key] for key in CATEGORY_KEYS if key in feature]
    else:
        inner = [feature.feature] if hasattr(feature, "feature") else []
    return next(filter(None, map(_find_class_label, inner)), None)


def _read(
    dataset: "Dataset",
    images: HubImages,
    column: str,
    id2label: Mapping[int, str] | None,
    box_format: str,
    stuff_ids: Iterable[int] = (),
    maps: HubImages | None = None,
    masks: bool = False,
    seed: int = 0,
) -> DetectionDataset:
    """Read the objects in a column; those without box have one from their segment map."""
    checked_box_format(box_format)
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
    names = id2label or _names(features.get(column, features), entries)
    names = {int(key): name for key, name in names.items()}  # keys are text in JSON
    id_of_name = {name: key for key, name in names.items()}
    for entry in entries:
        if isinstance(entry["category_id"], str):
            entry["category_id"] = id_of_name.get(entry["category_id"], entry["category_id"])
    problems: list[Problem] = []
    image_ids, sizes_hw = _image_ids_and_sizes(dataset, images, problems)
    table = make_table(
        names,
        image_ids,
        sizes_hw,
        entries,
        owners,
        box_format,
        stuff_ids,
        problems,
        turned_hw=partial(turned_size_hw, images),
    )
    return DetectionDataset(table, images, maps, masks, seed)


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
