"""Reader of Open Images: a CSV file with a row per box, and one of the classes' names."""

import csv
import os
from collections.abc import Iterator, Sequence
from functools import partial
from itertools import islice
from operator import itemgetter
from pathlib import Path

import numpy as np

from .annotation_table import table_of_objects
from .dataset import DetectionDataset
from .image_source import ImageFolder, read_sizes_hw, turned_size_hw
from .object_columns import JoinedObjects, ObjectColumns, Problem, without_garbage_collection
from .table_cache import Content, OpenedImages, read_mapped

StrPath = str | os.PathLike[str]
CORNERS = ("XMin", "XMax", "YMin", "YMax")  # divided by the image's size
COLUMNS = ("ImageID", "LabelName", "IsGroupOf", *CORNERS)
BLOCK = 50_000  # rows that are converted at once


def read_open_images(
    annotation_csv: StrPath, class_csv: StrPath, image_folder: StrPath, seed: int = 0
) -> DetectionDataset:
    """Read the boxes of Open Images.

    Groups of objects in one box (`IsGroupOf`) are crowds: excluded from training and ignored in
    evaluation. Images without a file in the folder are left out, because most people only have a
    part of the images. The ids of images and objects are their index among those that are left.

    Args:
        annotation_csv: such as `oidv6-train-annotations-bbox.csv`, with the columns `ImageID`,
            `LabelName`, `XMin`, `XMax`, `YMin`, `YMax` and `IsGroupOf` in any order.
        class_csv: `class-descriptions-boxable.csv`, with a `LabelName` and its name in each row and
            without header; the class labels have its order.
        image_folder: folder of the images, `<ImageID>.jpg`.
        seed: seed of the transform's random numbers.

    Raises:
        ValueError: if a column is missing, a row has an unknown class or invalid numbers, or the
            folder has none of the images.
    """
    files = [annotation_csv, class_csv, image_folder]  # whose time changes with its files
    read = partial(_read, Path(annotation_csv), Path(class_csv), Path(image_folder))
    table, images = read_mapped(files, image_folder, "open_images", read)
    return DetectionDataset(table, images, seed=seed)


def _read(file: Path, class_csv: Path, folder: Path) -> Content:
    labels, names = _read_classes(class_csv)
    with without_garbage_collection():
        joined, index_of_id, missing = _read_boxes(file, labels, folder)
    if not index_of_id:
        raise ValueError(
            f"{folder} has none of the {len(missing)} images of {file}; expected files such as "
            f"{min(missing, default='<ImageID>')}.jpg. Add them, or remove {file.name}."
        )
    problems: list[Problem] = []
    if missing:
        text = (
            f"{len(missing)} of {len(missing) + len(index_of_id)} images of {file}, such as "
            f"{min(missing)}, have no file in {folder} and are left out"
        )
        problems.append(Problem("images without file", None, text, False))
    images = ImageFolder(folder, [f"{image_id}.jpg" for image_id in index_of_id])
    opened = OpenedImages(images)
    number = len(images)
    table = table_of_objects(
        dict(enumerate(names)),
        np.arange(number),
        read_sizes_hw(opened, range(number), problems),
        joined.finish(masks=False),
        "cxcywh_normalized",
        problems=problems,
        turned_hw=partial(turned_size_hw, opened),
        has_fixed_format=True,
    )
    return table, images, opened.indices


def _read_boxes(
    file: Path, labels: dict[str, int], folder: Path
) -> tuple[JoinedObjects, dict[str, int], set[str]]:
    """Return the objects, the indices of the images, and the images without file."""
    existing = {name.removesuffix(".jpg") for name in os.listdir(folder) if name.endswith(".jpg")}
    index_of_id: dict[str, int] = {}
    missing: set[str] = set()
    joined = JoinedObjects()
    for line, rows in _blocks(file):
        ids, *values = map(list, zip(*rows, strict=True))
        new = dict.fromkeys(ids)
        missing.update(image_id for image_id in new if image_id not in existing)
        for image_id in new:
            if image_id in existing:
                index_of_id.setdefault(image_id, len(index_of_id))
        images = np.array([index_of_id.get(image_id, -1) for image_id in ids], dtype=np.int64)
        joined.add(_objects(file, line, images, values, labels, len(joined)))
    return joined, index_of_id, missing


def _read_classes(file: Path) -> tuple[dict[str, int], list[str]]:
    """Return the class label of each `LabelName`, and the names."""
    with file.open(encoding="utf-8-sig", newline="") as opened:
        rows = [row for row in csv.reader(opened) if row]
    rows = rows[1:] if rows and rows[0][0] == "LabelName" else rows
    labels = {row[0]: label for label, row in enumerate(rows)}
    if not rows or len(labels) < len(rows) or any(len(row) != 2 for row in rows):
        raise ValueError(
            f"{file} isn't a list of classes; expected rows such as '/m/011k07,Tortoise', each "
            "LabelName once."
        )
    return labels, [row[1] for row in rows]


def _blocks(file: Path) -> Iterator[tuple[int, list[tuple[str, ...]]]]:
    """Yield the values of `COLUMNS` in some rows, and the number of the line of the first."""
    with file.open(encoding="utf-8-sig", newline="") as opened:
        reader = csv.reader(opened)
        header = next(reader, [])
        if lacking := [name for name in COLUMNS if name not in header]:
            raise ValueError(f"{file} has no columns {lacking}; its columns are {header}.")
        choose = itemgetter(*(header.index(name) for name in COLUMNS))
        line = 2
        while rows := list(islice(reader, BLOCK)):
            if set(map(len, rows)) != {len(header)}:
                number = next(n for n, row in enumerate(rows) if len(row) != len(header))
                raise ValueError(
                    f"{file}:{line + number}: {len(rows[number])} values; expected {len(header)}."
                )
            yield line, list(map(choose, rows))
            line += len(rows)


def _objects(
    file: Path,
    line: int,
    images: np.ndarray,
    values: Sequence[Sequence[str]],
    labels: dict[str, int],
    start: int,
) -> ObjectColumns:
    """Return the objects of images with a file (index at least 0)."""
    label_names, is_group, *corners = values
    classes = np.array([labels.get(name, -1) for name in label_names], dtype=np.int64)
    if (classes < 0).any():
        row = int(np.argmin(classes))
        raise ValueError(
            f"{file}:{line + row}: the class {label_names[row]!r} isn't in the list of classes."
        )
    x0, x1, y0, y1 = (_numbers(file, line, column) for column in corners)
    boxes = np.stack([(x0 + x1) / 2, (y0 + y1) / 2, x1 - x0, y1 - y0], axis=1)
    kept = images >= 0
    number = int(kept.sum())
    return ObjectColumns(
        images[kept],
        np.arange(start, start + number),
        classes[kept],
        boxes[kept],
        np.full(number, np.nan),
        np.array([value.strip() == "1" for value in is_group], dtype=bool)[kept],
        None,
        [],
    )


def _numbers(file: Path, line: int, column: Sequence[str]) -> np.ndarray:
    try:
        numbers = np.array(column, dtype=np.float64)
    except ValueError:
        numbers = np.array([_number(value) for value in column])
    if not np.isfinite(numbers).all():
        row = int(np.argmin(np.isfinite(numbers)))
        raise ValueError(f"{file}:{line + row}: {column[row]!r} isn't a finite number.")
    return numbers


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return np.nan
