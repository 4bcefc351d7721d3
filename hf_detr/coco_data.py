"""COCO's detection and panoptic data: a JSON file and a folder of images."""

import json
import math
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from .annotation_table import Problem, RawObjects, make_table
from .box_formats import checked_box_format
from .detection_data import DetectionDataset
from .image_source import ImageFolder, image_size_hw

StrPath = str | os.PathLike[str]


def read_coco(
    annotation_file: StrPath,
    image_folder: StrPath,
    box_format: str = "coco_xywh",
    masks: bool = False,
    seed: int = 0,
) -> DetectionDataset:
    """Read COCO detection data.

    Args:
        annotation_file: JSON with `images`, `annotations` and `categories`.
        image_folder: what the images' `file_name` is relative to.
        box_format: what the file's boxes are; COCO's own are `coco_xywh`.
        masks: read the segmentations too, and give masks.
        seed: of the transform's randomness.

    Raises:
        ValueError: if the file isn't such JSON or a file name leaves the folder. Mistakes in
            single annotations are kept as `table.problems`, and a warning counts them.
    """
    checked_box_format(box_format)
    content = _read_json(annotation_file, ("images", "annotations", "categories"))
    records = _ImageRecords(content["images"], annotation_file, image_folder)
    entries, problems = _entries_of_known_images(content["annotations"], records)
    objects = RawObjects(
        images=[records.index_of_id[entry["image_id"]] for entry in entries],
        segmentations=[entry.get("segmentation") for entry in entries] if masks else None,
    )
    problems += _fill_objects(objects, entries)
    table = make_table(
        _categories(content["categories"], annotation_file),
        records.ids,
        records.sizes_hw(),
        objects,
        box_format,
        problems=problems,
    )
    return DetectionDataset(table, records.images, masks=masks, seed=seed)


def _read_json(file: StrPath, keys: Sequence[str]) -> dict[str, list[dict[str, Any]]]:
    try:
        content = json.loads(Path(file).read_bytes())
    except ValueError as error:  # also what isn't UTF-8
        raise ValueError(f"{file} is no JSON: {error}.") from error
    for key in keys:
        values = content.get(key) if isinstance(content, dict) else None
        if not isinstance(values, list) or not all(isinstance(value, dict) for value in values):
            raise ValueError(
                f"{file} has no list of objects {key!r}; a COCO file is "
                '{"images": [...], "annotations": [...], "categories": [...]}.'
            )
    return content


def _categories(records: Sequence[Mapping[str, Any]], file: StrPath) -> dict[int, str]:
    """The file's category ids and names.

    Raises:
        ValueError: if an id or a name is missing or an id is there twice.
    """
    names = {}
    for number, record in enumerate(records):
        own_id, name = record.get("id"), record.get("name")
        if not _is_int(own_id) or not isinstance(name, str) or own_id in names:
            raise ValueError(
                f"{file}: category {number} is {record!r}; each needs a 'name' and an 'id', an "
                "integer that no other category has."
            )
        names[own_id] = name
    return names


class _ImageRecords:
    """The `images` of a COCO file."""

    def __init__(self, records: Sequence[Mapping[str, Any]], file: StrPath, folder: StrPath):
        for number, record in enumerate(records):
            if not _is_int(record.get("id")) or not isinstance(record.get("file_name"), str):
                raise ValueError(
                    f"{file}: image {number} is {record!r}; each needs an integer 'id' and a "
                    "'file_name'."
                )
        self.records = records
        self.ids = [record["id"] for record in records]
        self.index_of_id = {image_id: index for index, image_id in enumerate(self.ids)}
        if len(self.index_of_id) < len(records):
            twice = next(i for n, i in enumerate(self.ids) if self.index_of_id[i] != n)
            raise ValueError(f"{file}: two images have the id {twice}; give each its own.")
        self.images = ImageFolder(folder, [record["file_name"] for record in records])

    def sizes_hw(self) -> list[tuple[int, int]]:
        """Heights and widths, from the image itself where the file doesn't say."""
        return [
            (record["height"], record["width"])
            if _is_size(record.get("height")) and _is_size(record.get("width"))
            else image_size_hw(self.images, index)
            for index, record in enumerate(self.records)
        ]


def _is_size(value: Any) -> bool:
    return type(value) is int and value > 0


def _entries_of_known_images(
    entries: Sequence[Mapping[str, Any]], records: _ImageRecords
) -> tuple[list[Mapping[str, Any]], list[Problem]]:
    """Entries whose `image_id` is one of the file's images, and a problem for each other."""
    known, problems = [], []
    for number, entry in enumerate(entries):
        image_id = entry.get("image_id")
        if isinstance(image_id, int) and image_id in records.index_of_id:
            known.append(entry)
        else:
            text = f"annotation {number} has image_id {image_id!r}, which no image of the file has"
            problems.append(Problem("annotation without image", None, text, True))
    return known, problems


def _fill_objects(objects: RawObjects, entries: Sequence[Mapping[str, Any]]) -> list[Problem]:
    """Fill all columns of `objects` but images and segmentations; what can't be read is named."""
    problems: list[Problem] = []

    def column(
        key: str, is_right: Callable[[Any], bool], default: Any, expected: str, optional: bool
    ) -> list[Any]:
        values = [entry.get(key) for entry in entries]
        for row, value in enumerate(values):
            if is_right(value):
                continue
            if value is not None or not optional:
                text = f"object {entries[row].get('id', row)} has {key} {value!r}, not {expected}"
                problems.append(Problem(f"wrong {key}", objects.images[row], text, True))
            values[row] = row if default is None else default
        return values

    objects.ids = column("id", _is_int, None, "an integer", True)
    objects.category_ids = column("category_id", _is_int, -1, "an integer", False)
    objects.boxes = column("bbox", _is_box, [math.nan] * 4, "4 finite numbers", False)
    objects.areas = column("area", _is_area, math.nan, "a finite number from 0", True)
    objects.is_crowd = column("iscrowd", _is_flag, False, "0 or 1", True)
    return problems


def _is_int(value: Any) -> bool:
    return type(value) is int and -(2**63) <= value < 2**63


def _is_box(value: Any) -> bool:
    return type(value) is list and len(value) == 4 and all(map(_is_finite, value))


def _is_area(value: Any) -> bool:
    return _is_finite(value) and value >= 0


def _is_flag(value: Any) -> bool:
    return value == 0 or value == 1


def _is_finite(value: Any) -> bool:
    kind = type(value)
    return (kind is float or kind is int) and math.isfinite(value)
