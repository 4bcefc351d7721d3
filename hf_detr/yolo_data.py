"""YOLO folders: a `data.yaml`, and beside each image folder one of label files."""

import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml
from tqdm.auto import tqdm

from .annotation_table import Problem, RawObjects, make_table
from .detection_data import DetectionDataset
from .image_source import IMAGE_ENDINGS, ImageFolder, image_size_hw


def read_yolo(
    path: str | os.PathLike[str], split: str = "train", masks: bool = False, seed: int = 0
) -> DetectionDataset:
    """Read YOLO detection or segmentation data.

    A label file has a line `class cx cy w h`, or `class x0 y0 x1 y1 x2 y2 ...` for a polygon, per
    object, divided by the image's size; an image without label file has no objects. The line is the
    object's id. Paths in the YAML file may lead anywhere: it is yours.

    Args:
        path: the YAML file, or the folder that has `data.yaml`. It says `names` (a list, or a dict
            from class to name), `path` (from where on; by default the file's folder), and for each
            split a folder of images, a text file that lists images, or a list of these.
        split: `train`, `val`, `test` or whatever the file has.
        masks: give masks; all objects must be polygons then.
        seed: of the transform's randomness.

    Raises:
        ValueError: if the YAML file can't be used. Mistakes in label files are kept as
            `table.problems`, with file and line, and a warning counts them.
    """
    file = Path(path) / "data.yaml" if Path(path).is_dir() else Path(path)
    content = _read_yaml(file)
    names = _names(content, file)
    paths = _image_paths(content, file, split)
    root = os.path.commonpath([image.parent for image in paths])
    images = ImageFolder(root, [str(image.relative_to(root)) for image in paths])
    problems: list[Problem] = []
    objects = RawObjects(segmentations=[] if masks else None)
    sizes_hw = []
    for index, image in enumerate(tqdm(paths, desc=f"YOLO {split}", unit="image", disable=None)):
        sizes_hw.append(image_size_hw(images, index, problems))
        for number, line in _label_lines(image):
            try:
                class_label, box, polygon = _parse_line(line, names)
            except ValueError as error:
                text = f"{_label_file(image)}:{number}: {error}"
                problems.append(Problem("label line", index, text, True))
                continue
            height, width = sizes_hw[-1]
            pixels = [value * (height if i % 2 else width) for i, value in enumerate(polygon)]
            segmentation = [pixels] if pixels else None
            objects.append(index, class_label, box, number, segmentation=segmentation)
    ids = range(len(paths))
    table = make_table(names, ids, sizes_hw, objects, "cxcywh_normalized", problems=problems)
    return DetectionDataset(table, images, masks=masks, seed=seed)


def _read_yaml(file: Path) -> dict[str, Any]:
    try:
        content = yaml.safe_load(file.read_bytes())
    except FileNotFoundError:
        raise ValueError(f"there is no {file}; give the YAML file or its folder.") from None
    except yaml.YAMLError as error:  # names line and column
        raise ValueError(f"{file} is no YAML: {error}") from error
    if not isinstance(content, dict):
        raise ValueError(f"{file} holds no settings; expected 'names', 'train' and so on.")
    return content


def _names(content: Mapping[str, Any], file: Path) -> dict[int, str]:
    """Class -> name."""
    names = content.get("names")
    names = dict(enumerate(names)) if isinstance(names, list) else names
    if not isinstance(names, dict) or not names or any(type(key) is not int for key in names):
        raise ValueError(
            f"{file}: names is {names!r}; give a list of names, or a dict from class to name."
        )
    return {key: str(name) for key, name in names.items()}


def _image_paths(content: Mapping[str, Any], file: Path, split: str) -> list[Path]:
    """The split's images, absolute and sorted folder by folder."""
    places = content.get(split)
    if not places:
        known = sorted(set(content) - {"names", "nc", "path"})
        raise ValueError(f"{file} has no {split!r}, only {known}.")
    root = file.parent / str(content.get("path", ""))
    paths: list[Path] = []
    for place in places if isinstance(places, list) else [places]:
        source = root / str(place)
        if not source.exists() and str(place).startswith("../"):
            source = root / str(place)[3:]  # exports write it as seen from a folder beside
        if source.is_dir():
            found = (path for path in source.rglob("*") if path.suffix.lower() in IMAGE_ENDINGS)
            paths += sorted(found)
        elif source.is_file():
            listed = [line.strip() for line in source.read_text().splitlines()]
            paths += [source.parent / line for line in listed if line]
        else:
            raise ValueError(f"{file}: {split} is {place!r}, but there is no {source}.")
    if not paths:
        raise ValueError(f"{file}: {split} is {places!r}, where there are no images.")
    return [Path(os.path.abspath(path)) for path in paths]


def _label_file(image: Path) -> Path:
    """The label file of an image: in the last `images` of its path replaced by `labels`."""
    parts = list(image.with_suffix(".txt").parts)
    for place in range(len(parts) - 2, 0, -1):
        if parts[place] == "images":
            parts[place] = "labels"
            break
    return Path(*parts)


def _label_lines(image: Path) -> list[tuple[int, str]]:
    """Number, from 1, and text of the lines that aren't empty."""
    file = _label_file(image)
    if not file.is_file():
        return []
    lines = enumerate(file.read_text(errors="replace").splitlines(), start=1)
    return [(number, line) for number, line in lines if line.strip()]


def _parse_line(line: str, names: Mapping[int, str]) -> tuple[int, list[float], list[float]]:
    """Class, box (cx, cy, w, h) and polygon (x0, y0, x1, y1, ...; empty for a box), in [0, 1]."""
    words = line.split()
    try:
        numbers = [float(word) for word in words]
    except ValueError:
        numbers = [math.nan]
    if not all(map(math.isfinite, numbers)) or len(numbers) < 5 or len(numbers) % 2 == 0:
        raise ValueError(
            f"{line.strip()[:100]!r} is neither 'class cx cy w h' nor 'class x0 y0 x1 y1 x2 y2 ...'"
        )
    class_label, values = numbers[0], numbers[1:]
    if class_label not in names:
        raise ValueError(f"class {words[0]} isn't one of the {len(names)} in 'names'")
    if len(values) == 4:
        return int(class_label), values, []
    x0, y0, x1, y1 = min(values[::2]), min(values[1::2]), max(values[::2]), max(values[1::2])
    return int(class_label), [(x0 + x1) / 2, (y0 + y1) / 2, x1 - x0, y1 - y0], values
