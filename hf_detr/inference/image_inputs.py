"""The images that a command line names: files, folders, lists, addresses, tars and remote folders.

Images are found one after the other and read when it is their turn, so that there can be any number
of them; only the names in one folder are held and sorted. With several processes, each gets every
n-th file, address or tar. Nothing here needs torch.
"""

import glob
import itertools
import os
import sys
import tarfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from operator import attrgetter
from pathlib import Path, PurePosixPath
from typing import BinaryIO
from urllib.parse import unquote, urlsplit

from ..data.file_names import image_endings, is_inside
from ..data.remote_files import (
    check_address,
    find_storage,
    is_address,
    is_on_web,
    is_remote,
    open_file,
    read_file,
)

TARS = (".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tar.xz")
STDIN = "-"
BLOCK = 2**16  # bytes of a list that are read at once


@dataclass(frozen=True)
class InputImage:
    """An image to find objects in.

    Args:
        name: its path, its address, or `photos.tar/cat.jpg`.
        place: relative path for what is written about it, such as `sub/cat.jpg`.
        source: its file, its bytes, a function that downloads them, or why there are none.
        position: of its file, address, tar or row among those of all processes.
    """

    name: str
    place: str
    source: Path | bytes | Callable[[], bytes] | ValueError
    position: int = 0

    def content(self) -> Path | bytes:
        """Return the file, or the bytes of a file.

        Raises:
            ValueError: if they can't be read or downloaded.
        """
        if isinstance(self.source, ValueError):
            raise self.source
        if not callable(self.source):
            return self.source
        try:
            return self.source()
        except Exception as error:  # each library of a storage raises its own
            raise ValueError(f"{self.name} can't be downloaded: {error}") from error


@dataclass(frozen=True)
class ImageInputs:
    """The images that arguments name, in their order.

    Args:
        names: image files; folders, whose images come in alphabetical order; patterns such as
            `photos/*.jpg`; tar files; http addresses and addresses of storages that `fsspec`
            knows, such as `s3://bucket/photos`; and `-` for a list of files and addresses on stdin.
            A file that an earlier name has as well is left out.
        recursive: whether to read the folders in folders too.
        null: whether the names on stdin end with a NUL character instead of a line break.
    """

    names: Sequence[str]
    recursive: bool = False
    null: bool = False

    def check(self) -> None:
        """Check what can be checked without reading images, stdin or anything remote.

        Raises:
            FileNotFoundError: if a name is nothing.
            ValueError: if folders have no images, or a storage is unknown.
        """
        for name in self.names:
            if name != STDIN and is_address(name):
                check_address(name)
            elif name != STDIN:
                _matches(name)
        if self.count() == 0:
            raise ValueError(
                f"there are no images in {', '.join(self.names)}. Give --recursive for those in "
                "folders of a folder, and --data for a data set of the library `datasets`."
            )

    @property
    def have_streams(self) -> bool:
        """Whether the number of images isn't known before all are read."""
        return any(name == STDIN or is_tar(name) or _is_in_storage(name) for name in self.names)

    def count(self) -> int | None:
        """Return the number of images, None if it isn't known."""
        return None if self.have_streams else sum(1 for _ in self._units())

    def __iter__(self) -> Iterator[InputImage]:
        return self.part(0, 1)

    def part(self, process: int, num_processes: int) -> Iterator[InputImage]:
        """Iterate over the images of one of several processes."""
        units = enumerate(self._units())
        for position, (name, place) in itertools.islice(units, process, None, num_processes):
            if is_tar(name):
                yield from _in_tar(name, position)
            else:
                yield InputImage(name, place, source_of(name), position)

    def local_files(self) -> Iterator[Path]:
        """Iterate over the images that are files, but not those of lists."""
        for name, files in self._local():
            if is_address(name) and not is_remote(name):
                found = (Path(find_storage(one)[1]) for one, _ in self._in_remote_folder(name))
            else:
                found = (file for file, _, is_image in files if is_image)
            yield from (file for file in found if not is_tar(str(file)))

    def skipped(self) -> Iterator[Path]:
        """Iterate over the files in folders whose names aren't those of images."""
        return (file for _, files in self._local() for file, _, is_image in files if not is_image)

    def _units(self) -> Iterator[tuple[str, str]]:
        """Yield the name of every file, address and tar, and the place of an image."""
        addresses = set()
        for name, files in self._local():
            if name == STDIN:
                yield from self._listed()
            elif _is_in_storage(name) and not is_tar(name):
                yield from self._in_remote_folder(name)
            elif is_address(name):
                if name not in addresses:
                    yield name, _place_of_address(name)
                addresses.add(name)
            yield from ((str(file), place) for file, place, is_image in files if is_image)

    def _local(self) -> Iterator[tuple[str, Iterator[tuple[Path, str, bool]]]]:
        """Yield every name and its files, their places and whether they are images."""
        before: set[Path] = set()  # files and folders that are done
        for name in self.names:
            paths = [] if name == STDIN or is_address(name) else _matches(name)
            yield name, (found for path in paths for found in self._in_path(path, before))

    def _in_path(self, path: Path, before: set[Path]) -> Iterator[tuple[Path, str, bool]]:
        folder = path if (is_folder := path.is_dir()) else path.parent
        for file, is_image in self._walk(path) if is_folder else [(path, True)]:
            if file not in before and before.isdisjoint(self._above(file)):
                yield file, str(file.relative_to(folder)), is_image
        before.add(path)  # a pattern gives a folder before what is in it

    @cached_property
    def _named(self) -> frozenset[Path]:
        return frozenset(map(Path, self.names))

    def _above(self, file: Path) -> Sequence[Path]:
        """Return the folders whose images a file is among."""
        return file.parents if self.recursive else [file.parent]

    def _walk(self, folder: Path) -> Iterator[tuple[Path, bool]]:
        """Yield the files in a folder, and whether they have the names of images or are given."""
        endings, folders = image_endings(), []
        with os.scandir(folder) as entries:
            found = sorted((entry.name, _kind(entry)) for entry in entries)
        for name, kind in found:
            path = folder / name
            if kind == "file":
                yield path, path.suffix.lower() in endings or path in self._named
            elif kind == "folder":
                folders.append(path)
        for inner in folders if self.recursive else ():
            yield from self._walk(inner)

    def _listed(self) -> Iterator[tuple[str, str]]:
        for name in _split(sys.stdin.buffer, b"\0" if self.null else b"\n"):
            yield name, _place_of_address(name) if is_address(name) else Path(name).name

    def _in_remote_folder(self, name: str) -> Iterator[tuple[str, str]]:
        """Yield the images of a remote folder or pattern, or the image of that address."""
        try:
            storage, root = find_storage(name)
            if glob.has_magic(root):
                found = storage.glob(root)
                root = root[: root.rindex("/", 0, _first_magic(root)) + 1]
            elif storage.isdir(root):
                found = storage.find(root, maxdepth=None if self.recursive else 1)
            else:
                yield name, _place_of_address(name)
                return
        except Exception as error:  # each storage raises its own
            raise ValueError(f"{name} can't be listed: {error}") from error
        for path in sorted(found):
            if PurePosixPath(path).suffix.lower() in image_endings():
                place = path.removeprefix(root).lstrip("/")
                yield storage.unstrip_protocol(path), place


