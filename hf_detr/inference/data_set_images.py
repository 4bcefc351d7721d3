"""The images of a data set of the library `datasets`, row by row; nothing here needs torch."""

import itertools
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path, PurePath
from typing import TYPE_CHECKING, Any

from ..data.file_names import image_endings
from ..data.hub_loading import divides_evenly, load_hf_splits
from ..data.layouts import SAVED
from .image_inputs import InputImage, source_of
from .prediction_shards import part_name

if TYPE_CHECKING:
    from datasets import Dataset, IterableDataset


@dataclass(frozen=True)
class DataSetImages:
    """The images in a column of a data set, which is streamed, or mapped from the disk.

    Args:
        name: name on the Hub, folder that `save_to_disk` wrote, folder of Parquet files or images,
            or a Parquet file.
        split: name of the split; can be None if there is only one.
        column: name of the column. Its values can be the bytes of image files, too.
    """

    name: str
    split: str | None = None
    column: str = "image"

    def check(self) -> None:
        """Check that the library is installed and a path exists.

        Raises:
            ValueError, FileNotFoundError: if not.
        """
        if find_spec("datasets") is None:
            raise ValueError("--data needs the library `datasets`: pip install datasets.")
        is_path = self.name.startswith((".", "/", "~")) or self.name.count("/") > 1
        if is_path and not Path(self.name).exists():
            raise FileNotFoundError(f"--data {self.name} doesn't exist.")

    def count(self) -> None:
        """Return None: the number of images isn't known."""

    def local_files(self) -> Iterator[Path]:
        """Iterate over the images in a folder of this name, in folders in it too."""
        if any(Path(self.name, file).is_file() for file in SAVED):
            return iter(())  # its images are in other files
        endings = image_endings()
        return (file for file in Path(self.name).rglob("*") if file.suffix.lower() in endings)

    def skipped(self) -> Iterator[Path]:
        """Iterate over no files: none is given by its name."""
        return iter(())

    def part(self, process: int, num_processes: int) -> Iterator[InputImage]:
        """Iterate over the images of one of several processes.

        Raises:
            ValueError: if there is no such split or column.
        """
        split, rows = self._load()
        if self.column not in (rows.column_names or [self.column]):
            raise ValueError(
                f"{self.name} has no column {self.column!r}; its columns are {rows.column_names}. "
                "Give --image-column."
            )
        for position, number, row in _part(self._undecoded(rows), process, num_processes):
            name = f"{self.name}/{split}/{number}"
            value = row[self.column]
            value = value if isinstance(value, Mapping) else {"bytes": value}
            path, content = value.get("path"), value.get("bytes")
            place = PurePath(path).name if path else str(number)
            source = source_of(path) if path and content is None else content
            source = source or ValueError(f"{name} has no image")
            yield InputImage(name, place, source, position)

    def _load(self) -> tuple[str, "Dataset | IterableDataset"]:
        """Return the name of the split, and its rows."""
        loaded = load_hf_splits(self.name, streaming=True)
        if not isinstance(loaded, Mapping):
            loaded = {"train": loaded}
        split = next(iter(loaded)) if self.split is None and len(loaded) == 1 else self.split
        if split not in loaded:
            raise ValueError(
                f"{self.name} has the splits {', '.join(loaded)}; give one of them as --split."
            )
        return split, loaded[split]

    def _undecoded(self, rows: Any) -> Any:
        """Return the rows with nothing but the bytes or paths of the images."""
        import datasets

        rows = rows.select_columns([self.column]).with_format(None)
        if isinstance((rows.features or {}).get(self.column), datasets.Image):
            rows = rows.cast_column(self.column, datasets.Image(decode=False))
        return rows


def _part(rows: Any, process: int, num_processes: int) -> Iterator[tuple[int, int | str, Any]]:
    """Yield the position of every row's file or of the row itself, its number, and the row.

    Rows of a process with files of its own have its name and a number in its part.
    """
    import datasets
    from datasets.distributed import split_dataset_by_node

    if isinstance(rows, datasets.Dataset):
        rows = rows.to_iterable_dataset()  # of one file
    if num_processes == 1:
        yield from ((number, number, row) for number, row in enumerate(rows))
    elif divides_evenly(rows, num_processes):
        part, numbers = part_name(process, num_processes), itertools.count()
        for file in range(process, rows.num_shards, num_processes):
            for row in rows.shard(rows.num_shards, file):
                yield file, f"{part}/{next(numbers)}", row
    else:
        own = split_dataset_by_node(rows, process, num_processes)
        for number, row in zip(itertools.count(process, num_processes), own, strict=False):
            yield number, number, row
