"""Tables of annotations on disk, which all processes of a computer map into their memory.

The pages of a mapped file are in memory once, however many ranks and data workers use them.
"""

import hashlib
import json
import mmap
import os
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image

from ..atomic_saving import atomic_file
from .annotation_table import AnnotationTable, warn_of_problems
from .image_source import ImageSource
from .object_columns import Problem
from .packed_values import PackedValues
from .remote_files import is_address, is_copy
from .remote_images import FolderImages, have_failed, open_folder
from .result_cache import cache_folder, cached, file_state

VERSION = "3"  # of the readers and the files; others aren't used
# Smaller and fewer annotation files are read in a fraction of a second.
MIN_BYTES, MIN_FILES = 20_000_000, 2_000
MAX_PROBLEMS = 10_000  # more are kept in memory only
MAX_STAMPS = 10_000  # of more images that were opened, about as many are looked at for changes
ALIGNMENT = 64
ARRAYS = (
    *("image_ids", "image_hw", "offsets", "ids", "class_labels", "boxes_xywh", "areas"),
    "is_crowd",
)

# Table, images, and the indices of the images that were opened to make the table.
Content = tuple[AnnotationTable, FolderImages, Sequence[int]]


class MappedArray(np.ndarray):
    """A read-only array in a file. The whole array is pickled as its place, a part as numbers."""

    place: tuple[Path, str, str, tuple[int, ...], int] | None = None

    def __reduce_ex__(self, protocol: Any) -> Any:
        if self.place is None:
            return self.view(np.ndarray).__reduce_ex__(protocol)
        return map_array, self.place


def map_array(
    file: Path, identity: str, dtype: str, shape: tuple[int, ...], offset: int
) -> MappedArray:
    """Map an array in the file of a table, whose first line is `identity`.

    Raises:
        OSError, ValueError: if the file is gone, too short, or was replaced by another one.
    """
    with open(file, "rb") as opened:
        if opened.readline() != f"{identity}\n".encode():
            raise ValueError(
                f"{file} isn't the file that the data set was mapped from; its images have "
                "changed. Read the data set again."
            )
        mapped = mmap.mmap(opened.fileno(), 0, access=mmap.ACCESS_READ)
    array = np.frombuffer(mapped, dtype, int(np.prod(shape)), offset)
    array = array.reshape(shape).view(MappedArray)
    array.place = (file, identity, dtype, shape, offset)
    return array


class OpenedImages:
    """Images of a source that remembers which of them were opened."""

    def __init__(self, source: ImageSource) -> None:
        self._source = source
        self.indices: list[int] = []

    def __len__(self) -> int:
        return len(self._source)

    def name(self, index: int) -> str:
        return self._source.name(index)

    def open(self, index: int) -> PIL.Image.Image:
        self.indices.append(index)
        return self._source.open(index)

    def stamp(self, index: int) -> str:
        return self._source.stamp(index)


def read_mapped(
    files: Sequence[str | os.PathLike[str]],
    folder: str | os.PathLike[str],
    options: str,
    read: Callable[[], Content],
    image_files: Sequence[str] = (),
) -> tuple[AnnotationTable, FolderImages]:
    """Read a data set, or map the table that was cached when it was read before.

    The cached table is used until the annotation files, the options, or images that were opened for
    their size change. A few small files are always read.

    Args:
        files: the annotation files.
        folder: the image folder.
        options: everything else that the table depends on.
        read: reads the data set.
        image_files: images whose sizes and times are compared too, instead of the indices of opened
            images that `read` returns.
    """
    home = os.getcwd()
    files = [os.path.join(home, file) for file in files]
    states = [_state(file) for file in files]
    if sum(state[0] for state in states) < MIN_BYTES and len(files) < MIN_FILES:
        return read()[:2]
    folder = os.fspath(folder) if is_address(folder) else Path(folder)
    of_images = list(zip(image_files, map(_state, image_files), strict=True))
    own = [
        None if is_copy(Path(file)) else state for file, state in zip(files, states, strict=True)
    ]
    place = folder if isinstance(folder, str) else folder.absolute()
    key = _digest(VERSION, files, place, options, own, of_images)
    is_new = False

    def read_new() -> Content:
        nonlocal is_new
        is_new = True
        return read()

    table, images, _ = cached(
        # Another file for other annotations: on network drives, a process that has a file mapped is
        # killed if another computer replaces it.
        cache_folder("tables") / f"{key[:32]}.table",
        partial(_load, folder=folder),
        read_new,
        _save,
        f"the table of {files[0]}",
    )
    if not is_new:
        warn_of_problems(table.problems)
    return table, images


