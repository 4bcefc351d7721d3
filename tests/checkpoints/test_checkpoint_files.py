"""Pickles run no code; damaged files are named; existing files are replaced only if asked for."""

import argparse
import os
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch

from hf_detr import convert_official_checkpoint, export_official_checkpoint
from hf_detr.checkpoints.checkpoint_files import (
    check_target,
    check_tensors,
    read_pickled_checkpoint,
)

from ..tiny import tiny_detector


class RunsCode:
    """Makes a folder when it is unpickled without protection."""

    def __init__(self, trace: Path) -> None:
        self.trace = trace

    def __reduce__(self) -> tuple:
        return os.mkdir, (str(self.trace),)


@pytest.mark.parametrize("is_zip", [True, False])
def test_code_is_not_run(is_zip: bool, tmp_path: Path) -> None:
    """A file that would run code is refused before anything is written."""
    trace, file = tmp_path / "was_here", tmp_path / "detr-r50.pth"
    content = {"model": {"weight": torch.ones(2)}, "args": RunsCode(trace)}
    torch.save(content, file, _use_new_zipfile_serialization=is_zip)
    with pytest.raises(ValueError, match=r"detr-r50\.pth was refused .* call \w+\.mkdir") as caught:
        convert_official_checkpoint(file, tmp_path / "hub")
    assert "weights_only" not in str(caught.value)  # torch's advice to run it all the same
    assert sorted(tmp_path.iterdir()) == [file]
    torch.load(file, weights_only=False)
    assert trace.is_dir()  # so the file was dangerous


def test_plain_pickles_run_nothing(tmp_path: Path) -> None:
    """The same for a plain pickle file."""
    file = tmp_path / "detr-r50.pth"
    file.write_bytes(pickle.dumps(RunsCode(tmp_path / "was_here"), protocol=2))
    with pytest.raises(ValueError, match=r"detr-r50\.pth was refused"):
        read_pickled_checkpoint(file)
    assert not (tmp_path / "was_here").exists()


@pytest.mark.parametrize("is_zip", [True, False])
def test_options_are_read(is_zip: bool, tmp_path: Path) -> None:
    """Namespaces hold the official scripts' options; other loads still refuse them."""
    file = tmp_path / "checkpoint.pth"
    content = {"args": argparse.Namespace(nheads=8, device="cuda"), "epoch": 3}
    torch.save(content, file, _use_new_zipfile_serialization=is_zip)
    assert read_pickled_checkpoint(file) == content
    with pytest.raises(pickle.UnpicklingError):
        torch.load(file, weights_only=True)


@pytest.mark.parametrize("kept", [0, 1, 100, 1000, -200, -1])
def test_truncated_files(kept: int, tmp_path: Path) -> None:
    """A truncated download is reported as damaged."""
    file = tmp_path / "detr-r50.pth"
    torch.save({"model": {"weight": torch.ones(1000)}}, file)
    file.write_bytes(file.read_bytes()[:kept])
    with pytest.raises(ValueError, match=r"detr-r50\.pth can't be read; it is damaged"):
        read_pickled_checkpoint(file)


@pytest.mark.parametrize("content", [b"<!DOCTYPE html><html>Not found</html>", b"\x80\x05K\x01."])
def test_other_files(content: bytes, tmp_path: Path) -> None:
    """Error pages and other pickles can't be read."""
    file = tmp_path / "detr-r50.pth"
    file.write_bytes(content)
    with pytest.raises(ValueError, match=r"detr-r50\.pth can't be read"):
        read_pickled_checkpoint(file)


def test_no_file(tmp_path: Path) -> None:
    """Folders, missing files and other contents each have their own message."""
    with pytest.raises(ValueError, match="is a folder; expected a .pth file"):
        read_pickled_checkpoint(tmp_path)
    with pytest.raises(FileNotFoundError, match=r"nothing\.pth doesn't exist"):
        read_pickled_checkpoint(tmp_path / "nothing.pth")
    torch.save([torch.ones(1)], tmp_path / "list.pth")
    with pytest.raises(ValueError, match="contains a list; expected a dictionary"):
        read_pickled_checkpoint(tmp_path / "list.pth")


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("a", 3, "'a' in some.pth is a int; expected a named tensor"),
        (7, torch.ones(2), "7 in some.pth is a .*; expected a named"),
        ("a", torch.ones(2, device="meta"), "on meta; expected a named tensor"),
        ("a", torch.eye(2).to_sparse(), "'a' in some.pth is a torch.sparse_coo"),
        ("a", torch.ones(1).expand(10**15), "has shape .*larger than its data"),
    ],
)
def test_odd_tensors(name: Any, value: Any, message: str) -> None:
    """Only plain tensors are accepted; 10¹⁵ numbers fit into a small file, but not into memory."""
    with pytest.raises(ValueError, match=message):
        check_tensors({"fine": torch.ones(3, 2).t(), name: value}, "some.pth")


def test_existing_files_are_kept(tmp_path: Path) -> None:
    """Files and folders with files are refused unless asked for."""
    file = tmp_path / "official.pth"
    targets = {file: False, tmp_path: True}  # whether a folder is written
    for path, is_folder in targets.items():
        check_target(path, overwrite=False, is_folder=is_folder)
    file.write_text("mine")
    for path, is_folder in targets.items():
        with pytest.raises(FileExistsError, match="exists.*--overwrite"):
            check_target(path, overwrite=False, is_folder=is_folder)
        check_target(path, overwrite=True, is_folder=is_folder)


def test_target_of_the_other_kind(tmp_path: Path) -> None:
    """A folder never replaces a file, nor a file a folder."""
    tiny_detector("detr", backbone="resnet18").save_pretrained(tmp_path / "hub")
    (tmp_path / "official.pth").mkdir()
    with pytest.raises(FileExistsError, match="is a folder; expected the name of a file"):
        export_official_checkpoint(tmp_path / "hub", tmp_path / "official.pth", overwrite=True)
    export_official_checkpoint(tmp_path / "hub", tmp_path / "detr-r50.pth")
    (tmp_path / "file").touch()
    with pytest.raises(FileExistsError, match="is a file; expected the name of a folder"):
        convert_official_checkpoint(tmp_path / "detr-r50.pth", tmp_path / "file", overwrite=True)
    assert (tmp_path / "file").is_file() and not any((tmp_path / "official.pth").iterdir())
