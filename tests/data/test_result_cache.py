"""Results on disk: computed once, by one of several processes."""

import os
import threading
import time
import warnings
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from hf_detr.atomic_saving import atomic_file
from hf_detr.data.result_cache import cache_folder, cached, file_state


def load(file: Path) -> str | None:
    return file.read_text() if file.is_file() else None


def save(file: Path, result: str) -> None:
    with atomic_file(file) as unfinished:
        unfinished.write_text(result)


def compute_in(folder: Path, fails: bool = False) -> str:
    """Return the cached result; the folder has a file for each computation."""

    def compute() -> str:
        (folder / f"computed-{threading.get_ident()}").touch()
        time.sleep(0.2)
        return "result"

    def fail(file: Path, result: str) -> None:
        raise OSError("the disk is full")

    return cached(folder / "kind" / "a.txt", load, compute, fail if fails else save, "it")


def test_state_of_a_file(tmp_path: Path):
    """A file that is written again differs, even with the size and time of the earlier one."""
    file = tmp_path / "a.txt"
    file.write_text("a")
    before, times = file_state(file), (file.stat().st_atime_ns, file.stat().st_mtime_ns)
    assert file_state(str(file)) == before
    time.sleep(0.02)  # more than a tick of the clock of file systems
    file.write_text("b")
    os.utime(file, ns=times)
    assert file_state(file)[:2] == before[:2] and file_state(file) != before
    with pytest.raises(OSError):
        file_state(tmp_path / "b.txt")


def test_one_of_several_processes_computes(tmp_path: Path):
    """Ranks and commands that start together don't do the same work."""
    with ThreadPoolExecutor(3) as pool:  # the lock is that of files, so threads suffice
        assert list(pool.map(compute_in, [tmp_path] * 3)) == ["result"] * 3
    assert len(list(tmp_path.glob("computed-*"))) == 1


def test_each_computes_if_the_first_cannot_save(tmp_path: Path):
    """Those that waited don't wait for each other, too."""
    with warnings.catch_warnings(), ThreadPoolExecutor(3) as pool:
        warnings.simplefilter("ignore")
        found = list(pool.map(compute_in, [tmp_path] * 3, [True] * 3))
    assert found == ["result"] * 3 and len(list(tmp_path.glob("computed-*"))) == 3


def test_full_disk_is_one_warning(tmp_path: Path):
    """What can't be saved is still computed."""
    with pytest.warns(UserWarning, match="it can't be cached: the disk is full") as caught:
        assert compute_in(tmp_path, fails=True) == "result"
    assert len(caught) == 1


@pytest.mark.skipif(os.name == "nt", reason="files can't hide folders' names there")
def test_read_only_folder(tmp_path: Path):
    """Neither the lock nor the result can be written."""
    (tmp_path / "locks").touch()
    assert compute_in(tmp_path) == "result"
    (tmp_path / "kind" / "a.txt").unlink()
    (tmp_path / "kind").rmdir()
    (tmp_path / "kind").touch()
    with pytest.warns(UserWarning, match="it can't be cached"):
        assert compute_in(tmp_path) == "result"


def test_result_of_another_process_stays(tmp_path: Path):
    """On file systems without locks, too: others may have mapped it."""
    (tmp_path / "locks").touch()  # no locks
    file = tmp_path / "kind" / "a.txt"

    def compute() -> str:
        save(file, "of another")
        return "result"

    assert cached(file, load, compute, save, "it") == file.read_text() == "of another"


def test_an_error_is_no_result(tmp_path: Path):
    """The next call computes again, and the lock is free."""

    def fail() -> str:
        raise ValueError("wrong data")

    with pytest.raises(ValueError, match="wrong data"):
        cached(tmp_path / "kind" / "a.txt", load, fail, save, "it")
    assert compute_in(tmp_path) == "result"


def test_unused_results_are_removed(tmp_path: Path):
    """The folder doesn't grow for ever; what is loaded is in use, and locks are small but many."""
    compute_in(tmp_path)
    others = [tmp_path / "kind" / "old.txt", tmp_path / "locks" / "old.lock"]
    new = tmp_path / "kind" / "new.txt"
    for file in (*others, new):
        file.touch()
    for file in (*others, tmp_path / "kind" / "a.txt"):
        os.utime(file, (0, 0))
    assert cached(tmp_path / "kind" / "a.txt", load, lambda: "", save, "it") == "result"
    assert all(file.exists() for file in others)
    assert cached(tmp_path / "kind" / "b.txt", load, lambda: "other", save, "it") == "other"
    assert not any(file.exists() for file in others)
    assert {file.name for file in new.parent.iterdir()} == {"a.txt", "b.txt", "new.txt"}


def test_user_without_home(monkeypatch: pytest.MonkeyPatch):
    """Containers run as any number."""
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setattr(os.path, "expanduser", lambda path: path)  # what it does then
    assert cache_folder("tables").name == "tables"


def test_folder_follows_the_system(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    """XDG_CACHE_HOME as in other programs."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cache_folder("tables") == tmp_path / "hf_detr" / "tables"
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert cache_folder("tables") == Path.home() / ".cache" / "hf_detr" / "tables"
