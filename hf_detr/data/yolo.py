"""Reader of YOLO data: a `data.yaml`, and a folder of label files for each image folder."""

import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tqdm.auto import tqdm

from .annotation_table import AnnotationTable, Problem, make_table
from .dataset import DetectionDataset
from .file_names import files_below, find_inside, image_endings, read_lines
from .image_source import ImageFolder, image_size_hw
from .layouts import NOTHING, YAML_FILES, find_yaml, read_yaml, yolo_splits
from .table_cache import Content, read_mapped
from .yolo_labels import are_labels, find_label_files, label_file_of


def read_yolo(
    path: str | os.PathLike[str], split: str = "train", masks: bool = False, seed: int = 0
) -> DetectionDataset:
    """Read YOLO detection, segmentation or pose data.

    A label file has a line per object, `class cx cy w h`, or `class x0 y0 x1 y1 x2 y2 ...` for a
    polygon, divided by the image's size. If the YAML file has `kpt_shape`, lines are `class cx cy w
    h` and keypoints, which aren't read. An image without label file has no objects. The id of an
    object is its line number. The YAML file is trusted: its paths may point to any folder.

    Args:
        path: the YAML file, or a folder with `data.yaml` or `dataset.yaml`. It contains `names` (a
            list, or a dict from class to name, which are read as text even if YAML has another
            meaning for them), `path` (the root folder, by default that of the file), and for each
            split a folder of images, a text file that lists images, or a list of these.
        split: name of a split in the file, such as `train`, `val` or `test`.
        masks: whether targets have masks; all objects must be polygons then.
        seed: seed of the transform's random numbers.

    Raises:
        ValueError: if the YAML file is invalid, or `masks` is True for pose data. Errors in label
            files are stored in `table.problems`, with file and line, and reported by a warning.
    """
    path = Path(path)
    file = find_yaml(path) or path / YAML_FILES[0] if path.is_dir() else path
    content = read_yaml(file)
    names = _names(content, file)
    num_keypoint_values = _num_keypoint_values(content, file)
    if masks and num_keypoint_values:
        raise ValueError(f"{file} has kpt_shape; pose data have no masks, pass masks=False.")
    problems: list[Problem] = []
    numbers = {str(len(names)), str(max(names, default=-1) + 1)}
    if content.get("nc", str(len(names))) not in {*NOTHING, *numbers}:
        text = f"{file} has nc {content['nc']}, but {len(names)} names, which are used"
        problems.append(Problem("number of classes", None, text, False))
    paths = _image_paths(content, file, split, problems)
    root = os.path.join(os.path.commonpath(set(map(os.path.dirname, paths))), "")
    label_files = find_label_files(paths)

    def read() -> Content:
        images = ImageFolder(root, [path[len(root) :] for path in paths])
        problems.extend(images.notes)
        _note_shared_label_files(paths, problems)
        if not any(map(os.path.isfile, label_files)):
            text = f"no image has a label file; the first one would be {label_files[0]}"
            problems.append(Problem("label files", None, text, False))
        if num_keypoint_values:
            text = "the keypoints of the objects aren't read, only their boxes"
            problems.append(Problem("keypoints", None, text, False))
        table = _read_labels(
            label_files, images, split, names, num_keypoint_values, masks, problems
        )
        return table, images, ()

    options = repr(("yolo", split, masks, problems))
    table, images = read_mapped([file, *label_files], root, options, read, paths)
    return DetectionDataset(table, images, masks=masks, seed=seed)


def _read_labels(
    label_files: Sequence[str],
    images: ImageFolder,
    split: str,
    names: Mapping[int, str],
    num_keypoint_values: int,
    masks: bool,
    problems: list[Problem],
) -> AnnotationTable:
    """Read the label file and the size of each image."""
    entries, entry_images, sizes_hw = [], [], []
    bar = tqdm(label_files, desc=f"YOLO {split}", unit="image", disable=None)
    for index, label_file in enumerate(bar):
        sizes_hw.append(image_size_hw(images, index, problems))
        try:
            lines = _label_lines(label_file)
        except ValueError as error:
            problems.append(Problem("label file", index, str(error), True))
            continue
        for number, line in lines:
            try:
                class_label, box, polygon = _parse_line(line, names, num_keypoint_values)
            except ValueError as error:
                text = f"{label_file}:{number}: {error}"
                problems.append(Problem("label line", index, text, True))
                continue
            height, width = sizes_hw[-1]
            pixels = [value * (height if i % 2 else width) for i, value in enumerate(polygon)]
            entry = {"id": number, "category_id": class_label, "bbox": box}
            entries.append({**entry, "segmentation": [pixels] if pixels else None})
            entry_images.append(index)
    return make_table(
        *(names, range(len(images)), sizes_hw, entries, entry_images, "cxcywh_normalized"),
        problems=problems,
        masks=masks,
        has_fixed_format=True,
    )


def _names(content: Mapping[str, Any], file: Path) -> dict[int, str]:
    """Class -> name."""
    names = content.get("names")
    names = None if names in NOTHING else names
    names = dict(enumerate(names)) if isinstance(names, list) else names
    is_dict = isinstance(names, dict) and all(str(key).isdecimal() for key in names)
    if not is_dict or not names or any(type(name) is not str for name in names.values()):
        raise ValueError(
            f"{file}: names is {names!r}; expected a list, or a dict from class to name. Names "
            "with special characters, such as a colon, need quotes."
        )
    return {int(key): name for key, name in names.items()}


