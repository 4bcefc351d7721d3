"""Files of weights: read without running their code, written whole or not at all."""

import argparse
import os
import pickle
import re
import shutil
import tempfile
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .whole_saving import saved_whole


def read_pickled_checkpoint(file: str | os.PathLike) -> dict[str, Any]:
    """What a `.pth` file holds, read by torch's unpickler that runs no code of the file's.

    Besides tensors and plain data it takes `argparse.Namespace`, in which the official training
    scripts keep their options.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if it would run code, is damaged or no dictionary.
    """
    file = Path(file)
    if file.is_dir():
        raise ValueError(f"{file} is a folder; expected a .pth file.")
    if not file.exists():
        raise FileNotFoundError(f"There is no file {file}.")
    try:
        with torch.serialization.safe_globals([argparse.Namespace]), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of pickle's newer protocols, which load or don't
            content = torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged file fails in as many ways as there are bytes
        raise ValueError(_why_unread(file, error)) from error
    if not isinstance(content, dict):
        raise ValueError(
            f"{file} holds a {type(content).__name__}; expected a dictionary with weights."
        )
    return content


def _why_unread(file: Path, error: Exception) -> str:
    """torch's own message advises to unpickle all the same."""
    wanted = re.search(r"GLOBAL ([\w.]+)", str(error))
    if isinstance(error, pickle.UnpicklingError) and wanted:
        return (
            f"{file} was refused and nothing of it was run: to load it, Python would have to call "
            f"{wanted[1]}. A checkpoint needs tensors and plain data only; if you trust this one, "
            "load it elsewhere and save its state dict alone."
        )
    reason = str(error).strip().splitlines() or ["nothing more is known"]
    return (
        f"{file} can't be read; it is damaged, incomplete or no checkpoint of torch's "
        f"({type(error).__name__}: {reason[0][:200]})."
    )


def check_tensors(tensors: dict[str, Tensor], file: str | os.PathLike) -> None:
    """Refuse what isn't a plain tensor in memory, and tensors larger than what the file holds.

    Raises:
        ValueError: naming the first such tensor.
    """
    for name, tensor in tensors.items():
        problem = None
        if not isinstance(name, str):
            problem = "isn't the name of a weight"
        elif not isinstance(tensor, Tensor):
            problem = f"is a {type(tensor).__name__}"
        elif tensor.layout != torch.strided or tensor.device.type != "cpu":
            problem = f"has layout {tensor.layout} on {tensor.device}"
        elif tensor.numel() * tensor.element_size() > tensor.untyped_storage().nbytes():
            problem = f"claims shape {tuple(tensor.shape)}, more than the file holds"
        if problem:
            raise ValueError(f"{name!r} in {file} {problem}; expected a plain tensor of numbers.")


@contextmanager
def new_folder(folder: Path, overwrite: bool) -> Iterator[Path]:
    """A folder to write to, which becomes `folder` when all is written; nothing if that fails.

    Where `folder` exists, its files of the same names and its weights are replaced together; others
    stay.

    Raises:
        FileExistsError: if `folder` is a file, or has files and `overwrite` isn't set.
    """
    if folder.exists() and not folder.is_dir():
        raise FileExistsError(f"{folder} is a file; expected a folder to write to.")
    if not overwrite and folder.is_dir() and any(folder.iterdir()):
        raise FileExistsError(
            f"{folder} isn't empty; choose another one, or pass overwrite (--overwrite) to replace "
            "the files in it that are written anew."
        )
    if folder.is_dir():
        with saved_whole(folder) as unfinished:
            yield unfinished
        return
    folder.parent.mkdir(parents=True, exist_ok=True)
    unfinished = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))
    try:
        yield unfinished
        unfinished.chmod(0o777 & ~_umask())  # mkdtemp's is for its owner only
        unfinished.replace(folder)
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)


@contextmanager
def new_file(file: Path, overwrite: bool) -> Iterator[Path]:
    """A path to write to, which becomes `file` when all is written; nothing if that fails.

    Raises:
        FileExistsError: if `file` is a folder, or exists and `overwrite` isn't set.
    """
    if file.is_dir():
        raise FileExistsError(f"{file} is a folder; expected the name of a .pth file to write.")
    if file.exists() and not overwrite:
        raise FileExistsError(f"{file} exists; choose another name, or pass overwrite.")
    file.parent.mkdir(parents=True, exist_ok=True)
    unfinished = file.with_name(f".{file.name}.{os.getpid()}")
    try:
        yield unfinished
        unfinished.replace(file)
    finally:
        unfinished.unlink(missing_ok=True)


def _umask() -> int:
    umask = os.umask(0)
    os.umask(umask)
    return umask
