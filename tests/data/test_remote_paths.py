"""Whole data sets at an address: their layout is found as on this computer."""

from collections.abc import Iterator
from pathlib import Path
from zipfile import ZipFile

import fsspec
import pytest
from fsspec.implementations.memory import MemoryFileSystem

from hf_detr import read_data, read_splits
from hf_detr.data.coco_layouts import LAYOUTS, WHOLE
from hf_detr.data.layouts import find_data
from hf_detr.data.remote_paths import RemotePath, data_path
from hf_detr_command_line import main

from .test_coco_layouts import move
from .test_formats import write_panoptic_split


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A temporary cache instead of the user's."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.fixture
def storage() -> Iterator[MemoryFileSystem]:
    """An empty storage in memory."""
    storage = fsspec.filesystem("memory")
    yield storage
    if storage.exists("/mine"):
        storage.rm("/mine", recursive=True)


@pytest.mark.parametrize(("file", "images"), LAYOUTS)
def test_every_layout(tmp_path: Path, storage: MemoryFileSystem, file: str, images: str) -> None:
    """The folder's address is enough."""
    move(tmp_path / "a", file.format(split="valid"), images.format(split="valid"))
    storage.put(str(tmp_path / "a"), "/mine", recursive=True)
    assert find_data("memory://mine").splits == ("valid",)
    dataset = read_data("memory://mine", split="valid")
    assert dataset[0][1]["boxes"].tolist() == [[10, 5, 30, 13]] and not dataset.table.problems
    with pytest.raises(ValueError, match="no split 'train'"):
        read_data("memory://mine", split="train")


def test_without_splits(tmp_path: Path, storage: MemoryFileSystem) -> None:
    """Data without splits are all of train, with the same warning."""
    move(tmp_path / "a", *WHOLE[0])
    storage.put(str(tmp_path / "a"), "/mine", recursive=True)
    with pytest.warns(UserWarning, match="has no splits; 'train' has all of its images"):
        assert len(read_data("memory://mine")) == 2


def test_panoptic(tmp_path: Path, storage: MemoryFileSystem) -> None:
    """Panoptic data are found and read."""
    for split in ("train", "val"):
        write_panoptic_split(tmp_path / "a" / split)
    storage.put(str(tmp_path / "a"), "/mine", recursive=True)
    train, val = read_splits("memory://mine", panoptic=True)
    assert len(train) and len(val) and "masks" in train[0][1]


def test_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Commands take the address as any other data."""
    for split in ("train", "val"):
        move(tmp_path / "a", f"annotations/instances_{split}2017.json", f"{split}2017")
    assert main(["check", "--data", (tmp_path / "a").as_uri()]) == 0
    assert "train" in capsys.readouterr().out


def test_nothing_there(storage: MemoryFileSystem) -> None:
    """The error names what is looked for at an address."""
    storage.pipe("/mine/notes.txt", b"none")
    with pytest.raises(ValueError, match="memory://mine has no tar files.*in a layout of COCO"):
        find_data("memory://mine")
    message = "memory://other doesn't exist; expected .* or a folder in a layout of COCO"
    with pytest.raises(FileNotFoundError, match=message):
        find_data("memory://other")


def test_folders_are_listed_once(
    storage: MemoryFileSystem, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Looking for many files in a folder is one request, and none in folders that don't exist."""
    listed: list[str] = []
    ls = MemoryFileSystem.ls

    def record(self: MemoryFileSystem, path: str, **options: bool) -> list:
        listed.append(path)
        return ls(self, path, **options)

    monkeypatch.setattr(MemoryFileSystem, "ls", record)
    storage.pipe("/mine/photos/a.jpg", b"1")
    root = RemotePath("memory://mine/")
    assert (
        root.is_dir()
        and (root / ".").is_dir()
        and str(root / "photos/a.jpg") == "memory://mine/photos/a.jpg"
    )
    listed.clear()
    assert (root / "photos" / "a.jpg").is_file() and not (root / "photos/b.jpg").is_file()
    assert (root / "photos").is_dir() and not (root / "none/a.jpg").is_file()
    assert listed == ["/mine", "/mine/photos"]


def test_other_names_are_plain_paths() -> None:
    """The web, where nothing can be listed, and this computer have paths of pathlib."""
    assert data_path("photos") == Path("photos")
    assert not isinstance(data_path("https://example.org/photos"), RemotePath)


@pytest.mark.parametrize("address", ["memory://", "memory:///"])
def test_root_of_a_storage(tmp_path: Path, storage: MemoryFileSystem, address: str) -> None:
    """A storage's root can be the folder, and the one of the images."""
    move(tmp_path / "a", "_annotations.coco.json", ".")
    names = [path.name for path in (tmp_path / "a").iterdir() if path.is_file()]
    storage.put([str(tmp_path / "a" / name) for name in names], "/")
    try:
        assert find_data(address).splits == ("train",)
        with pytest.warns(UserWarning, match="has no splits"):
            assert len(read_data(address)) == 2
    finally:
        storage.rm([f"/{name}" for name in names])


def test_archives_are_not_searched(tmp_path: Path) -> None:
    """The path in an archive isn't the end of the address, so that names can't be added to it."""
    with ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.writestr("val/annotations.json", "{}")
    with pytest.raises(ValueError, match="isn't a tar file"):
        find_data(f"zip://::{(tmp_path / 'a.zip').as_uri()}")
