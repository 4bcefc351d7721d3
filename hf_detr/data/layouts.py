"""What data a path or a name means: its format and its splits, before annotations are read.

Nothing here needs torch, so that a command line can be checked at once.
"""

import itertools
import json
import os
import re
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from .coco_layouts import LAYOUTS, PANOPTIC, WHOLE, find_coco, find_panoptic
from .file_names import check_stays_inside, walk_files
from .open_images_layouts import BOXES, CLASSES, find_open_images
from .other_formats import what_it_looks_like
from .remote_files import check_address, is_address
from .remote_paths import RemotePath, data_path
from .shards import find_shards, is_shards

# Formats, as messages name them
COCO, PANOPTIC_COCO, YOLO, VOC = "COCO", "COCO panoptic", "YOLO", "Pascal VOC"
OPEN_IMAGES = "Open Images"
DATASETS, ON_THE_HUB, WEBDATASET = "`datasets`", "the Hub", "WebDataset"
# Formats that an option is for
HAVE_OPTION = {
    "images": (COCO,),
    "segments": (COCO,),
    "box_format": (COCO, PANOPTIC_COCO, DATASETS, ON_THE_HUB, WEBDATASET),
    "masks": (COCO, PANOPTIC_COCO, YOLO),
    "names": (DATASETS, ON_THE_HUB, WEBDATASET),
    "stream": (DATASETS, ON_THE_HUB),
}
SPLITS = ("train", "val", "valid", "validation", "test")
HUB_NAME = re.compile(r"\w[\w.-]*(/\w[\w.-]*)?")
SAVED = ("dataset_dict.json", "state.json")  # one of these is in the folders of `save_to_disk`
YAML_FILES = ("data.yaml", "dataset.yaml", "data.yml", "dataset.yml")
VOC_LISTS = "ImageSets/Main"
VOC_ANNOTATIONS = ("Annotations", "annotations")
# Names and the ending of files of `datasets`, up to two folders deep
TABLES = ("*.parquet", "metadata.jsonl", "metadata.csv")
NOTHING = ("", "~", "null")  # a YAML key without value, as text
OTHER_KEYS = {"names", "nc", "path", "kpt_shape", "flip_idx", "download", "roboflow"}


@dataclass(frozen=True)
class DataFiles:
    """A data set on disk or on the Hub.

    `splits` are the names of its splits; None if it has none, or if they are unknown before the
    data set is loaded.
    """

    format: str
    name: str  # path, or name on the Hub
    splits: tuple[str, ...] | None


def find_data(data: str, split: str | None = None, panoptic: bool = False) -> DataFiles:
    """Find the format and the splits of data.

    Args:
        data: a folder, a YAML file of YOLO, a JSON file of COCO, a Parquet file, tar files of
            WebDataset, or a name on the Hub. Data of COCO and WebDataset can be at an address.
        split: a split that may have another name than those of `SPLITS`.
        panoptic: whether to use the panoptic annotations of a folder that has others too.

    Raises:
        ValueError: if the data have no known format, or several.
        FileNotFoundError: if there is no such path, and it can't be a name on the Hub.
    """
    names = (split, *SPLITS) if split else SPLITS
    if is_shards(data):
        return _find_coco_at(data, names, panoptic) or _find_shards(data, names)
    if is_address(data):
        check_address(data)
        return DataFiles(COCO, data, None)
    path = Path(data)
    if path.is_dir():
        return _find_in_folder(path, names, panoptic)
    if path.is_file():
        return _of_file(path)
    if not HUB_NAME.fullmatch(data) or path.suffix in (".json", ".yaml", ".yml", ".parquet"):
        raise FileNotFoundError(
            f"{data} doesn't exist; expected a folder, a file or a name on the Hub like "
            "rishitdagli/cppe-5."
        )
    return DataFiles(ON_THE_HUB, data, None)


def _find_coco_at(data: str, names: Sequence[str], panoptic: bool) -> DataFiles | None:
    """Find COCO data in the folder of an address; None if there are none."""
    folder = data_path(data)
    if not isinstance(folder, RemotePath) or not folder.is_dir():
        return None
    check_stays_inside(names)
    for name, find in ((COCO, find_coco), (PANOPTIC_COCO, find_panoptic)):
        found = [split for split in dict.fromkeys(names) if find(folder, split)]
        if found and (name == PANOPTIC_COCO or not panoptic):
            return DataFiles(name, data, tuple(found))
    return None


