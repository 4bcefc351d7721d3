"""Image sources of remote folders."""

import io
import os
from collections.abc import Iterable, Sequence
from contextlib import suppress
from pathlib import Path
from urllib.parse import quote, unquote

import PIL.Image

from .file_names import check_stays_inside, is_plain
from .image_source import READING_ERRORS, ImageFolder, ImageSource
from .object_columns import Problem
from .packed_values import PackedValues
from .remote_files import check_address, is_address, is_on_web, read_file, without_slash

UNREAD = ("image file", "missing image", "unreadable image")  # kinds of problems
HEADER = 2**16  # bytes in which PIL nearly always finds an image's size and orientation


class RemoteImages:
    """Image files in a folder on the web or in a storage of `fsspec`, downloaded on access.

    Args:
        folder: the folder's address.
        file_names: names of the images, relative to the folder, or their addresses in it.
        only_headers: whether opened images are read for their header only, without the rest.

    Raises:
        ValueError: if a file name points outside the folder, or the storage is unknown.
    """

    are_plain, notes = True, ()  # as of `ImageFolder`; no other spellings are looked up

    def __init__(
        self, folder: str, file_names: Sequence[str] | PackedValues, only_headers: bool = False
    ) -> None:
        self.folder, self.only_headers = without_slash(folder), only_headers
        if isinstance(file_names, PackedValues):  # of another source
            self.file_names = file_names
            return
        check_address(folder)
        names = list(map(self._relative, file_names))
        others = [name for name in names if not is_plain(name, Path("/"))]
        check_stays_inside(others)
        if outside := next(filter(is_address, others), None):
            raise ValueError(
                f"The file name {outside!r} in the annotations isn't inside {folder}; expected a "
                "path relative to that folder, or an address in it."
            )
        self.file_names = PackedValues.pack(names)

    def headers(self) -> "RemoteImages":
        """Return the same images, of which only the headers are read."""
        return RemoteImages(self.folder, self.file_names, only_headers=True)

    def __len__(self) -> int:
        return len(self.file_names)

    def name(self, index: int) -> str:
        return f"{self.folder}/{self.file_names[index]}"

    def _relative(self, name: str) -> str:
        relative = name.removeprefix(f"{self.folder}/")
        return unquote(relative) if relative != name and is_on_web(name) else relative

    def open(self, index: int) -> PIL.Image.Image:
        address = self.name(index)
        if is_on_web(address):
            address = f"{self.folder}/{quote(self.file_names[index])}"
        if self.only_headers:
            with suppress(*READING_ERRORS):
                return PIL.Image.open(io.BytesIO(read_file(address, HEADER)))
        return PIL.Image.open(io.BytesIO(read_file(address)))

    def stamp(self, index: int) -> str:
        return self.name(index)  # without a request for each image


FolderImages = ImageFolder | RemoteImages


def open_folder(
    folder: str | os.PathLike[str], file_names: Sequence[str] | PackedValues
) -> FolderImages:
    """Return the images of a folder on this computer or at an address.

    Packed names are known to be inside the folder.

    Raises:
        ValueError, FileNotFoundError: as in `ImageFolder` and `RemoteImages`.
    """
    if is_address(folder):
        return RemoteImages(os.fspath(folder), file_names)
    if isinstance(file_names, PackedValues):
        return ImageFolder.of_checked(folder, file_names)
    return ImageFolder(folder, file_names)


def have_failed(images: ImageSource, problems: Iterable[Problem]) -> bool:
    """Whether images at addresses couldn't be read; a result that depends on it isn't cached."""
    unread = (problem.image for problem in problems if problem.kind in UNREAD)
    return any(is_address(images.name(image)) for image in unread)
