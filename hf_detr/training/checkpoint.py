"""Checkpoints of a training: written completely or not at all, and read without running code.

A checkpoint is a folder `checkpoint-<step>` with tensors in safetensors, other state in JSON, and a
manifest with the SHA-256 of each file. A kill, a power cut or a full disk leaves the earlier ones
unchanged. Nothing is pickled: an untrusted file can disturb a training, but it can't run code.
"""

import hashlib
import json
import re
import shutil
import warnings
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from ..atomic_saving import atomic_folder, finish_interrupted_save, remove_interrupted_saves
from ..wording import some_of

MANIFEST = "manifest.json"
STATE = "state.json"


@dataclass(frozen=True)
class TrainingCheckpoint:
    """A loaded checkpoint.

    Attributes:
        folder: the checkpoint's folder.
        step: number of optimiser steps done.
        tensors: named groups of named tensors, on the CPU.
        state: other state, as read from JSON.
    """

    folder: Path
    step: int
    tensors: dict[str, dict[str, Tensor]]
    state: dict[str, Any]


def save_checkpoint(
    folder: Path,
    step: int,
    tensors: Mapping[str, Mapping[str, Tensor]],
    state: Mapping[str, Any],
    keep: int = 2,
    protect: Collection[int] = (),
    write_more: Callable[[Path], None] | None = None,
) -> Path:
    """Write a checkpoint completely or not at all, and delete old ones.

    Args:
        folder: the folder of a training's checkpoints.
        step: number of optimiser steps done; part of the name.
        tensors: named groups of named tensors; each becomes `<group>.safetensors`.
        state: other state, which JSON can represent.
        keep: how many of the newest checkpoints stay, including this one.
        protect: steps whose checkpoints also stay, such as the best one's.
        write_more: writes further files, such as a config, into the folder that it is given.

    Returns:
        The checkpoint's folder.

    Raises:
        OSError: if it can't be written, for example to a full disk; the earlier checkpoints are
            unchanged.
        ValueError: if `keep` isn't positive.
    """
    if keep < 1:
        raise ValueError(f"keep is {keep}; expected 1 or more, to keep the newest checkpoint.")
    final = checkpoint_folder(folder, step)
    remove_interrupted_saves(folder / "checkpoint-*")
    with atomic_folder(final) as unfinished:
        for group, named in tensors.items():
            # safetensors refuses tensors that share memory, as tied ones do; copies are accepted.
            copies = {
                name: tensor.detach().cpu().clone(memory_format=torch.contiguous_format)
                for name, tensor in named.items()
            }
            save_file(copies, unfinished / f"{group}.safetensors", metadata={"format": "pt"})
        (unfinished / STATE).write_text(
            json.dumps({**state, "step": step}, indent=1), encoding="utf-8"
        )
        if write_more is not None:
            write_more(unfinished)
        files = sorted(path for path in unfinished.rglob("*") if path.is_file())
        sums = {path.relative_to(unfinished).as_posix(): _digest(path) for path in files}
        (unfinished / MANIFEST).write_text(json.dumps(sums, indent=1), encoding="utf-8")
    steps = _steps(folder)
    # Later steps are of an abandoned training, for example after resuming before corrupted ones.
    kept = [one for one in steps if one <= step][:keep]
    for old in set(steps) - {*kept, *protect}:
        shutil.rmtree(checkpoint_folder(folder, old), ignore_errors=True)
    return final


def load_newest_checkpoint(folder: Path) -> TrainingCheckpoint | None:
    """Load the newest complete checkpoint; None if there isn't one.

    A checkpoint whose files don't match its manifest, because the disk lost data or the files were
    changed, is skipped with a warning.
    """
    return _load_first(folder, _steps(folder))


def load_best_checkpoint(folder: Path, steps: Sequence[int]) -> TrainingCheckpoint:
    """Load the first complete checkpoint of the steps, the best first; warn about skipped ones.

    Raises:
        ValueError: if none is complete.
    """
    found = _load_first(folder, steps)
    if found is None:
        raise ValueError(
            f"None of the evaluated steps {some_of(steps)} has a complete checkpoint in {folder}; "
            "restore one, or train again with another --output."
        )
    return found


def _load_first(folder: Path, steps: Sequence[int]) -> TrainingCheckpoint | None:
    for step in steps:
        try:
            return load_checkpoint(checkpoint_folder(folder, step))
        except ValueError as error:
            warnings.warn(f"skipped: {error}", stacklevel=3)
    return None


def load_checkpoint(folder: Path) -> TrainingCheckpoint:
    """Load one checkpoint.

    Raises:
        ValueError: if its files don't match its manifest.
    """
    finish_interrupted_save(folder)
    problem = _problem(folder)
    if problem is not None:
        raise ValueError(f"the checkpoint {folder} is corrupted: {problem}.")
    state = json.loads((folder / STATE).read_text(encoding="utf-8"))
    names = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))  # other files aren't read
    files = [folder / name for name in names if name.endswith(".safetensors")]
    tensors = {path.stem: load_file(path) for path in files}
    return TrainingCheckpoint(folder, state.pop("step"), tensors, state)


def checkpoint_folder(folder: Path, step: int) -> Path:
    """Return the folder of a step's checkpoint."""
    return folder / f"checkpoint-{step:08d}"


def _steps(folder: Path) -> list[int]:
    """Steps of the checkpoints, the newest first."""
    names = [path.name for path in folder.glob("checkpoint-*/")]
    matches = [re.fullmatch(r"checkpoint-(\d{8,})", name) for name in names]
    return sorted((int(match[1]) for match in matches if match), reverse=True)


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _problem(folder: Path) -> str | None:
    """Return why a checkpoint can't be used, or None."""
    try:
        sums = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
        for name, expected in sums.items():
            path = folder / name
            if not path.resolve().is_relative_to(folder.resolve()):
                return f"its {MANIFEST} names {name!r}, which is outside the checkpoint"
            if _digest(path) != expected:
                return f"{name} differs from the saved file"
    except (OSError, ValueError, AttributeError, TypeError) as error:
        return f"{MANIFEST} or a file named in it can't be read ({error})"
    return None
