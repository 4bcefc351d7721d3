"""Reader of WebDataset's tar files, on this computer or on any file system of fsspec.

The files are indexed once: their annotations are read, and images are then read one by one from
their places, in any order. So a training resumes exactly, as with image files.
"""

import io
import json
import tarfile
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import fsspec
import numpy as np
import PIL.Image
from tqdm.auto import tqdm

from ..wording import some_of
from .annotation_table import PackedValues, Problem
from .dataset import DetectionDataset
from .file_names import image_endings
from .object_rows import ObjectRows, rows_of_values, tables_of_rows
from .remote_files import find_storage, is_remote, read_range
from .result_cache import file_state
from .shards import find_shards


class TarImages:
    """Images in tar files.

    Args:
        shards: addresses of the tar files.
        names: of the images in their tar file.
        places: (I, 3) index of the tar file, start and size in bytes.
    """

    def __init__(self, shards: Sequence[str], names: Sequence[str], places: np.ndarray) -> None:
        self.shards, self._names, self._places = list(shards), PackedValues.pack(names), places
        # Remote tar files would take a request each.
        self._states = [
            "" if is_remote(shard) else file_state(find_storage(shard)[1]) for shard in shards
        ]

    def __len__(self) -> int:
        return len(self._places)

    def name(self, index: int) -> str:
        return f"{self.shards[self._places[index, 0]]}/{self._names[index]}"

    def open(self, index: int) -> PIL.Image.Image:
        shard, start, size = self._places[index].tolist()
        return PIL.Image.open(io.BytesIO(read_range(self.shards[shard], start, start + size)))

    def stamp(self, index: int) -> str:
        place = self._places[index].tolist()
        return f"{self.name(index)} {place} {self._states[place[0]]}"


@dataclass
class _Samples:
    """Images and JSON values of tar files, by the samples' keys, and the files of no sample."""

    places: dict[str, tuple[int, int, int]] = field(default_factory=dict)
    names: dict[str, str] = field(default_factory=dict)
    values: dict[str, Any] = field(default_factory=dict)
    unused: list[str] = field(default_factory=list)


@dataclass
class _Files:
    """Images and JSON files of a tar file with the same key; of JSON files the last counts."""

    images: list[tarfile.TarInfo] = field(default_factory=list)
    json_names: list[str] = field(default_factory=list)
    json_text: bytes = b""

    def are_complete(self) -> bool:
        return bool(self.images and self.json_names)


def read_webdataset(
    data: str,
    box_format: str | None = None,
    id2label: Mapping[int, str] | None = None,
    seed: int = 0,
) -> DetectionDataset:
    """Read WebDataset's tar files: of each sample an image, and a JSON file of its objects.

    The JSON value is a dict with `objects`, as in data sets of the Hub, or `annotations`, as in
    COCO, or a list of objects; each has `bbox`, `category` and optionally `id`, `area` and
    `iscrowd`. `width`, `height` and `image_id` are used if present.

    Args:
        data: address of a tar file, of several as `train-{000..009}.tar` or `train-*.tar`, or of a
            folder of tar files, which are all read.
        box_format: as in `read_hf_dataset`.
        id2label: names of the category ids; by default the sorted names of text categories.
        seed: seed of the transform's random numbers.

    Raises:
        ValueError: if a tar file can't be indexed, or samples have no image or no annotations.
        FileNotFoundError: if there is no such file.
    """
    shards = [shard for group in find_shards(data).values() for shard in group]
    return read_shards([shards], box_format, id2label, seed)[0]


def read_shards(
    splits: Sequence[Sequence[str]],
    box_format: str | None = None,
    id2label: Mapping[int, str] | None = None,
    seed: int = 0,
    others: Sequence[Sequence[str]] = (),
) -> list[DetectionDataset]:
    """Read the tar files of several splits as `read_webdataset` does.

    The names of text categories and the box format are found in all of them together. `others` are
    further splits, which are only read where these leave the box format open.
    """
    rows = list(map(_read_rows, splits))
    tables = tables_of_rows(
        rows, box_format, id2label, read_others=lambda: list(map(_read_rows, others))
    )
    return [
        DetectionDataset(table, one.images, seed=seed)
        for table, one in zip(tables, rows, strict=True)
    ]


