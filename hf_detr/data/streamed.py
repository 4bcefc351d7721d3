"""Streamed data sets of the library `datasets`, whose rows are read in order when needed."""

import copy
import hashlib
import io
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import count, islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import PIL.Image
from tqdm.auto import tqdm

from .annotation_table import AnnotationTable, Problem
from .augmentation import seeded
from .dataset import DetectionDataset, Example
from .hub import class_label_names
from .hub_loading import divides_evenly, import_datasets
from .object_rows import (
    BOX_KEYS,
    CATEGORY_KEYS,
    OBJECT_KEYS,
    OBJECTS,
    ObjectRows,
    find_box_format_of_rows,
    rows_of_values,
    tables_of_rows,
)
from .remote_files import is_address, read_file

if TYPE_CHECKING:
    from datasets import IterableDataset

SAMPLE = 200  # first rows, which are checked and tell the format of the boxes
BUFFER = 1000  # rows among which one is drawn when they are shuffled
PART = 256  # rows that are evaluated at once
IMAGE = "image"  # the column

Key = tuple[int, Mapping[str, Any]]  # number and content of a row


class RowImages:
    """The images of some rows, undecoded.

    Args:
        values: a dict of `bytes` or `path`, the bytes of a file, or a PIL image, of each row.
        numbers: numbers of the rows, for messages.
    """

    def __init__(self, values: Sequence[Any], numbers: Sequence[int]) -> None:
        self._values, self._numbers = values, numbers

    def __len__(self) -> int:
        return len(self._values)

    def name(self, index: int) -> str:
        return f"row {self._numbers[index]} of the stream"

    def open(self, index: int) -> PIL.Image.Image:
        content = self._content(index)
        if isinstance(content, PIL.Image.Image):
            return content.copy()  # its reader closes it
        return PIL.Image.open(io.BytesIO(content))

    def stamp(self, index: int) -> str:
        content = self._content(index)
        is_image = isinstance(content, PIL.Image.Image)
        return hashlib.sha256(content.tobytes() if is_image else content).hexdigest()

    def _content(self, index: int) -> bytes | PIL.Image.Image:
        value = self._values[index]
        value = value if isinstance(value, Mapping) else {"bytes": value}
        content, path = value.get("bytes"), value.get("path")
        if content is None and path:
            content = read_file(path) if is_address(path) else Path(path).read_bytes()
        if content is None:
            raise ValueError("the row has no image")
        return content