def _find_shards(data: str, names: Sequence[str]) -> DataFiles:
    shards = find_shards(data, tuple(names))
    return DataFiles(WEBDATASET, data, None if None in shards else tuple(shards))


def _of_file(path: Path) -> DataFiles:
    match path.suffix.lower():
        case ".json":
            return DataFiles(COCO, str(path), None)
        case ".yaml" | ".yml":
            return DataFiles(YOLO, str(path), yolo_splits(read_yaml(path)))
        case ".parquet":
            return DataFiles(DATASETS, str(path), None)
    raise ValueError(
        f"{path} isn't a file of annotations; expected a JSON file of COCO, a YAML file of YOLO, a "
        "Parquet file, or the data set's folder."
    )


def _find_in_folder(folder: Path, names: Iterable[str], panoptic: bool) -> DataFiles:
    names = tuple(dict.fromkeys([*names, *map(str.title, SPLITS)]))  # CVAT's are capitalized
    check_stays_inside([name.partition("[")[0] for name in names])
    if any((folder / file).is_file() for file in SAVED):
        return DataFiles(DATASETS, str(folder), _saved_splits(folder))
    file = find_yaml(folder)
    found = {
        COCO: [name for name in names if find_coco(folder, name)],
        PANOPTIC_COCO: [name for name in names if find_panoptic(folder, name)],
        YOLO: list(yolo_splits(read_yaml(file))) if file else [],
        VOC: list(voc_splits(folder, names)),
        OPEN_IMAGES: list(find_open_images(folder, names)),
    }
    for name in (COCO, PANOPTIC_COCO, OPEN_IMAGES):
        found[name] = _without_repeated(found[name])
    has_tables, has_tars = _tables_and_tars(folder)
    shards = find_shards(str(folder), names) if has_tars else {}
    if panoptic or found[COCO]:
        del found[COCO if panoptic else PANOPTIC_COCO]
    formats = [name for name, splits in found.items() if splits or (file and name == YOLO)]
    formats += [DATASETS] * has_tables + [WEBDATASET] * bool(shards)
    if panoptic and found[PANOPTIC_COCO]:
        formats = [PANOPTIC_COCO]
    if panoptic and formats != [PANOPTIC_COCO]:
        raise ValueError(f"{folder} has no panoptic data; looked for {_looked_for(PANOPTIC)}.")
    if not formats:
        raise ValueError(_nothing_known(folder))
    if len(formats) > 1:
        raise ValueError(
            f"{folder} has data in several formats, {' and '.join(formats)}; give one of its files "
            "instead, a YAML file of YOLO or a JSON file of COCO with --images, or remove the "
            "others."
        )
    (name,) = formats
    found[WEBDATASET] = list(shards)
    has_no_splits = name == DATASETS or (name == WEBDATASET and None in shards)
    return DataFiles(name, str(folder), None if has_no_splits else tuple(found[name]))


def _nothing_known(folder: Path) -> str:
    """Say what a folder looks like, or else all that was looked for."""
    start = f"{folder} has no data in a known layout; "
    with suppress(OSError):  # of files that may not be read
        if inside := next(filter(_is_known, sorted(folder.iterdir())), None):
            return f"{start}its folder {inside} has; give that."
        if text := what_it_looks_like(folder):
            return start + text
    return (
        f"{start}looked for COCO ({_looked_for((*LAYOUTS, *WHOLE, *PANOPTIC))}), YOLO "
        f"({', '.join(YAML_FILES)}), Pascal VOC ({VOC_LISTS}, or XML files in annotations or "
        f"beside the images), Open Images ({BOXES[0].format(split='train')} with {CLASSES[0]} "
        "and images in train, images/train or images), "
        f"`datasets` (save_to_disk, {', '.join(TABLES)}) and WebDataset (*.tar). Files of other "
        "names can be given themselves: a YAML file of YOLO, or a JSON file of COCO with --images "
        "FOLDER."
    )


def _is_known(folder: Path) -> bool:
    return folder.is_dir() and bool(
        find_yaml(folder)
        or find_coco(folder, SPLITS[0])
        or find_open_images(folder, SPLITS)
        or any(voc_splits(folder, SPLITS))
    )


