"""Opening of data of any kind: its splits, and a function that reads some of them."""

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from torch.utils.data import ConcatDataset, Subset

from .coco import read_coco, read_coco_panoptic
from .coco_layouts import find_panoptic
from .dataset import DetectionDataset, as_detection_dataset
from .hub import read_hf_splits
from .hub_loading import load_hf_splits
from .layouts import (
    COCO,
    DATASETS,
    ON_THE_HUB,
    OPEN_IMAGES,
    PANOPTIC_COCO,
    WEBDATASET,
    YOLO,
    DataFiles,
    find_data,
)
from .open_images import read_open_images
from .open_images_layouts import find_open_images
from .remote_paths import data_path
from .shards import find_shards
from .splits import other_splits
from .streamed import StreamedDataset
from .torch_data import read_torch_dataset
from .voc import read_voc
from .webdataset import read_shards
from .yolo import read_yolo


@dataclass(frozen=True)
class ReadingOptions:
    """How data are read, as in `read_data` and `read_splits`."""

    images: str | None = None
    segments: str | None = None
    box_format: str | None = None
    masks: bool = False
    names: Mapping[int, str] | None = None
    panoptic: bool = False
    stream: bool = False
    seed: int = 0


@dataclass(frozen=True)
class OpenedData:
    """Data with a name for messages.

    `splits` are the names of its splits, None if it has none; `read` reads splits by their names,
    which have no effect if it has none.
    """

    name: str
    splits: tuple[str, ...] | None
    read: Callable[[Sequence[str]], list[DetectionDataset | StreamedDataset]]


def open_data(
    data: Any, options: ReadingOptions, split: str | None = None, files: DataFiles | None = None
) -> OpenedData:
    """Open data of any kind.

    Args:
        data: as in `read_data`.
        options: how they are read.
        split: a split that will be read, of any name.
        files: what `find_data` found, if it is known already.

    Raises:
        ValueError, FileNotFoundError: if the data can't be found or loaded.
    """
    if not isinstance(data, str | os.PathLike):
        if options.stream:
            raise ValueError("stream is for names and paths; give an IterableDataset as it is.")
        return _open_objects(data, options)
    files = files or find_data(os.fspath(data), split, options.panoptic)
    if files.format == WEBDATASET:
        return _open_shards(files, options)
    if files.format in (DATASETS, ON_THE_HUB):
        loaded = load_hf_splits(files.name, split, options.stream)
        if options.stream and not all(map(_is_streamed, _values(loaded))):
            raise ValueError(
                f"{files.name} is on the disk already, from where rows are read when they are "
                "needed; omit --stream."
            )
        return replace(_open_objects(loaded, options), name=files.name)

    def read(names: Sequence[str]) -> list[DetectionDataset]:
        return [_read_files(files, options, name) for name in names]

    return OpenedData(files.name, files.splits, read)


def _read_files(files: DataFiles, options: ReadingOptions, split: str) -> DetectionDataset:
    path, seed = files.name, options.seed
    box_format = options.box_format or "coco_xywh"
    if options.segments or files.format == PANOPTIC_COCO:
        is_json = options.segments is not None
        folders = (path, options.images, options.segments)
        paths = folders if is_json else find_panoptic(data_path(path), split)
        masks = options.masks or options.panoptic
        return read_coco_panoptic(*paths, box_format, masks, seed)
    if files.format == COCO:
        return read_coco(path, options.images, box_format, options.masks, seed, split)
    if files.format == YOLO:
        return read_yolo(path, split, options.masks, seed)
    if files.format == OPEN_IMAGES:
        return read_open_images(*find_open_images(Path(path), [split])[split], seed)
    return read_voc(path, split, seed=seed)


def _open_shards(files: DataFiles, options: ReadingOptions) -> OpenedData:
    """Open tar files of WebDataset, whose splits are read together."""
    if options.masks or options.panoptic:
        raise ValueError(f"{files.name} is {WEBDATASET} data, which has no masks; omit --masks.")

    def read(names: Sequence[str]) -> list[DetectionDataset]:
        shards = find_shards(files.name, files.splits or ())
        splits = [shards[None if files.splits is None else name] for name in names]
        others = [shards[name] for name in other_splits(files.splits, names)]
        return read_shards(splits, options.box_format, options.names, options.seed, others)

    return OpenedData(files.name, files.splits, read)