def _kind(entry: os.DirEntry) -> str:
    """Return file, folder or other; links to folders are other, because they can be circles."""
    if not entry.is_symlink():
        return "file" if entry.is_file() else "folder" if entry.is_dir() else "other"
    # A broken link is an image that fails.
    is_file = os.path.isfile(entry) or not os.path.exists(entry)
    return "file" if is_file else "other"


def source_of(name: str) -> Path | Callable[[], bytes]:
    """Return the file of a path, or a function that downloads what is at an address."""
    return partial(read_file, name) if is_address(name) else Path(name)


def _is_in_storage(name: str) -> bool:
    """Whether a name is an address of a storage, which `fsspec` reads."""
    return is_address(name) and not is_on_web(name)


def is_tar(name: str) -> bool:
    """Whether a path or address has the name of a tar file."""
    path = urlsplit(name).path if is_address(name) else name
    return path.lower().endswith(TARS)


def _matches(name: str) -> list[Path]:
    """Return the files and folders of a path or pattern.

    Raises:
        FileNotFoundError: if there are none.
    """
    # An existing name with brackets isn't a pattern.
    found = [] if Path(name).exists() else sorted(glob.glob(name, recursive=True))
    if not found and not os.path.lexists(name):
        raise FileNotFoundError(
            f"{name} doesn't exist; expected an image, folder, pattern, tar or address."
        )
    return [Path(path) for path in found or [name]]


def images_as_before(images: Iterator[InputImage], torn: Mapping[str, int]) -> Iterator[InputImage]:
    """Yield images without those that are new in tars that couldn't be read to their end before.

    Args:
        torn: name of such a tar -> number of its images before. After them comes its failure, as
            before, which says what to do with the others.
    """
    for position, part in itertools.groupby(images, attrgetter("position")):
        first = next(part)
        tar = next((name for name in torn if f"{first.name}/".startswith(f"{name}/")), None)
        part = itertools.chain([first], part)
        if tar is None:
            yield from part
            continue
        yield from itertools.islice(part, torn[tar])
        for image in itertools.islice(part, 1):
            problem = ValueError(
                f"{tar} couldn't be read to its end when this run began, and has more images now. "
                "Their results have no place among those of the images after it; run them alone: "
                f"hf-detr predict {tar} --output FOLDER"
            )
            failure = InputImage(tar, _place_of_address(tar), problem, position)
            yield image if image.name == tar else failure


def _place_of_address(name: str) -> str:
    return PurePosixPath(unquote(urlsplit(name).path)).name or "image"


def _first_magic(pattern: str) -> int:
    return min(pattern.index(sign) for sign in "*?[" if sign in pattern)


def _split(file: BinaryIO, end: bytes) -> Iterator[str]:
    """Yield the names in a list that aren't empty, as soon as they are there."""
    rest = b""
    while block := file.read1(BLOCK):
        *complete, rest = (rest + block).split(end)
        if end == b"\n":  # of Windows: \r\n
            complete = [name.removesuffix(b"\r") for name in complete]
        yield from (os.fsdecode(name) for name in complete if name.strip())
    if rest.strip():
        yield os.fsdecode(rest)


def _in_tar(name: str, position: int) -> Iterator[InputImage]:
    """Yield the images of a tar file, which is read once from its beginning to its end."""
    endings = image_endings()
    try:
        with (
            open_file(name) if is_address(name) else open(name, "rb") as file,
            tarfile.open(fileobj=file, mode="r|*") as tar,
        ):
            while member := tar.next():
                path = PurePosixPath(member.name)
                if member.isfile() and path.suffix.lower() in endings:
                    place = str(path) if is_inside(str(path)) else path.name
                    content = tar.extractfile(member).read()
                    yield InputImage(f"{name}/{path}", place, content, position)
                tar.members.clear()  # it would keep all of them
    except Exception as error:  # of the tar, its compression or its storage
        problem = ValueError(f"{name} can't be read to its end as a tar file: {error}")
        yield InputImage(name, _place_of_address(name), problem, position)
