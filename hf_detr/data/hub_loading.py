"""Data sets of the library `datasets`: loading from the Hub or from disk, and their images."""

import io
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

import PIL.Image

from .layouts import SAVED
from .result_cache import file_state

if TYPE_CHECKING:
    from datasets import Dataset, DatasetDict, IterableDataset, IterableDatasetDict


def import_datasets() -> ModuleType:
    """Import the library `datasets`.

    Raises:
        ImportError: if it isn't installed; says how to install it.
    """
    try:
        import datasets
    except ImportError as error:
        raise ImportError(
            "Data sets on the Hub need the library `datasets`; install it with "
            "pip install 'hf_detr[train]' or pip install datasets."
        ) from error
    return datasets


def load_hf_splits(
    name: str, split: str | None = None, streaming: bool = False
) -> "Dataset | DatasetDict | IterableDataset | IterableDatasetDict":
    """Load a data set on the Hub or on disk.

    Args:
        name: name on the Hub; a folder that `save_to_disk` wrote, of Parquet files, or of images
            with `metadata.jsonl`; or a Parquet file.
        split: a part of a split in the syntax of `datasets`, such as `train[:100]`; other names
            have no effect.
        streaming: whether to read the rows as they are needed, except those that `save_to_disk`
            wrote, which are mapped.

    Returns:
        All splits, or one data set if it has none: a Parquet file, or a saved data set without a
        split's name.

    Raises:
        ValueError: if the data set can't be loaded.
        FileNotFoundError: if there is no such data set.
    """
    datasets, path = import_datasets(), Path(name)
    load = partial(datasets.load_dataset, streaming=streaming)
    if path.is_file():
        return load("parquet", data_files=name, split="train")
    if any((path / file).is_file() for file in SAVED):
        return _with_split(datasets.load_from_disk(name))
    if path.is_dir():
        name = str(path.absolute())
    elif name in datasets.packaged_modules._PACKAGED_DATASETS_MODULES:
        # Such as "imagefolder": the library would read all images below the working directory.
        raise FileNotFoundError(f"{name} is no folder here, but a format of the library datasets.")
    try:
        loaded = load(name)
        if split and "[" in split:
            loaded[split] = load(name, split=split)
        return loaded
    except (OSError, RuntimeError, datasets.exceptions.DatasetsError) as error:
        if path.exists():
            raise ValueError(f"{name} can't be loaded: {error}") from error
        raise FileNotFoundError(
            f"{name} is neither a file or folder here, nor a data set that can be loaded from the "
            f"Hub: {error}"
        ) from error


def _with_split(loaded: "Dataset | DatasetDict") -> "Dataset | DatasetDict":
    datasets = import_datasets()
    if isinstance(loaded, datasets.DatasetDict) or loaded.split is None:
        return loaded
    name = str(loaded.split)  # "train[:100]" is of "train"
    return datasets.DatasetDict({name.partition("[")[0]: loaded})


def divides_evenly(rows: "IterableDataset", num_processes: int) -> bool:
    """Return whether each process reads files of its own, and otherwise every n-th row of all.

    This is the rule of `split_dataset_by_node`.
    """
    return rows.num_shards % num_processes == 0


def _no_images(column: str, features: Mapping[str, Any], image_feature: type) -> str:
    """Say what the data set has instead of an image column."""
    if getattr(features.get(column), "dtype", None) in ("string", "large_string"):
        return (
            f"The column {column!r} has strings instead of images; if they are paths of files, use "
            f"dataset.cast_column({column!r}, datasets.Image())."
        )
    columns = [name for name, feature in features.items() if isinstance(feature, image_feature)]
    return f"The data set has no image column {column!r}; its image columns are {columns}."


class HubImages:
    """The images of a column, decoded on access."""

    def __init__(self, dataset: "Dataset", column: str) -> None:
        datasets = import_datasets()
        if not isinstance(dataset, datasets.Dataset):
            raise TypeError(
                f"The data set is a {type(dataset).__name__}; expected one split, a "
                "datasets.Dataset, such as load_dataset(..., split='train')."
            )
        image_feature = datasets.Image
        found = dataset.features.get(column)
        # Other programs' Parquet files have the bytes of image files, without saying so.
        is_bytes = isinstance(found, datasets.Value) and "binary" in found.dtype
        self._needs_bytes = is_bytes or (isinstance(found, Mapping) and "bytes" in found)
        if not self._needs_bytes and not isinstance(found, image_feature):
            raise ValueError(_no_images(column, dataset.features, image_feature))
        undecoded = dataset.select_columns([column]).with_format(None)
        self._dataset = undecoded.cast_column(column, image_feature(decode=False))
        self._column = column
        chunks = self._dataset.data.column(column).chunks
        self._has_paths = any(chunk.field("bytes").null_count for chunk in chunks)

    def __len__(self) -> int:
        return len(self._dataset)

    def name(self, index: int) -> str:
        return f"row {index}, {self._column}"

    def open(self, index: int) -> PIL.Image.Image:
        value = self._dataset[index][self._column]
        if value is None or (self._needs_bytes and value["bytes"] is None):
            raise ValueError("the row has no image")
        return PIL.Image.open(
            value["path"] if value["bytes"] is None else io.BytesIO(value["bytes"])
        )

    def stamp(self, index: int) -> str:
        fingerprint = self._dataset._fingerprint  # of the whole data set, which is immutable
        value = self._dataset[index][self._column] if self._has_paths else None
        if value is None or value["bytes"] is not None or not value["path"]:
            return fingerprint
        try:
            return f"{fingerprint} {file_state(value['path'])}"
        except (OSError, ValueError):  # such as of an address
            return f"{fingerprint} missing"