def _open_objects(data: Any, options: ReadingOptions) -> OpenedData:
    """Open a data set of Python, or a dict or pair of data sets."""
    if isinstance(data, list | tuple) and len(data) == 2:
        data = dict(zip(("train", "val"), data, strict=True))
    splits = tuple(map(str, data)) if isinstance(data, Mapping) else None

    def read(names: Sequence[str]) -> list[DetectionDataset]:
        objects = [data if splits is None else data[name] for name in names]
        others = [data[name] for name in other_splits(splits, names)]
        return _read_objects(objects, options, others)

    return OpenedData(f"The {type(data).__name__}", splits, read)


def _read_objects(
    objects: Sequence[Any], options: ReadingOptions, others: Sequence[Any] = ()
) -> list[DetectionDataset]:
    objects = list(map(_selected, objects))
    if not all(_is_hf_dataset(data) or _is_streamed(data) for data in objects):
        return [_read_object(data, options) for data in objects]
    if options.masks or options.panoptic:
        raise ValueError(
            "Data sets of `datasets` are read without masks; omit --masks, or read them with "
            "read_hf_segmentation in Python."
        )
    if any(map(_is_streamed, objects)):
        return [_read_rows(data, options) for data in objects]
    others = list(filter(_is_hf_dataset, map(_selected, others)))
    given = options.box_format, options.names
    return read_hf_splits(objects, *given, seed=options.seed, others=others)


def _read_rows(data: Any, options: ReadingOptions) -> DetectionDataset | StreamedDataset:
    given = options.box_format, options.names
    if not _is_streamed(data):
        return read_hf_splits([data], *given, seed=options.seed)[0]
    # Only as it was loaded: `take` and `filter` don't change the number that the library states.
    stated = (data.info.splits or {}).get(str(data.split)) if options.stream else None
    number = stated.num_examples if stated else None
    return StreamedDataset(data, number or None, *given, options.seed)  # 0 isn't stated


def _read_object(data: Any, options: ReadingOptions) -> DetectionDataset:
    if isinstance(data, str | os.PathLike):
        return _read_only_split(data, options)
    if _is_hf_dataset(data) or _is_streamed(data):
        return _read_objects([data], options)[0]
    if options.box_format:
        raise ValueError(
            f"box_format can't be used with a {type(data).__name__}, whose boxes have one already."
        )
    is_stream = isinstance(data, StreamedDataset)
    if is_stream or all(isinstance(part, DetectionDataset) for part in _parts(data)):
        kind = "StreamedDataset" if is_stream else "DetectionDataset"
        if options.names:
            raise ValueError(f"names can't be used with a {kind}, which has some.")
        dataset = data if is_stream else as_detection_dataset(data)
        if (options.masks or options.panoptic) and not dataset.masks:
            how = "" if is_stream else "; read it with masks=True"
            raise ValueError(f"The {kind} has no masks{how}.")
        return dataset
    if not hasattr(data, "__getitem__"):
        raise TypeError(
            f"The data are a {type(data).__name__}; expected a path, a name on the Hub, a "
            "DetectionDataset, a datasets.Dataset, a torch data set with items (image, target), or "
            "a dict or pair of those for training and validation."
        )
    masks = options.masks or options.panoptic
    return read_torch_dataset(data, options.names, masks, options.seed)


def _read_only_split(data: str | os.PathLike[str], options: ReadingOptions) -> DetectionDataset:
    """Read a part of a dict or pair, which has one split at most."""
    opened = open_data(data, options)
    if opened.splits is not None and len(opened.splits) != 1:
        raise ValueError(
            f"{opened.name} has the splits {list(opened.splits)}; expected only one of data that "
            "are given in a dict or pair. Give it alone instead."
        )
    return opened.read(opened.splits or ["train"])[0]


def _parts(data: Any) -> list[Any]:
    """Return the data sets that torch's `Subset` and `ConcatDataset` are made of."""
    if isinstance(data, Subset):
        return _parts(data.dataset)
    if isinstance(data, ConcatDataset):
        return [part for one in data.datasets for part in _parts(one)]
    return [data]


def _selected(data: Any) -> Any:
    """Return the selected rows of a data set of `datasets` in torch's `Subset`."""
    is_part = isinstance(data, Subset) and _is_hf_dataset(data.dataset)
    return data.dataset.select(data.indices) if is_part else data


def _values(data: Any) -> list[Any]:
    return list(data.values()) if isinstance(data, Mapping) else [data]


def _is_hf_dataset(data: Any) -> bool:
    return _is_of(data, "datasets.arrow_dataset", "Dataset")


def _is_streamed(data: Any) -> bool:
    return _is_of(data, "datasets.iterable_dataset", "IterableDataset")


def _is_of(data: Any, module: str, name: str) -> bool:
    # By name, because the library is optional and takes long to import.
    return any((base.__module__, base.__name__) == (module, name) for base in type(data).__mro__)
