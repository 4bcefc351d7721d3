"""Which tar files an address means, on this computer or on any file system of fsspec."""

import re
from collections.abc import Iterator
from urllib.parse import urlsplit

from .remote_files import find_storage, is_address

RANGE = re.compile(r"\{(\d+)\.\.(\d+)\}")
TAR = ".tar"
OTHERS = (".yaml", ".yml", ".xml", ".parquet", ".csv", ".txt", ".zip")  # endings of other formats
DEPTH = 2  # of tar files in a folder


def is_shards(data: str) -> bool:
    """Whether data can only be tar files: by their name, or as an address of no JSON file."""
    is_json = urlsplit(data).path.lower().endswith(".json")
    return data.endswith(TAR) or (is_address(data) and not is_json)


def find_shards(data: str, splits: tuple[str, ...] = ()) -> dict[str | None, list[str]]:
    """Find the tar files of each split.

    Args:
        data: address of a tar file, of several as `train-{000..009}.tar` or `train-*.tar`, or of a
            folder of tar files.
        splits: names of splits, with which the names of tar files in a folder can begin.

    Returns:
        The sorted addresses of each split, or of None if no name begins with one of `splits`.

    Raises:
        ValueError: if only some of the names begin with a split's, a remote folder has no tar
            files, or its storage can't be read; or for a remote file of another format.
        FileNotFoundError: if there are none.
    """
    found: dict[str | None, list[str]] = {}
    files_of_coco: list[str] = []
    if is_address(data) and urlsplit(data).path.lower().endswith(OTHERS):
        raise ValueError(f"{data} isn't a tar file. {_what_can_be_read(files_of_coco)}")
    for address in _expanded(data):
        files, path = find_storage(address)
        start = len(path)
        if files.isdir(path):
            listed = files.find(path, maxdepth=DEPTH)
            paths = [one for one in listed if one.endswith(TAR)]
            jsons = (one for one in listed if one.endswith(".json"))
            files_of_coco += map(files.unstrip_protocol, jsons)
        else:
            # The name of a file can look like a pattern, as that of train[1].tar.
            paths = [path] if files.exists(path) else files.glob(path)
            named = {_split_of(one.rpartition("/")[2], splits) for one in paths} - {None}
            if len(named) > 1:
                raise ValueError(
                    f"{data} has files of the splits {sorted(named)}; give their folder, or the "
                    "files of one split."
                )
            splits = ()
            if not paths:
                raise FileNotFoundError(
                    f"{address} doesn't exist; expected tar files of WebDataset, or a folder in a "
                    "layout of COCO."
                )
        for one in sorted(paths):
            split = _split_of(one[start:].lstrip("/"), splits)
            found.setdefault(split, []).append(files.unstrip_protocol(one))
    if not found and is_address(data):
        raise ValueError(f"{data} has no tar files. {_what_can_be_read(files_of_coco)}")
    if None in found and len(found) > 1:
        raise ValueError(
            f"{data} has {found[None][0]}, whose name doesn't begin with a split's as those of "
            "others; expected train-000.tar or train/000.tar for all, or for none."
        )
    return found


def _what_can_be_read(files_of_coco: list[str]) -> str:
    """Say which data can be read at an address, and which of the files found may be such data."""
    found = f", such as {files_of_coco[0]}," if files_of_coco else ""
    return (
        "Of data at an address, tar files of WebDataset can be read, a folder in a layout of COCO "
        "such as annotations/instances_train2017.json with train2017, or a JSON file of "
        f"COCO{found} with --images, the address of its images' folder. Download other data, such "
        "as those of YOLO and Pascal VOC, or give the name of a data set on the Hub."
    )


def _split_of(name: str, splits: tuple[str, ...]) -> str | None:
    """Return the split that a name begins with, such as `train-000.tar` or `val/000.tar`."""
    begins = (split for split in splits if re.match(rf"{re.escape(split)}(?![a-zA-Z])", name))
    return next(begins, None)


def _expanded(address: str) -> Iterator[str]:
    """Yield the addresses that `{000..009}` stands for."""
    match = RANGE.search(address)
    if match is None:
        yield address
        return
    first, last = match.groups()
    for number in range(int(first), int(last) + 1):
        name = str(number).zfill(len(first))
        yield from _expanded(address[: match.start()] + name + address[match.end() :])
