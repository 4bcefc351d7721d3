"""What the files of a folder look like that has no data in a known layout."""

import json
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

from .file_names import image_endings, read_lines
from .yolo_labels import are_labels, label_file_of

DEPTH = 2  # folders below the one that is looked at
SAMPLE = 20  # files of a folder
MOST_JSON, MOST_XML = 100_000_000, 1_000_000  # bytes that are read
VALIDATION = {"val", "valid", "validation", "test"}
NO_NAMES = ["name of class 0", "name of class 1"]


def what_it_looks_like(folder: Path) -> str | None:
    """Say what the files of a folder look like, and what to do; None if they look like nothing."""
    if images := [found for found, _ in _files(folder, image_endings()) if _has_labels(found)]:
        return _text_of_yolo(folder, images)
    for _, files in _files(folder, {".json", ".xml"}):
        for file in files[:2]:
            tool = _tool_of_xml(file) if file.suffix.lower() == ".xml" else _tool_of_json(file)
            if tool == "COCO":
                return (
                    f"{file} looks like COCO, but its images aren't where a known layout has them. "
                    f"Give it with the folder of its images: --data {file} --images FOLDER."
                )
            if tool:
                return (
                    f"{file} looks like a file of {tool} in its own format, which isn't read. "
                    f"Export or convert it to COCO, YOLO or Pascal VOC with {tool}."
                )
    return None


def _files(folder: Path, endings: set[str]) -> Iterator[tuple[Path, list[Path]]]:
    """Yield each folder that has files of some endings, and the first ones of them."""
    for path, folders, names in os.walk(folder):
        folders.sort()
        if len(Path(path).relative_to(folder).parts) == DEPTH:
            folders.clear()
        found = sorted(n for n in names if os.path.splitext(n)[1].lower() in endings)
        if found:
            yield Path(path), [Path(path, name) for name in found[:SAMPLE]]


def _has_labels(folder: Path) -> bool:
    labels = Path(label_file_of(os.path.abspath(folder / "any"))).parent
    found = (file for home, files in _files(labels, {".txt"}) if home == labels for file in files)
    return any(map(are_labels, found))


def _text_of_yolo(folder: Path, images: list[Path]) -> str:
    """Say how to write the YAML file that is missing."""
    names = [path.relative_to(folder).as_posix() for path in images]
    splits: dict[str, list[str]] = {"train": [], "val": []}
    for name in names:
        splits["val" if VALIDATION & set(name.lower().split("/")) else "train"].append(name)
    content = {key: found if len(found) > 1 else found[0] for key, found in splits.items() if found}
    content["names"] = _class_names(folder, images) or NO_NAMES
    lines = yaml.safe_dump(
        content, default_flow_style=None, sort_keys=False, allow_unicode=True, width=float("inf")
    )
    return f"it looks like YOLO without data.yaml. Write {folder / 'data.yaml'} such as\n{lines}"


def _class_names(folder: Path, images: list[Path]) -> list[str]:
    """Return the lines of the file in which label tools write the names."""
    labels = [Path(label_file_of(os.path.abspath(path / "any"))).parent for path in images]
    for home in (folder, *labels, *(path.parent for path in labels)):
        if (home / "classes.txt").is_file():
            try:
                lines = read_lines(home / "classes.txt")
            except ValueError:  # no text
                return []
            return [line.strip() for line in lines if line.strip()]
    return []


def _tool_of_json(file: Path) -> str | None:
    if file.stat().st_size > MOST_JSON:
        return None
    try:
        content = json.loads(file.read_bytes())
    except (ValueError, RecursionError):
        return None
    if isinstance(content, list):
        tasks = {"annotations", "completions"} & _keys(content[0] if content else None)
        return "Label Studio" if tasks else None
    keys = _keys(content)
    if {"images", "annotations", "categories"} <= keys:
        return "COCO"
    if {"shapes", "imagePath"} <= keys:
        return "LabelMe"
    first = next(iter(content.values())) if keys else None
    is_via = "regions" in _keys(first) or any(key.startswith("_via_") for key in keys)
    return "VIA" if is_via else None


def _keys(value: Any) -> set[str]:
    return set(value) if isinstance(value, dict) else set()


def _tool_of_xml(file: Path) -> str | None:
    with open(file, "rb") as opened:
        head = opened.read(MOST_XML)
    is_cvat = re.search(rb"<annotations[\s>]", head) and re.search(rb"<(?:image|track)\s", head)
    return "CVAT" if is_cvat else None
