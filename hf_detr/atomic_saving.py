"""Files and folders that are written completely or not at all, also if the process is killed.

A new file or folder is written under another name beside its target and renamed when it is on the
disk. Files for an existing folder are written to a folder within it; one rename completes the save,
and only then do the files move to their places. A kill before that rename changes nothing. After a
kill during the move, the next save to the folder, or hf_detr's next load from it, completes the
move; until then the folder has no weights rather than a mixture of old and new ones, unless only
one file changed.

A save locks the folder, so that others wait for it instead of completing it. The lock is flock's,
on the folder itself: it needs no file, works in read-only folders, and ends with the process. On
Windows, which doesn't have it, and between computers that share a folder, don't load from a folder
while others save to it.
"""

import errno
import filecmp
import os
import re
import shutil
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TypeVar

from safetensors import SafetensorError

try:
    import fcntl
except ImportError:  # on Windows
    fcntl = None

UNFINISHED, FINISHED, MOVING = ".unfinished-save", ".finished-save", ".moving-save"
# Weights of `model` or `model.<variant>`, one file or an index and shards; graphs, ONNX or OpenVINO
WEIGHTS = re.compile(
    r"(?P<stem>model(\.\w+?)?)(?P<shard>-\d{5}-of-\d{5})?\.safetensors"
    r"|model\.safetensors\.index(?P<variant>\.\w+)?\.json"
    r"|(?P<graph>.+\.onnx|.+\.(?=(xml|bin)$))(xml|(?P<data>\.data|bin))?"
)
WAIT = 0.01  # seconds
Result = TypeVar("Result")


@contextmanager
def atomic_file(file: str | os.PathLike) -> Iterator[Path]:
    """Give a path to write to, which then replaces `file`.

    Raises:
        OSError: if it can't be written, for example to a full disk; an existing file is unchanged.
    """
    file = Path(file)
    unfinished = file.with_name(f".{file.name}.{os.getpid()}")
    try:
        with _clear_errors(file):
            file.parent.mkdir(parents=True, exist_ok=True)
            yield unfinished
            flush(unfinished)
            os.replace(unfinished, file)
            flush(file.parent)
    finally:
        with suppress(OSError):
            unfinished.unlink()


@contextmanager
def atomic_folder(folder: str | os.PathLike) -> Iterator[Path]:
    """Give a folder to write files into, which then becomes `folder` or moves to it.

    Files in `folder` stay unless they are written again or are weights that the new ones replace.
    The disk needs room for the old and the new files at once. Saves to one folder wait for each
    other, in threads and processes.

    Raises:
        OSError: if they can't be written, for example to a full disk; `folder` is unchanged.
    """
    folder = Path(folder)
    if folder.name.startswith(UNFINISHED):
        yield folder  # within another save, such as that of a model's configuration
        return
    with _clear_errors(folder), _locked_for_saving(folder) as unfinished:
        _complete_move(folder)
        try:
            for path in unfinished.iterdir():  # of a killed process
                shutil.rmtree(path) if path.is_dir() else path.unlink()
            yield unfinished
            for path in (*unfinished.rglob("*"), unfinished):
                if path.suffix == ".safetensors":  # which only the owner may read, by default
                    with suppress(OSError):  # a file system without permissions
                        path.chmod(unfinished.stat().st_mode & 0o666)
                flush(path)
            os.rename(unfinished, folder / FINISHED if unfinished.parent == folder else folder)
            flush(unfinished.parent)
        finally:
            shutil.rmtree(unfinished, ignore_errors=True)
        _complete_move(folder)


@contextmanager
def _locked_for_saving(folder: Path) -> Iterator[Path]:
    """Lock a folder, or the unfinished one that will become it; give the unfinished one."""
    while True:
        is_new = not folder.exists()
        unfinished = unfinished_folder(folder) if is_new else folder / UNFINISHED
        with suppress(FileExistsError):  # mkdir's error if it is renamed just now
            (unfinished if is_new else folder).mkdir(parents=True, exist_ok=True)
        with _lock(unfinished if is_new else folder) as is_locked:
            if is_locked and folder.exists() != is_new:
                unfinished.mkdir(exist_ok=True)
                yield unfinished
                return
            if is_locked:  # another save made the folder meanwhile
                shutil.rmtree(unfinished, ignore_errors=True)


@contextmanager
def _clear_errors(target: Path) -> Iterator[None]:
    try:
        yield
    except (OSError, SafetensorError) as error:  # a full disk raises either
        raise OSError(
            getattr(error, "errno", None) or errno.EIO,
            f"The files could not be written ({error}); existing files are unchanged",
            str(target),
        ) from error


def unfinished_folder(folder: Path) -> Path:
    """Return where a new folder is written before it is complete."""
    return folder.with_name(f"{UNFINISHED}-{folder.name}")


def remove_interrupted_saves(folders: Path) -> None:
    """Remove what killed saves to new folders left; a pattern names those, such as `run/step-*`."""
    for unfinished in folders.parent.glob(unfinished_folder(folders).name):
        with _lock(unfinished, wait=False) as is_locked:
            if is_locked:
                shutil.rmtree(unfinished, ignore_errors=True)