def _saved_splits(folder: Path) -> tuple[str, ...] | None:
    """Read the names of the splits that `save_to_disk` wrote; None for one without name."""
    several, one = (folder / file for file in SAVED)
    try:
        if several.is_file():
            return tuple(json.loads(several.read_bytes())["splits"])
        name = json.loads(one.read_bytes())["_split"]
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{folder} isn't a folder as of save_to_disk: {error!r}.") from error
    return None if name is None else (name.partition("[")[0],)  # "train[:100]" is of "train"


def _without_repeated(names: Iterable[str]) -> list[str]:
    """Return names without those that differ in case only, as where file systems ignore it."""
    first: dict[str, str] = {}
    return [name for name in names if first.setdefault(name.lower(), name) == name]


def _looked_for(layouts: Iterable[tuple[str, ...]]) -> str:
    files = dict.fromkeys(layout[0].format(split="train") for layout in layouts)
    return ", ".join(files)


def _tables_and_tars(folder: Path) -> tuple[bool, bool]:
    """Return whether there are tables of `datasets` up to two folders deep, and tars up to one.

    Folders with many images are listed once.
    """
    has_tables = has_tars = False
    folders = [(folder, 0)]
    while folders:
        listed, depth = folders.pop()
        with suppress(PermissionError), os.scandir(listed) as entries:
            for entry in entries:
                name = entry.name
                has_tables |= name.endswith(TABLES[0][1:]) or name in TABLES
                has_tars |= depth < 2 and name.endswith(".tar")
                if depth < 2 and entry.is_dir():
                    folders.append((entry.path, depth + 1))
    return has_tables, has_tars


def find_yaml(folder: Path) -> Path | None:
    """Find the YAML file of a YOLO data set in its folder."""
    return next((folder / name for name in YAML_FILES if (folder / name).is_file()), None)


class _UniqueKeyLoader(yaml.BaseLoader):
    """Reads all values as text, and refuses a repeated key, of which YAML keeps the last value."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        known: set[str] = set()
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode) and key.value in known:
                raise ValueError(
                    f"{key.start_mark.line + 1}: the key {key.value!r} is repeated; expected each "
                    "key once, such as the number of a class in 'names'. Remove or rename one."
                )
            known.add(str(key.value))
        return super().construct_mapping(node, deep)


def read_yaml(file: Path) -> dict[str, Any]:
    """Read the YAML file of a YOLO data set; all values are text, lists or dicts.

    Raises:
        ValueError: if the file isn't such a file.
    """
    try:
        # As text, because YAML's numbers, booleans and null can be names: 02146, on, no.
        content = yaml.load(file.read_bytes(), Loader=_UniqueKeyLoader)
    except FileNotFoundError:
        raise ValueError(f"{file} doesn't exist; pass the YAML file or its folder.") from None
    except yaml.YAMLError as error:  # has line and column
        raise ValueError(f"{file} is not a YAML file: {error}") from error
    except ValueError as error:
        raise ValueError(f"{file}:{error}") from error
    if not isinstance(content, dict):
        raise ValueError(f"{file} is not a mapping; expected keys such as 'names' and 'train'.")
    return content


def yolo_splits(content: dict[str, Any]) -> tuple[str, ...]:
    """Return the names of the splits in a YAML file."""
    is_location = {
        key: isinstance(value, list) or (isinstance(value, str) and value not in NOTHING)
        for key, value in content.items()
    }
    return tuple(key for key, is_one in is_location.items() if is_one and key not in OTHER_KEYS)


def voc_splits(folder: Path, names: Iterable[str]) -> Iterator[str]:
    """Return the splits of Pascal VOC data: its lists, or folders with XML files.

    XML files without lists and splits are "train".
    """
    if (folder / VOC_LISTS).is_dir():
        yield from sorted(file.stem for file in (folder / VOC_LISTS).glob("*.txt"))
        return
    found = [name for name in names if (folder / name).is_dir() and _has_voc_files(folder / name)]
    found = _without_repeated(found)
    yield from found or (["train"] if _has_voc_files(folder) else [])


def _has_voc_files(folder: Path) -> bool:
    beside = folder.glob("*.[xX][mM][lL]")
    below = (
        Path(folder, name, file)
        for name in VOC_ANNOTATIONS
        for file in walk_files(folder / name, {".xml"})
    )
    first = next(itertools.chain(beside, below), None)
    if first is None:
        return False
    with open(first, "rb") as opened:  # other tools' XML files have other elements
        return re.search(rb"<annotation[\s>]", opened.read(10_000)) is not None