class StreamedDataset:
    """A streamed data set for training and evaluation, in the layout of `read_hf_dataset`.

    Rows come in the stream's order, in training shuffled with a buffer. What needs annotations
    before the rows are read, such as checks, has those of the first rows.

    Args:
        rows: a `datasets.IterableDataset`, with a column `image`.
        num_rows: number of rows of an epoch, which the rows must have; None reads all of them to
            count them.
        box_format: as in `read_hf_dataset`; None finds it in the first rows.
        id2label: names of the category ids; None: those of the `ClassLabel`.
        seed: seed of the order and of the transform's random numbers.

    Raises:
        ValueError: if there are no rows, columns or names are missing, or several box formats fit
            the first rows.
    """

    masks, segment_maps = False, None

    def __init__(
        self,
        rows: "IterableDataset",
        num_rows: int | None = None,
        box_format: str | None = None,
        id2label: Mapping[int, str] | None = None,
        seed: int = 0,
    ) -> None:
        features = rows.features or {}
        column = next((key for key in OBJECTS if key in features), None)
        self._names = id2label or class_label_names(features[column] if column else features)
        if isinstance(features.get(IMAGE), import_datasets().Image):
            rows = rows.cast_column(IMAGE, import_datasets().Image(decode=False))
        self._rows, self.seed, self.box_format = rows, seed, box_format
        self.transform: Callable[[Any, dict], Example] | None = None
        self._first = list(islice(self.rows(), SAMPLE))
        self._check_columns()
        found = self._object_rows(self._first, range(len(self._first)))
        self.box_format = box_format or find_box_format_of_rows([found])
        self._sample = self._read_found(found)
        self._num_rows = num_rows
        if num_rows is None:
            bar = tqdm(self.rows(), desc="counting rows", unit="row", disable=None)
            self._num_rows = sum(1 for _ in bar)

    def __len__(self) -> int:
        return self._num_rows

    @property
    def id2label(self) -> dict[int, str]:
        """Class label -> name."""
        return self.table.id2label

    @property
    def table(self) -> AnnotationTable:
        """The annotations of the first rows."""
        return self._sample.table

    @property
    def images(self) -> RowImages:
        """The images of the first rows."""
        return self._sample.images

    @property
    def first_row(self) -> Mapping[str, Any]:
        """The first row, undecoded."""
        return self._first[0]

    def sample(self) -> DetectionDataset:
        """Return the first rows as a data set for checks, with a note that they are the first."""
        text = f"only the first {len(self._first)} rows of the stream are checked"
        note = [] if len(self._first) == len(self) else [Problem("stream", None, text, False)]
        table = replace(self.table, problems=(*self.table.problems, *note))
        return DetectionDataset(table, self.images, seed=self.seed)

    def first(self, num_images: int) -> DetectionDataset:
        """Return a data set of the first rows, which are kept in memory."""
        rows = list(islice(self.rows(), num_images))
        return self.read(rows, range(len(rows)))

    def split(self, fraction: float, seed: int = 0) -> None:
        """Refuse to divide a stream.

        Raises:
            ValueError: always.
        """
        raise ValueError(
            "A stream can't be divided by a fraction; give a validation split, or a pair of "
            "streams such as stream.skip(1000) and stream.take(1000)."
        )

    def set_transform(self, transform: Callable[[Any, dict], Example] | None) -> None:
        """Set the transform, as of `DetectionDataset`."""
        self.transform = transform

    def for_workers(self) -> "StreamedDataset":
        """Return a copy that can make examples, without the stream and its rows."""
        light = copy.copy(self)
        light._rows, light._first, light._sample = None, [], None
        return light

    def rows(
        self, process: int = 0, num_processes: int = 1, epoch: int | None = None
    ) -> Iterator[Mapping[str, Any]]:
        """Yield the undecoded rows of one of several processes, shuffled in an epoch.

        Processes divide files or rows, see `divides_evenly`.
        """
        from datasets.distributed import split_dataset_by_node

        rows = self._rows
        if num_processes > 1:
            rows = split_dataset_by_node(rows, process, num_processes)
        if epoch is not None:
            rows = rows.shuffle(seed=self.seed, buffer_size=BUFFER)
            rows.set_epoch(epoch)
        yield from rows

    def endless_rows(
        self, process: int, num_processes: int, epoch: int
    ) -> Iterator[Mapping[str, Any]]:
        """Yield the rows of an epoch, and again from their beginning.

        So all processes have enough rows for an epoch, if their files have different lengths.

        Raises:
            ValueError: if a process has no rows, or there are fewer than `len(self)`, as far as
                that is known without reading the files of other processes.
        """
        least = len(range(process, len(self), num_processes))
        if num_processes > 1 and divides_evenly(self._rows, num_processes):
            least = 1  # the lengths of files aren't known
        while True:
            number = 0
            for row in self.rows(process, num_processes, epoch):
                number += 1
                yield row
            if number < max(least, 1):
                raise ValueError(
                    f"Process {process} of {num_processes} has {number} rows of the stream, but "
                    f"an epoch has {len(self)} for all. Give the right number as num_rows, or use "
                    "fewer processes."
                )

    def parts(
        self, process: int, num_processes: int
    ) -> Iterator[tuple[list[Key], DetectionDataset]]:
        """Yield the rows of one of several processes, some at once, with unique image ids.

        Each part is the arguments of `example`, and the data set of the same rows.
        """
        ids = count(process, num_processes)
        keys = zip(ids, self.rows(process, num_processes), strict=False)
        while part := list(islice(keys, PART)):
            yield part, self.read([row for _, row in part], [number for number, _ in part])

    def example(self, key: Key, epoch: int) -> Example:
        """Return the example of a row, of which the number is the image id."""
        number, row = key
        example = self.read([row], [number])[0]
        if self.transform is None:
            return example
        with seeded(self.seed, epoch, number):
            return self.transform(*example)

    def read(self, rows: Sequence[Mapping[str, Any]], numbers: Sequence[int]) -> DetectionDataset:
        """Return a data set of some rows, whose numbers are the image ids."""
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the same for each part; errors are raised later
            return self._read_found(self._object_rows(rows, numbers))

    def _read_found(self, found: ObjectRows) -> DetectionDataset:
        [table] = tables_of_rows([found], self.box_format, self._names)
        return DetectionDataset(table, found.images, seed=self.seed)

    def _object_rows(self, rows: Sequence[Mapping[str, Any]], numbers: Sequence[int]) -> ObjectRows:
        keys = OBJECTS if any(key in rows[0] for key in OBJECTS) else OBJECT_KEYS
        sizes = "width", "height"
        values = [{key: row[key] for key in (*keys, *sizes) if key in row} for row in rows]
        images = RowImages([row[IMAGE] for row in rows], numbers)
        return replace(rows_of_values(images, values), image_ids=list(numbers))

    def _check_columns(self) -> None:
        if not self._first:
            raise ValueError("The stream has no rows.")
        columns = self._first[0].keys()
        has_objects = any(key in columns for key in OBJECTS)
        has_lists = columns & set(BOX_KEYS) and columns & set(CATEGORY_KEYS)
        if IMAGE not in columns or not (has_objects or has_lists):
            raise ValueError(
                f"The stream has the columns {sorted(columns)}; expected {IMAGE!r}, and "
                f"{OBJECTS[0]!r} or lists {BOX_KEYS[0]!r} and {CATEGORY_KEYS[0]!r}. "
                "rename_column changes them."
            )
        if self._names is None:
            raise ValueError(
                "The stream's classes have no ClassLabel, and all of them have to be known before "
                "its end; pass id2label={0: 'name', ...} (--names on the command line)."
            )
