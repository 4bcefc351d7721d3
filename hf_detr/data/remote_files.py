"""Files at addresses: on the web, and in storages that `fsspec` reads; nothing here needs torch.

A storage is opened where a file is read, never before: `fsspec` keeps the connections of a process,
and forked or started workers make their own.
"""

import hashlib
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, TypeVar
from urllib.error import HTTPError
from urllib.parse import urlsplit

from ..atomic_saving import atomic_file
from .result_cache import cache_folder, cached

if TYPE_CHECKING:
    from fsspec import AbstractFileSystem

WEB, LOCAL = ("http", "https"), ("file", "local")
# Packages of storages, where the name isn't that of the scheme.
PACKAGES = {
    **dict.fromkeys(("s3", "s3a"), "s3fs"),
    **dict.fromkeys(("gs", "gcs"), "gcsfs"),
    **dict.fromkeys(("az", "abfs", "abfss"), "adlfs"),
    **dict.fromkeys(WEB, "aiohttp requests"),
}
STAMPS = ("ETag", "Last-Modified", "Content-Length")  # headers that change with a file
BLOCK = 2**24  # bytes that are copied at once
PAUSES = (0.5, 2.0)  # seconds before a file is read again
Result = TypeVar("Result")


def is_address(name: str | os.PathLike[str]) -> bool:
    """Whether a name starts with a scheme, such as `https://` or `s3://`."""
    return "://" in (text := os.fspath(name)) and len(urlsplit(text).scheme) > 1


def is_on_web(name: str) -> bool:
    """Whether a name is an address of the web, which is read without `fsspec`."""
    return is_address(name) and urlsplit(name).scheme.lower() in WEB


def is_remote(name: str) -> bool:
    """Whether a name is an address of another computer, as far as its scheme says."""
    return is_address(name) and urlsplit(name).scheme.lower() not in LOCAL


def without_slash(folder: str) -> str:
    """Return a folder's address without the slashes at its end, but with those of its scheme."""
    scheme, separator, path = folder.partition("://")
    return f"{scheme}{separator}{path.rstrip('/')}"


def check_storage(address: str) -> None:
    """Check that `fsspec` knows a storage and that its package is installed.

    Raises:
        ValueError: if not; says which package to install.
    """
    from fsspec import get_filesystem_class

    scheme = urlsplit(address).scheme
    try:
        get_filesystem_class(scheme)
    except ImportError as error:
        package = PACKAGES.get(scheme)
        how = f"; install it with pip install {package}" if package else ""
        raise ValueError(
            f"{address} can't be read: a package is missing ({error}){how}."
        ) from error
    except ValueError as error:
        raise ValueError(f"{address} can't be read: {error}") from error


def check_address(address: str) -> None:
    """Check, as `check_storage` does, that `read_file` can read an address."""
    if not is_on_web(address):
        check_storage(address)


def check_folder(folder: str | os.PathLike[str], name: str) -> None:
    """Check that a folder exists, or that the storage of its address can be read.

    Raises:
        FileNotFoundError, ValueError: if not; `name` is that of the folder's argument.
    """
    if is_address(folder):
        check_address(os.fspath(folder))
    elif not Path(folder).is_dir():
        raise FileNotFoundError(f"{name} {folder} isn't a folder.")


def find_storage(address: str) -> tuple["AbstractFileSystem", str]:
    """Return the file system of an address, and the path in it.

    Raises:
        ValueError: as in `check_storage`.
    """
    from fsspec.core import url_to_fs

    check_storage(address)
    return url_to_fs(address)


def open_file(address: str) -> BinaryIO:
    """Open what is at an address, to be read from its beginning to its end."""
    if not is_on_web(address):
        files, path = find_storage(address)
        return files.open(path, "rb")
    from ..image_processing.image_reading import open_address

    return open_address(address)


def read_file(address: str, most: int | None = None) -> bytes:
    """Read what is at an address, or its first bytes, at most as many as `most`.

    Raises:
        OSError, ValueError: if that isn't possible, also not a few seconds later.
    """
    if not is_on_web(address):
        return read_range(address, None if most is None else 0, most)

    def read() -> bytes:
        with open_file(address) as file:
            return file.read() if most is None else file.read(most)

    return tried_again(read)


def read_range(address: str, start: int | None, end: int | None) -> bytes:
    """Read the bytes from `start` to before `end` of what is at an address, by `fsspec`.

    Raises:
        OSError, ValueError: as in `read_file`.
    """
    files, path = find_storage(address)
    return tried_again(lambda: files.cat_file(path, start, end))


def tried_again(read: Callable[[], Result]) -> Result:
    """Read again after a pause if that can help, as after a lost connection."""
    pauses = iter(PAUSES)
    while True:
        try:
            return read()
        except FileNotFoundError as error:  # whose text often is a path only
            raise FileNotFoundError(f"there is no such file ({error})") from error
        except (PermissionError, ValueError):
            raise
        except Exception as error:  # each storage raises its own
            pause = next(pauses, None)
            is_final = isinstance(error, HTTPError) and error.code < 500 and error.code != 429
            if isinstance(error, OSError) and (pause is None or is_final):
                raise
            if pause is None:
                raise OSError(f"{type(error).__name__}: {error}") from error
        time.sleep(pause)


@contextmanager
def local_file(name: str | os.PathLike[str]) -> Iterator[str | os.PathLike[str]]:
    """Give a file on this computer: the file itself, or the copy of one at an address.

    Errors that name the copy name the address instead.

    Raises:
        ValueError: if the file can't be downloaded.
    """
    if not is_address(name):
        yield name
        return
    address = os.fspath(name)
    try:
        copy = _download(address)
    except Exception as error:
        raise ValueError(f"{address} can't be downloaded: {error}") from error
    try:
        yield copy
    except ValueError as error:
        raise ValueError(str(error).replace(str(copy), address)) from error
    finally:
        if not is_copy(copy):  # it isn't cached
            copy.unlink()


def is_copy(file: Path) -> bool:
    """Whether a file is a copy of `local_file`, whose name changes with its content."""
    return file.parent == cache_folder("downloads")


def _download(address: str) -> Path:
    """Return a copy of a file, which the processes of a computer download once."""

    def save(file: Path, copy: Path) -> None:
        with atomic_file(file) as unfinished:
            shutil.move(copy, unfinished)

    stamp = tried_again(lambda: _stamp(address))
    if stamp is None:
        return tried_again(lambda: _copy(address))
    digest = hashlib.sha256(f"{address} {stamp}".encode()).hexdigest()
    return cached(
        cache_folder("downloads") / f"{digest[:32]}.json",
        lambda file: file if file.is_file() else None,
        lambda: tried_again(lambda: _copy(address)),
        save,
        f"the copy of {address}",
    )


def _stamp(address: str) -> str | None:
    """Return text that changes with a file; None if the server states nothing that does."""
    if not is_on_web(address):
        files, path = find_storage(address)
        return files.ukey(path)
    with open_file(address) as response:
        found = [response.headers.get(name) for name in STAMPS]
    return repr(found) if any(found[:2]) else None


def _copy(address: str) -> Path:
    with tempfile.NamedTemporaryFile(delete=False) as copy:
        try:
            with open_file(address) as file:
                shutil.copyfileobj(file, copy, BLOCK)
                if missing := getattr(file, "length", None):  # of a response, which ignores it
                    raise ConnectionError(f"the connection was lost {missing} bytes before the end")
        except BaseException:
            os.unlink(copy.name)
            raise
    return Path(copy.name)
