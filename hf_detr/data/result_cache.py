"""Results on disk that one process computes and the others, which wait for it, read."""

import os
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import TypeVar

import filelock

UNUSED_DAYS = 30  # after which a result is removed
Result = TypeVar("Result")


def cache_folder(kind: str) -> Path:
    """Return the folder of one kind of results, `hf_detr/<kind>` in the user's cache folder."""
    cache = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    # Unlike that of Path, this expanduser accepts users without a home, as in containers.
    return Path(os.path.expanduser(cache)).absolute() / "hf_detr" / kind


def file_state(file: str | os.PathLike[str]) -> tuple[int, int, int, int]:
    """Return what changes with a file.

    Raises:
        OSError, ValueError: if there is none, or no file can have the name.
    """
    state = os.stat(file)
    # `cp -p`, archives and editors of metadata set the time of the content, but not that of the
    # last change.
    return state.st_size, state.st_mtime_ns, state.st_ctime_ns, state.st_ino


def cached(
    file: Path,
    load: Callable[[Path], Result | None],
    compute: Callable[[], Result],
    save: Callable[[Path, Result], None],
    description: str,
) -> Result:
    """Return a result from the cache; if it isn't there, compute and save it.

    If several processes call this at the same time, one of them computes the result, and the others
    wait and load it. A result that can't be saved is a warning, and then each computes its own.
    Results in the same folder that weren't used for `UNUSED_DAYS` are removed.

    Args:
        file: where the result is saved; it is replaced if it can't be used.
        load: loads the result; None if the file doesn't exist, is damaged or outdated.
        compute: computes the result.
        save: saves the result atomically; raises `OSError` if that isn't possible.
        description: of the result, for the warning.
    """
    found = load(file)
    if found is not None:
        with suppress(OSError):  # in a read-only folder
            os.utime(file)  # it is in use
        return found
    with ExitStack() as until_computed:
        if until_computed.enter_context(_locked(file)):
            found = load(file)
            if found is not None:
                return found
            # It can't be saved: the processes needn't wait for each other.
            until_computed.close()
        result = compute()
        found = load(file)  # of another process, where locks don't work
        if found is None:
            try:
                save(file, result)
            except OSError as error:
                warnings.warn(f"{description} can't be cached: {error}.", stacklevel=4)
                return result
            _remove_unused(file.parent)
            _remove_unused(_lock_folder(file))
            found = load(file)
    return result if found is None else found


def _remove_unused(folder: Path) -> None:
    oldest = time.time() - UNUSED_DAYS * 24 * 3600
    with suppress(OSError):
        for file in list(folder.iterdir()):
            with suppress(OSError):  # another user's file, or one that is open on Windows
                if file.stat().st_mtime < oldest:
                    file.unlink()


def _lock_folder(file: Path) -> Path:
    return file.parents[1] / "locks"


@contextmanager
def _locked(file: Path) -> Iterator[bool]:
    """Hold the lock of a result; give whether another process held it before."""
    lock = filelock.FileLock(_lock_folder(file) / f"{file.stem}.lock")
    has_waited, is_locked = False, True
    try:
        Path(lock.lock_file).parent.mkdir(parents=True, exist_ok=True)
        try:
            lock.acquire(timeout=0)
        except filelock.Timeout:
            has_waited = True
            lock.acquire()
    except (OSError, NotImplementedError):
        is_locked = False  # a read-only folder, or a file system without locks
    try:
        yield has_waited and is_locked
    finally:
        if is_locked:
            lock.release()
