"""A training never loses its last good checkpoint."""

import errno
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from torch.testing import assert_close

from hf_detr.training import checkpoint as training_checkpoint
from hf_detr.training.checkpoint import (
    checkpoint_folder,
    load_best_checkpoint,
    load_checkpoint,
    load_newest_checkpoint,
    save_checkpoint,
)

from ..waiting import wait_until


def tensors(value: float, size: int = 10) -> dict[str, dict[str, torch.Tensor]]:
    """Two groups of tensors, of which two share memory."""
    weight = torch.full((size,), value)
    return {"model": {"a": weight, "b": weight[:3]}, "optimizer": {"a:step": torch.tensor(value)}}


def save(folder: Path, step: int, **options: object) -> Path:
    """A checkpoint whose numbers are its step."""
    return save_checkpoint(folder, step, tensors(step), {"losses": [0.1, step]}, **options)


def test_what_was_saved_comes_back(tmp_path: Path) -> None:
    """Tensors, including shared memory, numbers and further files are loaded as they were saved."""
    save(tmp_path, 7, write_more=lambda folder: (folder / "config.json").write_text("{}"))
    found = load_newest_checkpoint(tmp_path)
    assert (found.step, found.state) == (7, {"losses": [0.1, 7]})
    assert_close(found.tensors, tensors(7), atol=0, rtol=0)
    assert (found.folder / "config.json").read_text() == "{}"


def test_no_checkpoint(tmp_path: Path) -> None:
    """Without a checkpoint, loading returns None."""
    assert load_newest_checkpoint(tmp_path) is None
    assert load_newest_checkpoint(tmp_path / "nowhere") is None


def test_old_ones_go_but_the_best_stays(tmp_path: Path) -> None:
    """Old checkpoints are deleted except protected ones; 10 is newer than 9."""
    for step in (8, 9, 10, 11):
        save(tmp_path, step, keep=2, protect=(8,))
    assert sorted(os.listdir(tmp_path)) == [f"checkpoint-{s:08d}" for s in (8, 10, 11)]
    with pytest.raises(ValueError, match="keep is 0"):
        save(tmp_path, 12, keep=0)


def test_those_of_an_abandoned_training_go(tmp_path: Path) -> None:
    """Checkpoints saved after resuming before corrupted ones are the newest again."""
    for step in (50, 90, 100):
        save(tmp_path, step, keep=3)
    for step in (90, 100):
        (checkpoint_folder(tmp_path, step) / "state.json").unlink()
    with pytest.warns(UserWarning, match="skipped"):
        assert load_newest_checkpoint(tmp_path).step == 50
    for step in (60, 70):
        assert save(tmp_path, step, protect=(50,)).is_dir()
    assert sorted(os.listdir(tmp_path)) == [f"checkpoint-{s:08d}" for s in (50, 60, 70)]
    assert load_newest_checkpoint(tmp_path).step == 70


@pytest.mark.parametrize("fails_at", [1, 2])
def test_kill_while_one_is_replaced(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fails_at: int
) -> None:
    """A kill while a step is saved again leaves the old or the new checkpoint."""
    save(tmp_path, 7)
    rename, calls = os.rename, []

    def killed(*paths: Path) -> None:
        calls.append(paths)
        if len(calls) == fails_at:
            raise KeyboardInterrupt
        rename(*paths)

    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(os, "rename", killed)
        save(tmp_path, 7)
    assert load_newest_checkpoint(tmp_path).step == 7
    save(tmp_path, 7)
    assert os.listdir(tmp_path) == ["checkpoint-00000007"]


def test_best_that_is_complete(tmp_path: Path) -> None:
    """Checkpoints that are damaged or gone are named, and the next best one is loaded."""
    for step in (1, 2, 3):
        save(tmp_path, step, keep=3)
    (checkpoint_folder(tmp_path, 2) / "model.safetensors").write_bytes(b"")
    with pytest.warns(UserWarning) as warned:
        assert load_best_checkpoint(tmp_path, [9, 2, 1, 3]).step == 1
    assert ["00000009" in str(warned[0].message), "00000002" in str(warned[1].message)] == [
        True
    ] * 2
    message = "None of the evaluated steps 9, 2 has a complete checkpoint in"
    with pytest.warns(UserWarning, match="skipped"), pytest.raises(ValueError, match=message):
        load_best_checkpoint(tmp_path, [9, 2])


