"""Readers of COCO detection and panoptic data: a JSON file and a folder of images."""

import json
import os
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from tqdm.auto import tqdm

from .annotation_table import AnnotationTable, Problem, is_integer, make_table
from .box_formats import checked_box_format
from .coco_layouts import LAYOUTS, ONLY_SPLIT, find_coco
from .dataset import DetectionDataset
from .file_names import check_stays_inside
from .image_source import ImageFolder, fill_in_sizes_hw, turned_size_hw, with_boxes

StrPath = str | os.PathLike[str]


def read_coco(
    annotation_file: StrPath,
    image_folder: StrPath | None = None,
    box_format: str = "coco_xywh",
    masks: bool = False,
    seed: int = 0,
    split: str = "train",
) -> DetectionDataset:
    """Read COCO detection data.

    A category without objects that has the name of another one is dropped: Roboflow writes such a
    root of all categories.

    Args:
        annotation_file: JSON file with `images`, `annotations` and `categories`; or, without
            `image_folder`, the folder of a data set as COCO, LVIS, CVAT, FiftyOne, Label Studio or
            Roboflow write it.
        image_folder: folder that the images' `file_name` is relative to; for LVIS, whose images
            only have a `coco_url`, the folder of `train2017` and `val2017`.
        box_format: format of the boxes in the file, by default that of COCO.
        masks: whether to read the segmentations too, for targets with masks.
        seed: seed of the transform's random numbers.
        split: name of the split in the folder of a data set; data without splits only have the
            split "train", of all images.

    Raises:
        ValueError: if the file isn't a COCO file, a folder has no known layout, or a file name
            points outside the folder. Errors in single annotations are stored in `table.problems`
            and reported by a warning.
    """
    annotation_file, image_folder, notes = _find_files(annotation_file, image_folder, split)
    file = _CocoFile(annotation_file, image_folder, box_format)
    file.problems += notes
    images = [file.index_of_id[entry["image_id"]] for entry in file.entries]
    return DetectionDataset(
        file.table(file.entries, images, masks=masks), file.images, None, masks, seed
    )


def read_coco_panoptic(
    annotation_file: StrPath,
    image_folder: StrPath,
    segment_folder: StrPath,
    box_format: str = "coco_xywh",
    masks: bool = True,
    seed: int = 0,
) -> DetectionDataset:
    """Read COCO panoptic data: things and stuff with masks in PNG files.

    Categories without `isthing: 1` are stuff (`dataset.label_ids_of_stuff`). A missing `bbox` is
    computed from the PNG file.

    Args:
        annotation_file: JSON file with `images`, `annotations` and `categories`; each annotation
            has an `image_id`, the `file_name` of the PNG file and `segments_info`.
        image_folder: folder that the images' `file_name` is relative to.
        segment_folder: folder that the annotations' `file_name` is relative to.
        box_format: format of the boxes in `segments_info`.
        masks: whether targets have masks.
        seed: seed of the transform's random numbers.

    Raises:
        ValueError: as in `read_coco`.
    """
    file = _CocoFile(annotation_file, image_folder, box_format)
    map_names = [f"{Path(name).stem}.png" for name in file.names]
    for number, annotation in enumerate(file.entries):
        if not isinstance(annotation.get("segments_info"), list):
            raise ValueError(
                f"{annotation_file}: annotation {number} has no list 'segments_info'; use "
                "read_coco for files in COCO's detection format."
            )
        index = file.index_of_id[annotation["image_id"]]
        map_names[index] = annotation.get("file_name", map_names[index])
    segment_maps = ImageFolder(segment_folder, map_names)
    file.problems += segment_maps.notes

    images, entries = [], []
    for annotation in tqdm(file.entries, desc="segments", unit="image", disable=None):
        index = file.index_of_id[annotation["image_id"]]
        segments = with_boxes(annotation["segments_info"], segment_maps, index, box_format)
        entries += segments
        images += [index] * len(segments)
    stuff_ids = [record.get("id") for record in file.categories if not record.get("isthing")]
    table = file.table(entries, images, stuff_ids)
    return DetectionDataset(table, file.images, segment_maps, masks, seed)


def _find_files(
    file: StrPath, image_folder: StrPath | None, split: str
) -> tuple[StrPath, StrPath, list[Problem]]:
    """Return the annotation file and the image folder, in the folder of a data set if need be."""
    folder = Path(file)
    if not folder.is_dir():
        if image_folder is None:
            raise ValueError(f"image_folder is missing; expected the folder of {file}'s images.")
        return file, image_folder, []
    if image_folder is not None:
        raise ValueError(f"{file} is a folder, in which the images are found; omit image_folder.")
    check_stays_inside([split])
    found = find_coco(folder, split)
    if found is None and find_coco(folder, ONLY_SPLIT):
        raise ValueError(
            f"{folder} has no COCO data of the split {split!r}, but of {ONLY_SPLIT!r}; pass "
            f"split={ONLY_SPLIT!r} (--split {ONLY_SPLIT}) to read that."
        )
    if found is None:
        files = dict.fromkeys(file.format(split=split) for file, _ in LAYOUTS)
        expected = ", ".join(files)
        raise ValueError(
            f"{folder} has no COCO data of the split {split!r} in a known layout; pass the "
            f"annotation file and the image folder, or rename them, such as {expected}."
        )
    text = f"{folder} has no splits; {split!r} has all of its images"
    return found[0], found[1], [Problem("no splits", None, text, False)] if found[2] else []


