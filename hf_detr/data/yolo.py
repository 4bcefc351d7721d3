"""Reader of YOLO data: a `data.yaml`, and a folder of label files for each image folder."""

import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml
from tqdm.auto import tqdm

from .annotation_table import Problem, make_table
from .dataset import DetectionDataset
from .image_source import IMAGE_ENDINGS, ImageFolder, image_size_hw


def read_yolo(
    path: str | os.PathLike[str], split: str = "train", masks: bool = False, seed: int = 0
) -> DetectionDataset:
    """Read YOLO detection or segmentation data.

    A label file has a line per object, `class cx cy w h`, or `class x0 y0 x1 y1 x2 y2 ...` for a
    polygon, divided by the image's size. An image without label file has no objects. The id of an
    object is its line number. The YAML file is trusted: its paths may point to any folder.

    Args:
        path: the YAML file, or a folder with `data.yaml`. It contains `names` (a list, or a dict
            from class to name), `path` (the root folder, by default that of the file), and for
            each split a folder of images, a text file that lists images, or a list of these.
        split: name of a split in the file, such as `train`, `val` or `test`.
        masks: whether targets have masks; all objects must be polygons then.
        seed: seed of the transform's random numbers.

    Raises:
        ValueError: if the YAML file is invalid. Errors in label files are stored in
            `table.problems`, with file and line, and reported by a warning.
    """
    file = Path(path) / "data.yaml" if Path(path).is_dir() else Path(path)
    content = _read_yaml(file)
    names = _names(content, file)
    paths = _image_paths(content, file, split)
    root = os.path.commonpath([image.parent for image in paths])
    images = ImageFolder(root, [str(image.relative_to(root)) for image in paths])
    problems: list[Problem] = []
    entries, entry_images, sizes_hw = [], [], []
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
            entry = {"id": number, "category_id": class_label, "bbox": box}
            entries.append({**entry, "segmentation": [pixels] if pixels else None})
            entry_images.append(index)
    ids, box_format = range(len(paths)), "cxcywh_normalized"
    table = make_table(
        names, ids, sizes_hw, entries, entry_images, box_format, problems=problems, masks=masks
    )
    return DetectionDataset(table, images, masks=masks, seed=seed)


def _read_yaml(file: Path) -> dict[str, Any]:
    try:
        content = yaml.safe_load(file.read_bytes())
    except FileNotFoundError:
        raise ValueError(f"{file} doesn't exist; pass the YAML file or its folder.") from None
    except yaml.YAMLError as error:  # has line and column
        raise ValueError(f"{file} is not a YAML file: {error}") from error
    if not isinstance(content, dict):
        raise ValueError(f"{file} is not a mapping; expected keys such as 'names' and 'train'.")
    return content


def _names(content: Mapping[str, Any], file: Path) -> dict[int, str]:
    """Class -> name."""
    names = content.get("names")
    names = dict(enumerate(names)) if isinstance(names, list) else names
    if not isinstance(names, dict) or not names or any(type(key) is not int for key in names):
        raise ValueError(
            f"{file}: names is {names!r}; expected a list, or a dict from class to name."
        )
    return {key: str(name) for key, name in names.items()}


def _image_paths(content: Mapping[str, Any], file: Path, split: str) -> list[Path]:
    """Return the absolute paths of a split's images, sorted within each folder."""
    locations = content.get(split)
    if not locations:
        known = sorted(set(content) - {"names", "nc", "path"})
        raise ValueError(f"{file} has no {split!r}; its splits are {known}.")
    root = file.parent / str(content.get("path", ""))
    paths: list[Path] = []
    for location in locations if isinstance(locations, list) else [locations]:
        source = root / str(location)
        if not source.exists() and str(location).startswith("../"):
            source = root / str(location)[3:]  # some tools write paths relative to a subfolder
        if source.is_dir():
            found = (path for path in source.rglob("*") if path.suffix.lower() in IMAGE_ENDINGS)
            paths += sorted(found)
        elif source.is_file():
            listed = [line.strip() for line in source.read_text().splitlines()]
            paths += [source.parent / line for line in listed if line]
        else:
            raise ValueError(f"{file}: {split} is {location!r}, but {source} doesn't exist.")
    if not paths:
        raise ValueError(f"{file}: {split} is {locations!r}, which has no images.")
    return [Path(os.path.abspath(path)) for path in paths]


def _label_file(image: Path) -> Path:
    """Return the label file of an image: the last `images` in its path replaced by `labels`."""
    parts = list(image.with_suffix(".txt").parts)
    for index in range(len(parts) - 2, 0, -1):
        if parts[index] == "images":
            parts[index] = "labels"
            break
    return Path(*parts)


def _label_lines(image: Path) -> list[tuple[int, str]]:
    """Return the number, from 1, and the text of all lines that aren't empty."""
    file = _label_file(image)
    if not file.is_file():
        return []
    lines = enumerate(file.read_text(errors="replace").splitlines(), start=1)
    return [(number, line) for number, line in lines if line.strip()]


def _parse_line(line: str, names: Mapping[int, str]) -> tuple[int, list[float], list[float]]:
    """Parse the class, the box (cx, cy, w, h) and the polygon, empty for a box; in [0, 1]."""
    words = line.split()
    try:
        numbers = [float(word) for word in words]
    except ValueError:
        numbers = [math.nan]
    if not all(map(math.isfinite, numbers)) or len(numbers) < 5 or len(numbers) % 2 == 0:
        raise ValueError(
            f"got {line.strip()[:100]!r}; expected 'class cx cy w h' or "
            "'class x0 y0 x1 y1 x2 y2 ...'"
        )
    class_label, values = numbers[0], numbers[1:]
    if class_label not in names:
        raise ValueError(f"class {words[0]} is not one of the {len(names)} in 'names'")
    if len(values) == 4:
        return int(class_label), values, []
    x0, y0, x1, y1 = min(values[::2]), min(values[1::2]), max(values[::2]), max(values[1::2])
    return int(class_label), [(x0 + x1) / 2, (y0 + y1) / 2, x1 - x0, y1 - y0], values
