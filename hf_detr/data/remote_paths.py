"""Paths in storages of `fsspec`, among which the layout of a data set is looked for."""

import os
from functools import cached_property
from pathlib import Path

from .remote_files import find_storage, is_address, is_on_web, tried_again, without_slash


class RemotePath:
    """A file or folder in a storage, with what looking for a layout needs of `pathlib.Path`.

    Folders are listed once for all paths that are made from one.

    Args:
        address: such as `s3://bucket/photos`.
        above: the folder that it is in, if that is known.
    """

    def __init__(self, address: str, above: "RemotePath | None" = None) -> None:
        self.address, self._above = without_slash(address), above
        self._children: dict[str, RemotePath] = {}

    def __fspath__(self) -> str:
        return self.address

    __str__ = __fspath__

    def __truediv__(self, name: str) -> "RemotePath":
        first, _, rest = name.partition("/")
        child = self
        if first != ".":
            child = RemotePath(f"{self.address}/{first}", self)
            child = self._children.setdefault(first, child)
        return child / rest if rest else child

    def is_file(self) -> bool:
        return self._kind == "file"

    def is_dir(self) -> bool:
        return self._kind == "directory"

    @cached_property
    def _kind(self) -> str | None:
        if self._above is not None:
            return self._above._listed.get(self.address.rpartition("/")[2])
        files, path = find_storage(self.address)
        try:
            return tried_again(lambda: files.info(path))["type"]
        except FileNotFoundError:
            return None

    @cached_property
    def _listed(self) -> dict[str, str]:
        """Return the kinds of what is in the folder, by name; nothing if it isn't one."""
        if not self.is_dir():
            return {}
        files, path = find_storage(self.address)
        entries = tried_again(lambda: files.ls(path, detail=True))
        return {entry["name"].rstrip("/").rpartition("/")[2]: entry["type"] for entry in entries}


def data_path(name: str | os.PathLike[str]) -> Path | RemotePath:
    """Return the path of a name on this computer, or of an address in a storage.

    The web has no folders that can be listed, and in archives (`zip://a::s3://b.zip`) they aren't
    looked for.
    """
    text = os.fspath(name)
    is_in_archive = "::" in text.partition("://")[2]
    is_folder = is_address(text) and not is_on_web(text) and not is_in_archive
    return RemotePath(text) if is_folder else Path(text)
