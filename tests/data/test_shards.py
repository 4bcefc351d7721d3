"""Tests which tar files an address means."""

from pathlib import Path

import fsspec
import pytest

from hf_detr.data.shards import find_shards, is_shards

SPLITS = ("train", "val", "test")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Tar files of two splits, one in a folder."""
    (tmp_path / "val").mkdir()
    for name in ("train-000.tar", "train-001.tar", "val/0.tar", "notes.txt"):
        (tmp_path / name).touch()
    return tmp_path


def names(found: dict[str | None, list[str]]) -> dict[str | None, list[str]]:
    """The names of the files."""
    return {split: [Path(one).name for one in shards] for split, shards in found.items()}


def test_splits_of_a_folder(folder: Path) -> None:
    """Names begin with their split's, or are in its folder; without splits all are one."""
    expected = {"train": ["train-000.tar", "train-001.tar"], "val": ["0.tar"]}
    assert names(find_shards(str(folder), SPLITS)) == expected
    assert len(find_shards(str(folder))[None]) == 3
    (folder / "trained.tar").touch()
    with pytest.raises(ValueError, match="trained.tar, whose name doesn't begin with a split's"):
        find_shards(str(folder), SPLITS)


def test_patterns(folder: Path) -> None:
    """Ranges and patterns are files without splits, and each has to exist."""
    for pattern in ("train-{000..001}.tar", "train-*.tar"):
        found = find_shards(f"{folder}/{pattern}", SPLITS)
        assert names(found) == {None: ["train-000.tar", "train-001.tar"]}
    with pytest.raises(FileNotFoundError, match="train-002.tar doesn't exist"):
        find_shards(f"{folder}/train-{{000..002}}.tar")
    (folder / "val-000.tar").touch()
    with pytest.raises(ValueError, match=r"of the splits \['train', 'val'\]; give their folder"):
        find_shards(f"{folder}/*-000.tar", SPLITS)


def test_names_that_look_like_patterns(folder: Path) -> None:
    """A file of exactly the given name is meant, not what its name fits as a pattern."""
    for name in ("train[1].tar", "train1.tar"):
        (folder / name).touch()
    assert names(find_shards(f"{folder}/train[1].tar")) == {None: ["train[1].tar"]}
    assert names(find_shards(f"{folder}/train[12].tar")) == {None: ["train1.tar"]}


def test_other_file_systems() -> None:
    """An address keeps its protocol, with which its files are opened later."""
    files = fsspec.filesystem("memory")
    files.pipe({"/shards/train/a.tar": b"", "/shards/val/b.tar": b""})
    expected = {"train": ["memory:///shards/train/a.tar"], "val": ["memory:///shards/val/b.tar"]}
    assert find_shards("memory://shards", SPLITS) == expected
    assert is_shards("memory://shards") and is_shards("a-{0..1}.tar") and not is_shards("a/tar")


def test_other_data_at_an_address() -> None:
    """The message names what works instead, and the file of COCO that is there."""
    files = fsspec.filesystem("memory")
    files.pipe({"/coco/train/annotations.json": b"", "/coco/train/images/1.jpg": b""})
    message = r"no tar files\. .* of COCO, such as memory:///coco/train/annotations.json, with --im"
    with pytest.raises(ValueError, match=message):
        find_shards("memory://coco", SPLITS)
    files.pipe({"/yolo/data.yaml": b"", "/yolo/labels/train/1.txt": b""})
    for address in ("memory://yolo/data.yaml", "https://example.org/data.yaml"):
        with pytest.raises(ValueError, match="data.yaml isn't a tar file. .* Download other data"):
            find_shards(address, SPLITS)
    with pytest.raises(ValueError, match="memory://yolo has no tar files. .* file of COCO with --"):
        find_shards("memory://yolo", SPLITS)