def _num_keypoint_values(content: Mapping[str, Any], file: Path) -> int:
    """Return how many numbers of a line are keypoints: their number x 2 or 3, or 0."""
    shape = content.get("kpt_shape")
    if shape in (None, *NOTHING):
        return 0
    is_pair = isinstance(shape, list) and len(shape) == 2
    if not is_pair or not str(shape[0]).isdecimal() or shape[1] not in ("2", "3"):
        raise ValueError(
            f"{file}: kpt_shape is {shape!r}; expected [number of keypoints, 2 or 3], 3 with "
            "their visibility."
        )
    return int(shape[0]) * int(shape[1])


def _image_paths(
    content: Mapping[str, Any], file: Path, split: str, problems: list[Problem]
) -> list[str]:
    """Return the absolute paths of a split's images, sorted within each folder."""
    locations = content.get(split)
    if not locations or locations in NOTHING:
        known = sorted(yolo_splits(content))
        raise ValueError(f"{file} has no {split!r}; its splits are {known}.")
    root = content.get("path")
    root = file.parent / ("" if root in (None, *NOTHING) else str(root))
    paths: list[str] = []
    for location in locations if isinstance(locations, list) else [locations]:
        source = _existing(root, str(location), file.parent, problems)
        if source.is_dir():
            folder = os.path.abspath(source)
            found = [os.path.join(folder, name) for name in files_below(folder, image_endings())]
            _note_labels_without_image(folder, found, problems)
            paths += found
        elif source.is_file():
            listed = [line.strip() for line in read_lines(source)]
            paths += [
                os.path.abspath(_existing(source.parent, line, file.parent, problems))
                for line in listed
                if line
            ]
        else:
            raise ValueError(f"{file}: {split} is {location!r}, but {source} doesn't exist.")
    if not paths:
        raise ValueError(f"{file}: {split} is {locations!r}, which has no images.")
    return paths


def _existing(root: Path, location: str, home: Path, problems: list[Problem]) -> Path:
    """Return the path of a file or folder, by another spelling inside `home` if necessary."""
    source = root / location
    if os.path.exists(source):  # unlike Path.exists, also for names that are too long
        return source
    location = location.replace("\\", "/")
    if location.startswith("../") and os.path.exists(root / location[3:]):
        return root / location[3:]  # some tools write paths relative to a subfolder
    found = find_inside(home, location) or find_inside(home, location, is_folder=True)
    if found is None:
        return source
    if all(problem.kind != "paths" for problem in problems):
        text = f"{source} doesn't exist; {home / found} is used, and likewise for others"
        problems.append(Problem("paths", None, text, False))
    return home / found


def _note_labels_without_image(folder: str, images: Sequence[str], problems: list[Problem]) -> None:
    """Report label files without an image, which is missing or has an unknown ending."""
    label_folder = os.path.dirname(label_file_of(os.path.join(folder, "any")))
    known = {_stem(label_file_of(image)) for image in images}
    files = {name: os.path.join(label_folder, name) for name in files_below(label_folder, {".txt"})}
    lost = [name for name, file in files.items() if _stem(file) not in known and are_labels(file)]
    if lost:
        text = (
            f"{len(lost)} label files in {label_folder} have no image, such as {lost[0]}; images "
            "need an ending of a format that PIL opens, such as .jpg or .png"
        )
        problems.append(Problem("label files without image", None, text, False))


def _note_shared_label_files(images: Sequence[str], problems: list[Problem]) -> None:
    owners: dict[str, str] = {}
    shared = [image for image in images if owners.setdefault(_stem(image), image) != image]
    if shared:
        text = (
            f"{len(shared)} images have the label file of another image with the same name, such "
            f"as {owners[_stem(shared[0])]} and {os.path.basename(shared[0])}"
        )
        problems.append(Problem("shared label files", None, text, False))


def _stem(file: str) -> str:
    return os.path.splitext(file)[0]


def _label_lines(file: str) -> list[tuple[int, str]]:
    """Return the number, from 1, and the text of all lines that aren't empty."""
    if not os.path.isfile(file):
        return []
    lines = enumerate(read_lines(Path(file)), start=1)
    return [(number, line) for number, line in lines if line.strip()]


def _parse_line(
    line: str, names: Mapping[int, str], num_keypoint_values: int
) -> tuple[int, list[float], list[float]]:
    """Parse the class, the box (cx, cy, w, h) and the polygon, empty for a box; in [0, 1]."""
    words = line.split()
    try:
        numbers = [float(word) for word in words]
    except ValueError:
        numbers = [math.nan]
    if num_keypoint_values:
        is_valid = len(numbers) in (5, 5 + num_keypoint_values)
        expected = f"'class cx cy w h' and {num_keypoint_values} numbers of keypoints"
    else:
        is_valid = len(numbers) >= 5 and len(numbers) % 2 == 1
        expected = "'class cx cy w h' or 'class x0 y0 x1 y1 x2 y2 ...'"
    if not all(map(math.isfinite, numbers)) or not is_valid:
        raise ValueError(f"got {line.strip()[:100]!r}; expected {expected}")
    class_label, values = numbers[0], numbers[1:]
    if class_label not in names:
        raise ValueError(f"class {words[0]} is not one of the {len(names)} in 'names'")
    if len(values) == 4 or num_keypoint_values:
        return int(class_label), values[:4], []
    x0, y0, x1, y1 = min(values[::2]), min(values[1::2]), max(values[::2]), max(values[1::2])
    return int(class_label), [(x0 + x1) / 2, (y0 + y1) / 2, x1 - x0, y1 - y0], values
