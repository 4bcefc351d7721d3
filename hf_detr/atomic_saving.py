"""Files and folders that are written completely or not at all, also if the process is killed.

A new file or folder is written under another name beside its target and renamed when it is on the
disk. Files for an existing folder are written to a folder within it; one rename completes the save,
and only then do the files move to their places. A kill before that rename changes nothing. After a
kill during the move, the next save to the folder, or hf_detr's next load from it, completes the
move; until then the folder has no weights rather than a mixture of old and new ones, unless only
one file changed.
"""

import errno
import filecmp
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from safetensors import SafetensorError

UNFINISHED = ".unfinished-save"
FINISHED = ".finished-save"
MOVING = ".moving-save"
# The weights of `model` or `model.<variant>`, one file or an index and its shards; an ONNX graph.
WEIGHTS = re.compile(
    r"(?P<stem>model(\.\w+?)?)(?P<shard>-\d{5}-of-\d{5})?\.safetensors"
    r"|model\.safetensors\.index(?P<variant>\.\w+)?\.json"
    r"|(?P<graph>.+\.onnx)(?P<data>\.data)?"
)


@contextmanager
def atomic_file(file: str | os.PathLike) -> Iterator[Path]:
    """Give a path to write to, which then replaces `file`.

    Raises:
        OSError: if it can't be written, for example to a full disk; an existing file is unchanged.
    """
    file = Path(file)
    unfinished = file.with_name(f".{file.name}.{os.getpid()}")
    with _errors_leave_nothing(unfinished, file):
        file.parent.mkdir(parents=True, exist_ok=True)
        yield unfinished
        flush(unfinished)
        os.replace(unfinished, file)
        flush(file.parent)


@contextmanager
def atomic_folder(folder: str | os.PathLike) -> Iterator[Path]:
    """Give a folder to write files into, which then becomes `folder` or moves to it.

    Files in `folder` stay unless they are written again or are weights that the new ones replace.
    The disk needs room for the old and the new files at once.

    Raises:
        OSError: if they can't be written, for example to a full disk; `folder` is unchanged.
    """
    folder = Path(folder)
    is_new = not folder.exists()
    unfinished = unfinished_folder(folder) if is_new else folder / UNFINISHED
    with _errors_leave_nothing(unfinished, folder):
        (folder.parent if is_new else folder).mkdir(parents=True, exist_ok=True)
        finish_interrupted_save(folder)
        shutil.rmtree(unfinished, ignore_errors=True)  # of a killed process
        unfinished.mkdir()
        yield unfinished
        for path in (*unfinished.rglob("*"), unfinished):
            flush(path)
        os.rename(unfinished, folder if is_new else folder / FINISHED)
        flush(unfinished.parent)
    finish_interrupted_save(folder)


@contextmanager
def _errors_leave_nothing(unfinished: Path, target: Path) -> Iterator[None]:
    try:
        yield
    except (OSError, SafetensorError) as error:  # a full disk raises either
        raise OSError(
            getattr(error, "errno", None) or errno.EIO,
            f"The files could not be written ({error}); existing files are unchanged",
            str(target),
        ) from error
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)
        with suppress(OSError):
            unfinished.unlink()


def unfinished_folder(folder: Path) -> Path:
    """Return where a new folder is written before it is complete."""
    return folder.with_name(f"{UNFINISHED}-{folder.name}")


def finish_interrupted_save(folder: Path) -> bool:
    """Move completely written files to their places; return whether there were any.

    A call after a kill at any point continues the move.
    """
    finished, moving = folder / FINISHED, folder / MOVING
    found = moving.is_dir() or finished.is_dir()
    if moving.is_dir():
        _move(moving, folder)
    if finished.is_dir():
        for path in _in_the_way(folder, finished):
            path.unlink()
        os.rename(finished, moving)
        _move(moving, folder)
    return found


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
    new = {path.name: path for path in finished.iterdir()}
    weights = {weights_of(name) for name in new} - {None}
    old = [path for path in folder.iterdir() if weights_of(path.name) in weights]
    stale = [path for path in old if path.name not in new]
    changed = [name for name, path in new.items() if not _same(path, folder / name)]
    if len(changed) + len(stale) > 1:
        stale += [path for path in old if path.name in new and _is_entry(path.name)]
    return sorted(stale, key=lambda path: (not _is_entry(path.name), path.name))


def _is_entry(name: str) -> bool:
    """Return whether loading weights begins with this file, not with another that names it."""
    match = WEIGHTS.fullmatch(name)
    return match is not None and not (match["shard"] or match["data"])


def _same(one: Path, other: Path) -> bool:
    return other.is_file() and filecmp.cmp(one, other, shallow=False)