def finish_interrupted_save(folder: Path) -> bool:
    """Move completely written files to their places; return whether there were any.

    A call after a kill at any point continues the move. A move of another process is waited for. In
    a folder where this process may not write, files stay as they are, with a warning.
    """
    found = False
    try:
        while (folder / MOVING).is_dir() or (folder / FINISHED).is_dir():
            found = True
            with _lock(folder, wait=False) as is_locked:
                if is_locked:
                    _complete_move(folder)
            if not is_locked:
                time.sleep(WAIT)
    except OSError as error:
        if error.errno not in (errno.EACCES, errno.EPERM, errno.EROFS):
            raise
        warnings.warn(
            f"A save to {folder} was interrupted, and you may not complete it ({error}). Load from "
            "it once as a user who may write there.",
            stacklevel=2,
        )
        return False
    return found


def read_between_saves(
    folder: Path, read: Callable[[], Result], read_before: str | None = None
) -> Result:
    """Read a folder's files, all of them before a save of another process or all after it.

    An interrupted save is completed first. `read` is called again if a save has changed files
    meanwhile; the file `read_before` was read before, and isn't read again.

    Raises:
        OSError: if a save has changed that file.
    """
    known = _content(folder, read_before)
    while True:
        finish_interrupted_save(folder)
        before = _versions(folder)
        if _content(folder, read_before) != known:
            raise OSError(
                f"A save to {folder} was running or interrupted. It is complete now, but its "
                f"{read_before} was read before that: load once more."
            )
        try:
            result = read()
        except Exception:
            # A move that began just before `before` also hides files without changing others.
            if not finish_interrupted_save(folder) and _versions(folder) == before:
                raise
        else:
            if _versions(folder) == before:
                return result


def _content(folder: Path, name: str | None) -> bytes | None:
    with suppress(OSError):
        return None if name is None else (folder / name).read_bytes()
    return None


def weights_of(name: str) -> str | None:
    """Return the model that a file of weights belongs to, such as `model`; None for other files."""
    match = WEIGHTS.fullmatch(name)
    return match and (match["stem"] or match["graph"] or f"model{match['variant'] or ''}")


def flush(path: Path) -> None:
    """Wait until a file's content, or the names in a folder, are on the disk."""
    if path.is_dir() and os.name == "nt":
        return  # Windows has no such call and doesn't need it
    handle = os.open(path, os.O_RDONLY if path.is_dir() else os.O_RDWR)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


@contextmanager
def _lock(folder: Path, wait: bool = True) -> Iterator[bool]:
    """Lock a folder; give whether that worked and the folder still has its name."""
    if fcntl is None:
        yield True
        return
    try:
        handle = os.open(folder, os.O_RDONLY)
    except FileNotFoundError:
        yield False
        return
    _locked.add(handle)
    try:
        yield _has_locked(handle, folder, wait)
    finally:
        if handle in _locked:  # not in a forked process
            _locked.remove(handle)
            os.close(handle)


def _has_locked(handle: int, folder: Path, wait: bool) -> bool:
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except BlockingIOError:
        return False
    except OSError as error:
        warnings.warn(
            f"This file system has no locks ({error}): don't load a model while another process "
            "saves it.",
            stacklevel=2,
        )
    with suppress(FileNotFoundError):
        return os.path.samestat(os.fstat(handle), os.stat(folder))
    return False


def _close_in_child() -> None:
    """Close a forked process's copies, because a lock lasts while any process has it open."""
    while _locked:
        os.close(_locked.pop())


_locked: set[int] = set()  # handles
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_close_in_child)


def _versions(folder: Path) -> dict[str, tuple[int, int]]:
    """Return what tells a model's files from those that replace them, by name."""
    versions = {}
    with suppress(OSError):  # a name on the Hub, or a file that is moved just now
        for path in folder.iterdir():
            if weights_of(path.name) or path.suffix == ".json":
                state = path.stat()
                versions[path.name] = state.st_ino, state.st_mtime_ns
    return versions


def _complete_move(folder: Path) -> None:
    finished, moving = folder / FINISHED, folder / MOVING
    if moving.is_dir():
        _move(moving, folder)
    if finished.is_dir():
        for path in _in_the_way(folder, finished):
            path.unlink()
        os.rename(finished, moving)
        _move(moving, folder)


def _move(moving: Path, folder: Path) -> None:
    """Move all files, those that loading begins with last."""
    for path in sorted(moving.iterdir(), key=lambda path: (_is_entry(path.name), path.name)):
        os.replace(path, folder / path.name)
    flush(folder)
    moving.rmdir()


def _in_the_way(folder: Path, finished: Path) -> list[Path]:
    """Return old weights to remove before the move, those that loading begins with first.

    These are the ones that aren't overwritten. If more than one file changes, the file that loading
    begins with is removed too, because old weights must not load with new files.
    """
    new = [path.name for path in finished.iterdir()]
    weights = {weights_of(name) for name in new} - {None}
    old = [path for path in folder.iterdir() if weights_of(path.name) in weights]
    stale = [path for path in old if path.name not in new]
    equal, *_ = filecmp.cmpfiles(finished, folder, new, shallow=False)
    if len(new) - len(equal) + len(stale) > 1:
        stale += [path for path in old if path.name in new and _is_entry(path.name)]
    return sorted(stale, key=lambda path: (not _is_entry(path.name), path.name))


def _is_entry(name: str) -> bool:
    """Return whether loading weights begins with this file, not with another that names it."""
    match = WEIGHTS.fullmatch(name)
    return match is not None and not (match["shard"] or match["data"])