@pytest.mark.parametrize("damage", ["cut", "changed", "missing", "no manifest", "not JSON"])
def test_corrupted_ones_are_skipped(tmp_path: Path, damage: str) -> None:
    """A corrupted checkpoint is skipped with a warning, and the one before is loaded."""
    save(tmp_path, 1)
    corrupted = save(tmp_path, 2)
    file = corrupted / "model.safetensors"
    content = file.read_bytes()
    if damage == "cut":
        file.write_bytes(content[:-4])
    elif damage == "changed":
        file.write_bytes(content[:-4] + b"abcd")
    elif damage == "missing":
        file.unlink()
    elif damage == "no manifest":
        (corrupted / "manifest.json").unlink()
    else:
        (corrupted / "manifest.json").write_text("[")
    with pytest.warns(UserWarning, match="skipped.*00000002"):
        assert load_newest_checkpoint(tmp_path).step == 1
    with pytest.raises(ValueError, match="is corrupted"):
        load_checkpoint(corrupted)


def test_manifest_cannot_lead_outside(tmp_path: Path) -> None:
    """A manifest that names files elsewhere is refused."""
    folder = save(tmp_path, 1)
    manifest = json.loads((folder / "manifest.json").read_text())
    (folder / "manifest.json").write_text(json.dumps({**manifest, "../x": ""}))
    with pytest.raises(ValueError, match=r"'\.\./x', which is outside"):
        load_checkpoint(folder)


def test_files_beside_the_manifest_are_not_read(tmp_path: Path) -> None:
    """Tensors that were added later, and pickles, aren't opened."""
    folder = save(tmp_path, 1)
    (folder / "evil.safetensors").write_bytes(b"x")
    (folder / "evil.pkl").write_bytes(b"cos\nsystem\n(S'exit 1'\ntR.")
    assert set(load_checkpoint(folder).tensors) == {"model", "optimizer"}


@pytest.mark.parametrize("at", ["model", "optimizer", "config", "flush"])
def test_full_disk_leaves_the_last_good_one(
    tmp_path: Path, at: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a full disk the error says so, and no partial files stay."""
    save(tmp_path, 1)
    full = OSError(errno.ENOSPC, "No space left on device")

    def write_more(folder: Path) -> None:
        if at == "config":
            raise full

    def save_file(content: object, path: Path, **options: object) -> None:
        if path.stem == at:
            path.write_bytes(b"half")
            raise full
        original(content, path, **options)

    def flush(path: Path) -> None:
        if at == "flush":
            raise full

    original = training_checkpoint.save_file
    monkeypatch.setattr(training_checkpoint, "save_file", save_file)
    monkeypatch.setattr("hf_detr.atomic_saving.flush", flush)
    with pytest.raises(OSError, match="could not be written .*No space left.*00000002") as info:
        save(tmp_path, 2, write_more=write_more)
    assert info.value.errno == errno.ENOSPC
    assert os.listdir(tmp_path) == ["checkpoint-00000001"]
    assert load_newest_checkpoint(tmp_path).step == 1


def test_really_full_disk(tmp_path: Path) -> None:
    """The same with a real limit of the system: files of at most 1 MB."""
    save(tmp_path, 1)
    code = (
        "import resource, signal, sys, torch; from pathlib import Path;"
        "from hf_detr.training.checkpoint import save_checkpoint;"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN);"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (1000000, 1000000));"
        "save_checkpoint(Path(sys.argv[1]), 2, {'model': {'a': torch.zeros(10**6)}}, {})"
    )
    if os.name == "nt":
        pytest.skip("Windows has no limit for the size of a file")
    result = subprocess.run([sys.executable, "-c", code, tmp_path], capture_output=True, text=True)
    assert result.returncode != 0 and "could not be written" in result.stderr
    assert load_newest_checkpoint(tmp_path).step == 1
    assert os.listdir(tmp_path) == ["checkpoint-00000001"]


SAVE_FOREVER = """
import sys, torch
from pathlib import Path
from hf_detr.training.checkpoint import save_checkpoint
for step in range(1, 10**6):
    weights = torch.full((10**6,), float(step))
    save_checkpoint(Path(sys.argv[1]), step, {"model": {"a": weights}}, {"value": step})
"""


@pytest.mark.parametrize("after", [0.0, 0.004, 0.01])
def test_kill_at_any_moment_leaves_a_good_one(tmp_path: Path, after: float) -> None:
    """After `kill -9` while saving, the newest checkpoint is complete, and saving continues."""
    process = subprocess.Popen([sys.executable, "-c", SAVE_FOREVER, tmp_path])
    try:
        wait_until(lambda: checkpoint_folder(tmp_path, 3).exists(), process, interval=0.002)
        time.sleep(after)
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
    found = load_newest_checkpoint(tmp_path)
    assert found.step >= 3 and found.state == {"value": found.step}
    assert (found.tensors["model"]["a"] == found.step).all()
    save(tmp_path, found.step + 1)
    assert not [name for name in os.listdir(tmp_path) if name.startswith(".")]
