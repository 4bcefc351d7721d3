"""Readers of COCO detection and panoptic data: a JSON file and a folder of images."""

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from tqdm.auto import tqdm

from .annotation_table import AnnotationTable, table_of_objects
from .box_formats import checked_box_format
from .coco_columns import read_coco_columns, read_json
from .coco_images import CocoImages, ImageIndex, StrPath
from .coco_layouts import LAYOUTS, ONLY_SPLIT, find_coco
from .dataset import DetectionDataset
from .file_names import check_stays_inside
from .image_source import ImageSource, read_sizes_hw, turned_size_hw, with_boxes
from .object_columns import ObjectColumns, Problem, is_integer
from .remote_files import is_address, local_file
from .remote_images import FolderImages, RemoteImages, open_folder
from .remote_paths import data_path
from .table_cache import Content, OpenedImages, read_mapped


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
            only have a `coco_url`, the folder of `train2017` and `val2017`. It and the file can be
            addresses, such as `s3://bucket/val2017`.
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
    checked_box_format(box_format)
    options = repr(("coco", box_format, masks, notes))
    with local_file(annotation_file) as file:
        read = partial(_read_detection, file, image_folder, box_format, masks, notes)
        table, images = read_mapped([file], image_folder, options, read)
    return DetectionDataset(table, images, None, masks, seed)


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
        image_folder: folder that the images' `file_name` is relative to; like the file and the
            other folder, it can be an address.
        segment_folder: folder that the annotations' `file_name` is relative to.
        box_format: format of the boxes in `segments_info`.
        masks: whether targets have masks.
        seed: seed of the transform's random numbers.

    Raises:
        ValueError: as in `read_coco`.
    """
    checked_box_format(box_format)
    with local_file(annotation_file) as file:
        read = _read_panoptic(file, image_folder, segment_folder, box_format)
    return DetectionDataset(*read, masks, seed)


def _read_panoptic(
    file: StrPath, image_folder: StrPath, segment_folder: StrPath, box_format: str
) -> tuple[AnnotationTable, ImageSource, ImageSource]:
    content = read_json(file)
    records = CocoImages.join(file, [CocoImages.of_records(file, content["images"])])
    images = open_folder(image_folder, records.names)
    problems = list(images.notes)
    entries, owners = ImageIndex(records.ids).entries(content["annotations"], 0, problems)
    segment_maps = _segment_maps(file, segment_folder, records.names, entries, owners)
    problems += segment_maps.notes

    segments, segment_images = [], []
    bar = tqdm(entries, desc="segments", unit="image", disable=None)
    for annotation, index in zip(bar, owners, strict=True):
        found = with_boxes(annotation["segments_info"], segment_maps, index, box_format)
        segments += found
        segment_images += [index] * len(found)
    objects = ObjectColumns.of_entries(segments, segment_images)
    used = set(objects.category_ids.tolist())
    categories = _categories_in_use(content["categories"], used, problems)
    names = _class_names(file, categories)
    stuff_ids = [record["id"] for record in categories if not record.get("isthing")]
    table = _table(records, images, objects, names, box_format, problems, stuff_ids)
    return table, images, segment_maps


def _segment_maps(
    file: StrPath,
    folder: StrPath,
    image_names: Sequence[str],
    entries: Sequence[Mapping[str, Any]],
    owners: Sequence[int],
) -> FolderImages:
    """Return each image's segment map; by default it has the name of the image."""
    map_names = [f"{Path(name).stem}.png" for name in image_names]
    for number, (entry, index) in enumerate(zip(entries, owners, strict=True)):
        if not isinstance(entry.get("segments_info"), list):
            raise ValueError(
                f"{file}: annotation {number} has no list 'segments_info'; use read_coco for files "
                "in COCO's detection format."
            )
        map_names[index] = entry.get("file_name", map_names[index])
    return open_folder(folder, map_names)


def _find_files(
    file: StrPath, image_folder: StrPath | None, split: str
) -> tuple[StrPath, StrPath, list[Problem]]:
    """Return the annotation file and the image folder, in the folder of a data set if need be."""
    folder = data_path(file)
    # That a file at an address isn't a folder is known where its images' folder is given.
    if (image_folder is not None and is_address(file)) or not folder.is_dir():
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


def _read_detection(
    file: StrPath, folder: StrPath, box_format: str, masks: bool, notes: Sequence[Problem]
) -> Content:
    content = read_coco_columns(file, masks)
    images = open_folder(folder, content.images.names)
    problems = [*images.notes, *content.problems, *notes]
    used = set(np.unique(content.objects.category_ids).tolist())
    categories = _categories_in_use(content.categories, used, problems)
    names = _class_names(file, categories)
    opened = OpenedImages(images.headers() if isinstance(images, RemoteImages) else images)
    table = _table(content.images, opened, content.objects, names, box_format, problems)
    return table, images, opened.indices


def _table(
    records: CocoImages,
    images: ImageSource,
    objects: ObjectColumns,
    names: Mapping[int, str],
    box_format: str,
    problems: list[Problem],
    stuff_ids: Sequence[int] = (),
) -> AnnotationTable:
    """Make the table of a file; missing sizes are those of the images."""
    sizes_hw = records.sizes_hw
    unknown = np.flatnonzero((sizes_hw <= 0).any(-1))
    if len(unknown):
        sizes_hw[unknown] = read_sizes_hw(images, unknown.tolist(), problems)
    return table_of_objects(
        names,
        records.ids,
        sizes_hw,
        objects,
        box_format,
        stuff_ids,
        problems,
        partial(turned_size_hw, images),
    )


def _class_names(file: StrPath, categories: Sequence[Mapping[str, Any]]) -> dict[int, str]:
    names: dict[int, str] = {}
    for number, record in enumerate(categories):
        category_id, name = record.get("id"), record.get("name")
        if not is_integer(category_id) or not isinstance(name, str) or category_id in names:
            raise ValueError(
                f"{file}: category {number} is {record!r}; expected a 'name' and a unique "
                "integer 'id'."
            )
        names[category_id] = name
    return names


def _categories_in_use(
    categories: Sequence[dict[str, Any]], used: set[int], problems: list[Problem]
) -> list[dict[str, Any]]:
    """Return the categories without Roboflow's root, which has the name of one of them."""
    below = [r.get("name") for r in categories if r.get("supercategory") != "none"]
    kept = []
    for record in categories:
        is_root = record.get("supercategory") == "none" and record.get("name") in below
        if not is_root or record.get("id") in used:
            kept.append(record)
            continue
        text = (
            f"category {record.get('id')} is dropped: it has no objects and the name of "
            f"another category, {record.get('name')!r}"
        )
        problems.append(Problem("empty root category", None, text, False))
    return kept
