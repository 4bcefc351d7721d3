"""Files that are saved together: all of them take the place of older ones, or none does.

They are written into a folder within the target. When they are on the disk, one rename makes them
count; only then are they moved to their places. A kill before that rename leaves what was there.
After it, whoever next saves to the folder or loads from it with hf_detr ends the move; until then
the folder holds no weights, rather than a mixture, unless one file was all that changed.
"""

import errno
import filecmp
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from safetensors import SafetensorError

UNFINISHED = ".unfinished-save"
FINISHED = ".finished-save"
MOVING = ".moving-save"
# A model's weights, `model` or `model.<variant>`: one file, or an index and its shards.
WEIGHTS = re.compile(
    r"(?P<stem>model(\.\w+?)?)(?P<shard>-\d{5}-of-\d{5})?\.safetensors"
    r"|model\.safetensors\.index(?P<variant>\.\w+)?\.json"
)


@contextmanager
def saved_whole(folder: str | os.PathLike) -> Iterator[Path]:
    """A folder to write files into, which then move to `folder` together.

    Weights there that the new ones don't overwrite are removed, so that nobody reads old ones.
    The disk needs room for the old and the new files at once.

    Raises:
        OSError: if they can't be written, for example to a full disk; what was in `folder` is as
            it was.
    """
    folder = Path(folder)
    unfinished = folder / UNFINISHED
    try:
        folder.mkdir(parents=True, exist_ok=True)
        finish_interrupted_save(folder)
        shutil.rmtree(unfinished, ignore_errors=True)
        unfinished.mkdir()
        yield unfinished
        for path in unfinished.iterdir():
            flush(path)
        flush(unfinished)
        os.rename(unfinished, folder / FINISHED)
        flush(folder)
    except (OSError, SafetensorError) as error:  # a full disk is either, by who meets it
        shutil.rmtree(unfinished, ignore_errors=True)
        raise OSError(
            getattr(error, "errno", None) or errno.EIO,
            f"The files could not be written ({error}); those that were there are as they were",
            str(folder),
        ) from error
    except BaseException:
        shutil.rmtree(unfinished, ignore_errors=True)
        raise
    finish_interrupted_save(folder)


def finish_interrupted_save(folder: Path) -> bool:
    """Move files that were written completely to their places; whether there were any.

    A kill at any point of it leaves what the next call needs.
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
    """`model` or `model.<variant>` for a file of its weights; None for any other."""
    match = WEIGHTS.fullmatch(name)
    return match and (match["stem"] or f"model{match['variant'] or ''}")


def flush(path: Path) -> None:
    """Wait until a file, or the names in a folder, are on the disk."""
    if path.is_dir() and os.name == "nt":
        return  # Windows can't, and renames durably by itself
    handle = os.open(path, os.O_RDONLY if path.is_dir() else os.O_RDWR)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _move(moving: Path, folder: Path) -> None:
    """Move all files; what weights are looked for by comes last."""
    for path in sorted(moving.iterdir(), key=lambda path: (_is_entry(path.name), path.name)):
        os.replace(path, folder / path.name)
    flush(folder)
    moving.rmdir()


def _in_the_way(folder: Path, finished: Path) -> list[Path]:
    """Old weights to remove before the new files come, that which they are looked for by first.

    These are the ones that aren't overwritten, and where more than one file changes the entry in
    any case: nobody may find old weights beside a new configuration, or new beside old ones.
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
    """Whether loading begins with this file of weights: all of them, or the index of shards."""
    match = WEIGHTS.fullmatch(name)
    return match is not None and match["shard"] is None


def _same(one: Path, other: Path) -> bool:
    return other.is_file() and filecmp.cmp(one, other, shallow=False)
