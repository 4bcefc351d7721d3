"""Checkpoints of a training: whole or not there at all, and read without running their code.

A checkpoint is a folder `checkpoint-<step>` with tensors in safetensors, all else in JSON, and a
manifest that is written last. It is made under another name and renamed when everything is on
the disk, so a kill, a power cut or a full disk leaves the earlier ones as they were. Nothing is
pickled: a file that isn't trusted can spoil a training, but it can't run code.
"""

import errno
import hashlib
import json
import os
import re
import shutil
import warnings
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from .whole_saving import flush

MANIFEST = "manifest.json"
STATE = "state.json"
UNFINISHED = ".unfinished-"
REPLACED = ".replaced-"


@dataclass(frozen=True)
class TrainingCheckpoint:
    """What was saved.

    Attributes:
        folder: where it was found.
        step: optimiser steps done.
        tensors: named groups of named tensors, on the CPU.
        state: all else, as JSON has it.
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
    """Write a checkpoint completely, or leave what was there.

    Args:
        folder: where a training's checkpoints are.
        step: optimiser steps done; part of the name.
        tensors: named groups of named tensors; each becomes `<group>.safetensors`.
        state: what JSON can hold.
        keep: how many of the newest checkpoints stay, this one included.
        protect: steps whose checkpoints stay too, such as the best one's.
        write_more: writes further files into the folder that it is given, such as a config.

    Returns:
        The checkpoint's folder.

    Raises:
        OSError: if it can't be written, for example to a full disk; the earlier checkpoints are
            as they were.
        ValueError: if `keep` isn't positive.
    """
    if keep < 1:
        raise ValueError(f"keep is {keep}; at least the newest checkpoint must stay.")
    final, unfinished = checkpoint_folder(folder, step), folder / f"{UNFINISHED}{step:08d}"
    for killed in folder.glob(f"{UNFINISHED}*"):
        shutil.rmtree(killed, ignore_errors=True)
    _clear_replaced(folder)
    try:
        unfinished.mkdir(parents=True)
        for group, named in tensors.items():
            # safetensors refuses tensors that share memory, as tied ones do; copies serve as well.
            copies = {
                name: tensor.detach().cpu().clone(memory_format=torch.contiguous_format)
                for name, tensor in named.items()
            }
            save_file(copies, unfinished / f"{group}.safetensors", metadata={"format": "pt"})
        (unfinished / STATE).write_text(json.dumps({**state, "step": step}, indent=1))
        if write_more is not None:
            write_more(unfinished)
        _seal(unfinished)
    except (OSError, SafetensorError) as error:  # a full disk is either, by who meets it
        shutil.rmtree(unfinished, ignore_errors=True)
        raise OSError(
            getattr(error, "errno", None) or errno.EIO,
            f"The checkpoint of step {step} could not be written ({error}); the earlier ones are "
            "as they were",
            str(folder),
        ) from error
    if final.exists():  # from a training that was taken up earlier
        os.rename(final, folder / f"{REPLACED}{final.name}")
    os.rename(unfinished, final)
    flush(folder)
    _clear_replaced(folder)
    # Later ones are of a training that was given up, when it went back past spoilt ones say.
    kept = [one for one in _newest_first(folder) if _step(one) <= step][:keep]
    for old in _newest_first(folder):
        if old not in kept and _step(old) not in protect:
            shutil.rmtree(old, ignore_errors=True)
    return final


def load_newest_checkpoint(folder: Path) -> TrainingCheckpoint | None:
    """Load the newest complete checkpoint, or None where there is none.

    One that isn't what its manifest says, because its disk lost data or somebody changed it, is
    passed over with a warning.
    """
    _clear_replaced(folder)
    for candidate in _newest_first(folder):
        try:
            return load_checkpoint(candidate)
        except ValueError as error:
            warnings.warn(f"passed over: {error}", stacklevel=2)
    return None


def _clear_replaced(folder: Path) -> None:
    """Delete checkpoints that were replaced; put back one whose successor a kill prevented."""
    for replaced in folder.glob(f"{REPLACED}*"):
        final = folder / replaced.name.removeprefix(REPLACED)
        if final.exists():
            shutil.rmtree(replaced, ignore_errors=True)
        else:
            os.rename(replaced, final)


def load_checkpoint(folder: Path) -> TrainingCheckpoint:
    """Load one checkpoint.

    Raises:
        ValueError: if it isn't what its manifest says.
    """
    problem = _problem(folder)
    if problem is not None:
        raise ValueError(f"the checkpoint {folder} is spoilt: {problem}.")
    state = json.loads((folder / STATE).read_text())
    names = json.loads((folder / MANIFEST).read_text())  # what lies beside them isn't read
    files = [folder / name for name in names if name.endswith(".safetensors")]
    tensors = {path.stem: load_file(path) for path in files}
    return TrainingCheckpoint(folder, state.pop("step"), tensors, state)


def checkpoint_folder(folder: Path, step: int) -> Path:
    """Where the checkpoint of a step is."""
    return folder / f"checkpoint-{step:08d}"


def _step(checkpoint: Path) -> int | None:
    match = re.fullmatch(r"checkpoint-(\d+)", checkpoint.name)
    return int(match[1]) if match and checkpoint.is_dir() else None


def _newest_first(folder: Path) -> list[Path]:
    steps = {path: _step(path) for path in folder.glob("checkpoint-*")}
    return sorted((p for p, s in steps.items() if s is not None), key=steps.get, reverse=True)


def _seal(folder: Path) -> None:
    """Bring every file to the disk, then a manifest of them, then the folder's names."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    sums = {str(path.relative_to(folder).as_posix()): _digest(path) for path in files}
    for path in files:
        flush(path)
    (folder / MANIFEST).write_text(json.dumps(sums, indent=1))
    flush(folder / MANIFEST)
    flush(folder)


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _problem(folder: Path) -> str | None:
    """Why a checkpoint can't be used, or None."""
    try:
        manifest = json.loads((folder / MANIFEST).read_text())
        sums = dict(manifest.items())
        if STATE not in sums:
            return f"its {MANIFEST} doesn't name {STATE}"
        for name, expected in sums.items():
            path = folder / name
            if not path.resolve().is_relative_to(folder.resolve()):
                return f"its {MANIFEST} names {name!r}, which is outside"
            if _digest(path) != expected:
                return f"{name} isn't what was written"
    except (OSError, ValueError, AttributeError, TypeError) as error:
        return f"{MANIFEST} or a file that it names can't be read ({error})"
    return None