def _read_rows(shards: Sequence[str]) -> ObjectRows:
    samples = _Samples()
    for number, shard in enumerate(tqdm(shards, desc="index", unit="tar", disable=None)):
        _index(number, shard, samples)
    if not samples.names and not samples.values:
        raise ValueError(
            f"{some_of(shards, 3)} has no samples; expected images, and JSON files of their "
            "objects with the same names, such as 1.jpg and 1.json. Its images and JSON files: "
            f"{some_of(samples.unused) or 'none'}."
        )
    if missing := sorted(samples.values.keys() ^ samples.names.keys()):
        part = "image" if missing[0] in samples.values else "JSON file of objects"
        raise ValueError(
            f"{len(missing)} samples aren't complete: {missing[0]!r} has no {part}. Samples "
            "without objects need a JSON file with an empty list of objects."
        )
    keys = list(samples.names)
    places = np.array([samples.places[key] for key in keys], dtype=np.int64).reshape(-1, 3)
    images = TarImages(shards, [samples.names[key] for key in keys], places)
    rows = rows_of_values(images, [samples.values[key] for key in keys])
    if samples.unused:
        text = (
            f"{len(samples.unused)} images and JSON files in tar files aren't used, such as "
            f"{some_of(samples.unused, 3)}; expected an image and a JSON file of the same name for "
            "each sample, such as 1.jpg and 1.json"
        )
        rows.problems.append(Problem("files of no sample", None, text, False))
    return rows


def _index(number: int, shard: str, samples: _Samples) -> None:
    """Add the places of a tar file's images, and the content of its JSON files."""
    try:
        with fsspec.open(shard) as file, tarfile.open(fileobj=file, mode="r:") as tar:
            found, unused = _files_of_samples(tar)
        for name, files in found.items():
            key = f"{shard}/{name}"
            if len(files.images) > 1:
                raise ValueError(f"the sample {key!r} has two images")
            for image in files.images:
                samples.names[key] = image.name
                samples.places[key] = number, image.offset_data, image.size
            if files.json_names:
                samples.values[key] = json.loads(files.json_text)
    except (tarfile.TarError, ValueError) as error:
        raise ValueError(
            f"{shard} can't be read ({error}); expected a tar file, not compressed, of images and "
            "JSON files."
        ) from error
    samples.unused += [f"{shard}/{name}" for name in unused]


def _files_of_samples(tar: tarfile.TarFile) -> tuple[dict[str, _Files], list[str]]:
    """Return the files of each sample, and the names of images and JSON files of no sample.

    A sample's files have the same name up to the first dot. If its ending isn't one that is read,
    and there is no complete sample of that name, the name can end at the last dot instead, where
    that gives an image and a JSON file.
    """
    known = image_endings() | {".json"}
    found, others, unused = defaultdict(_Files), defaultdict(_Files), []
    for member in tar:
        if not member.isfile():
            continue
        folder, _, base = member.name.rpartition("/")
        stem, _, ending = base.partition(".")
        is_usual = f".{ending.lower()}" in known
        if stem and not is_usual:  # without stem it is a hidden file
            stem, _, ending = base.rpartition(".")
        if f".{ending.lower()}" not in known:
            continue
        files = (found if is_usual else others)[f"{folder}/{stem}"]
        if ending.lower() == "json":
            files.json_names.append(member.name)
            files.json_text = tar.extractfile(member).read()
        else:
            files.images.append(member)
    for name, files in others.items():
        folder, _, base = name.rpartition("/")
        owner = found.get(f"{folder}/{base.partition('.')[0]}")
        if files.are_complete() and not (owner and owner.are_complete()):
            found[name] = files
        else:
            unused += [*(image.name for image in files.images), *files.json_names]
    return found, unused