def _read_json(file: StrPath) -> dict[str, list[dict[str, Any]]]:
    try:
        content = json.loads(Path(file).read_bytes())
    except (ValueError, RecursionError) as error:  # ValueError for invalid UTF-8 too
        raise ValueError(f"{file} is not a JSON file: {error}.") from error
    for key in ("images", "annotations", "categories"):
        values = content.get(key) if isinstance(content, dict) else None
        if not isinstance(values, list) or not all(isinstance(value, dict) for value in values):
            raise ValueError(
                f"{file} has no list of objects {key!r}; expected a COCO file, "
                '{"images": [...], "annotations": [...], "categories": [...]}.'
            )
    return content


class _CocoFile:
    """The content of a COCO file: `images`, `entries` with a known image, and `categories`."""

    def __init__(self, file: StrPath, folder: StrPath, box_format: str) -> None:
        self.file, self.box_format = file, checked_box_format(box_format)
        content = _read_json(file)
        self.records, self.categories = content["images"], content["categories"]
        for number, record in enumerate(self.records):
            if not is_integer(record.get("id")) or _file_name(record) is None:
                raise ValueError(
                    f"{file}: image {number} is {record!r}; expected an integer 'id' and a "
                    "'file_name'."
                )
        self.ids = [record["id"] for record in self.records]
        self.index_of_id = {image_id: index for index, image_id in enumerate(self.ids)}
        if len(self.index_of_id) < len(self.ids):
            repeated = next(i for n, i in enumerate(self.ids) if self.index_of_id[i] != n)
            raise ValueError(f"{file}: two images have the id {repeated}; ids must be unique.")
        self.names = list(map(_file_name, self.records))
        self.images = ImageFolder(folder, self.names)
        self.entries: list[Mapping[str, Any]] = []
        self.problems: list[Problem] = list(self.images.notes)
        for number, entry in enumerate(content["annotations"]):
            image_id = entry.get("image_id")
            if is_integer(image_id) and image_id in self.index_of_id:
                self.entries.append(entry)
            else:
                text = f"annotation {number} has the unknown image_id {image_id!r}"
                self.problems.append(Problem("annotation without image", None, text, True))

    def table(
        self,
        entries: Sequence[Mapping[str, Any]],
        images: Sequence[int],
        stuff_ids: Sequence[int] = (),
        masks: bool = False,
    ) -> AnnotationTable:
        """Make the table of entries with COCO's keys; missing sizes are those of the images."""
        names: dict[int, str] = {}
        for number, record in enumerate(self._categories_in_use(entries)):
            category_id, name = record.get("id"), record.get("name")
            if not is_integer(category_id) or not isinstance(name, str) or category_id in names:
                raise ValueError(
                    f"{self.file}: category {number} is {record!r}; expected a 'name' and a unique "
                    "integer 'id'."
                )
            names[category_id] = name
        sizes = [(record.get("height"), record.get("width")) for record in self.records]
        return make_table(
            names,
            self.ids,
            fill_in_sizes_hw(sizes, self.images, self.problems),
            entries,
            images,
            self.box_format,
            [stuff_id for stuff_id in stuff_ids if stuff_id in names],  # others were dropped
            self.problems,
            masks,
            partial(turned_size_hw, self.images),
        )

    def _categories_in_use(self, entries: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
        """Return the categories without Roboflow's root, which has the name of one of them."""
        below = [r.get("name") for r in self.categories if r.get("supercategory") != "none"]
        used = set(filter(is_integer, (entry.get("category_id") for entry in entries)))
        kept = []
        for record in self.categories:
            is_root = record.get("supercategory") == "none" and record.get("name") in below
            if not is_root or record.get("id") in used:
                kept.append(record)
                continue
            text = (
                f"category {record.get('id')} is dropped: it has no objects and the name of "
                f"another category, {record.get('name')!r}"
            )
            self.problems.append(Problem("empty root category", None, text, False))
        return kept


def _file_name(record: Mapping[str, Any]) -> str | None:
    """Return an image's `file_name`, or for LVIS the last folder and name of its `coco_url`."""
    name, url = record.get("file_name"), record.get("coco_url")
    if name is None and isinstance(url, str):
        name = "/".join(urlsplit(url).path.split("/")[-2:])
    return name if isinstance(name, str) else None