def _state(file: str) -> tuple[int, ...]:
    """Return what changes with a file; zeros if there is none."""
    try:
        return file_state(file)
    except (OSError, ValueError):
        return 0, 0, 0, 0


def _digest(*values: object) -> str:
    return hashlib.sha256(repr(values).encode(errors="surrogatepass")).hexdigest()


def _save(file: Path, content: Content) -> None:
    table, images, opened = content
    if images.notes or len(table.problems) > MAX_PROBLEMS:
        return  # the names that were found in the folder may change without a change of the file
    if have_failed(images, table.problems):
        return
    arrays = {name: getattr(table, name) for name in ARRAYS}
    for name, values in (("names", images.file_names), ("segmentations", table.segmentations)):
        if values is not None:
            values = values.as_json()
            arrays |= {f"{name}.data": values.data, f"{name}.ends": values.ends}
    header = {
        "file": file.name,  # which tells annotations apart, and `stamps` their images
        "category_ids": table.category_ids,
        "names": list(table.id2label.values()),
        "label_ids_of_stuff": sorted(table.label_ids_of_stuff),
        "problems": [asdict(problem) for problem in table.problems],
        "are_plain": images.are_plain,
        "opened": sorted(set(opened)),
        "stamps": _stamps(images, sorted(set(opened))),
        "arrays": {name: [a.dtype.str, a.shape, a.nbytes] for name, a in arrays.items()},
    }
    text = json.dumps(header)
    for unfinished in file.parent.glob(f".{file.name}.*"):  # of killed processes
        with suppress(OSError):
            unfinished.unlink()
    with atomic_file(file) as unfinished, unfinished.open("wb") as opened_file:
        opened_file.write(f"{_digest(text)}\n{text}\n".encode())
        for array in arrays.values():
            opened_file.write(bytes(-opened_file.tell() % ALIGNMENT))
            opened_file.write(np.ascontiguousarray(array).reshape(-1).view(np.uint8))


def _load(file: Path, folder: str | Path) -> Content | None:
    """Map a table; None if there is none, or it is damaged or of other images."""
    try:
        with open(file, "rb") as opened:
            identity, text = (opened.readline().decode().removesuffix("\n") for _ in range(2))
            if identity != _digest(text):
                return None
            header = json.loads(text)
            position, arrays = opened.tell(), {}
        for name, (dtype, shape, num_bytes) in header["arrays"].items():
            position += -position % ALIGNMENT
            arrays[name] = map_array(file, identity, dtype, tuple(shape), position)
            position += num_bytes
        if position != file.stat().st_size:
            return None
        return _content(header, arrays, folder)
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _content(
    header: dict[str, Any], arrays: dict[str, np.ndarray], folder: str | Path
) -> Content | None:
    packed = {
        name: PackedValues(arrays[f"{name}.data"], arrays[f"{name}.ends"], is_json=True)
        for name in ("names", "segmentations")
        if f"{name}.data" in arrays
    }
    names = packed["names"]
    images = open_folder(folder, names if header["are_plain"] else names.tolist())
    if images.notes or _stamps(images, header["opened"]) != header["stamps"]:
        return None
    table = AnnotationTable(
        category_ids=tuple(header["category_ids"]),
        id2label=dict(enumerate(header["names"])),
        label_ids_of_stuff=frozenset(header["label_ids_of_stuff"]),
        problems=tuple(Problem(**problem) for problem in header["problems"]),
        segmentations=packed.get("segmentations"),
        **{name: arrays[name] for name in ARRAYS},
    )
    return table, images, header["opened"]


def _stamps(images: ImageSource, indices: Sequence[int]) -> str:
    """Return a digest that changes if one of the images changes."""
    stamps = []
    for index in indices[:: max(1, len(indices) // MAX_STAMPS)]:
        try:
            stamps.append(images.stamp(index))
        except (OSError, ValueError):
            stamps.append("missing")
    return _digest(stamps)
