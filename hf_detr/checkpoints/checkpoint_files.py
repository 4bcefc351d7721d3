"""Files of weights: read without running their code, and not overwritten by accident."""

import argparse
import os
import pickle
import re
import warnings
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..atomic_saving import atomic_file, atomic_folder


def read_pickled_checkpoint(file: str | os.PathLike) -> dict[str, Any]:
    """Read a `.pth` file with torch's unpickler that doesn't run code from the file.

    Besides tensors and plain data it accepts `argparse.Namespace`, in which the official training
    scripts keep their options.

    Raises:
        FileNotFoundError: if the file doesn't exist.
        ValueError: if it would run code, is damaged or isn't a dictionary.
    """
    file = Path(file)
    if file.is_dir():
        raise ValueError(f"{file} is a folder; expected a .pth file.")
    if not file.exists():
        raise FileNotFoundError(f"{file} doesn't exist; expected a .pth file.")
    try:
        with torch.serialization.safe_globals([argparse.Namespace]), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about newer pickle protocols
            content = torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:  # damaged files raise errors of many kinds
        raise ValueError(_why_unread(file, error)) from error
    if not isinstance(content, dict):
        raise ValueError(
            f"{file} contains a {type(content).__name__}; expected a dictionary with weights."
        )
    return content


def _why_unread(file: Path, error: Exception) -> str:
    """Explain the error; torch's own message advises to unpickle the file without protection."""
    wanted = re.search(r"GLOBAL ([\w.]+)", str(error))
    if isinstance(error, pickle.UnpicklingError) and wanted:
        return (
            f"{file} was refused and no code of it was run: to load it, Python would have to call "
            f"{wanted[1]}. Expected tensors and plain data only; if you trust the file, load it "
            "with torch.load and save its state dict alone."
        )
    reason = str(error).strip().splitlines() or ["no details"]
    return (
        f"{file} can't be read; it is damaged, incomplete or not a checkpoint of torch "
        f"({type(error).__name__}: {reason[0][:200]})."
    )


def check_tensors(tensors: dict[str, Tensor], file: str | os.PathLike) -> None:
    """Refuse what isn't a plain tensor in memory, and tensors larger than their data in the file.

    Raises:
        ValueError: with the name of the first such tensor.
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
            problem = f"has shape {tuple(tensor.shape)}, larger than its data in the file"
        if problem:
            raise ValueError(f"{name!r} in {file} {problem}; expected a plain tensor of numbers.")


def new_folder(folder: Path, overwrite: bool) -> AbstractContextManager[Path]:
    """Return `atomic_folder`, which replaces files in `folder` only if `overwrite` is set.

    Raises:
        FileExistsError: if `folder` is a file, or has files and `overwrite` isn't set.
    """
    if folder.exists() and not folder.is_dir():
        raise FileExistsError(f"{folder} is a file; expected a folder to write to.")
    if not overwrite and folder.is_dir() and any(folder.iterdir()):
        raise FileExistsError(
            f"{folder} isn't empty; choose another folder, or pass overwrite (--overwrite) to "
            "replace its files of the same names."
        )
    return atomic_folder(folder)


def new_file(file: Path, overwrite: bool) -> AbstractContextManager[Path]:
    """Return `atomic_file`, which replaces an existing `file` only if `overwrite` is set.

    Raises:
        FileExistsError: if `file` is a folder, or exists and `overwrite` isn't set.
    """
    if file.is_dir():
        raise FileExistsError(f"{file} is a folder; expected the name of a file to write.")
    if file.exists() and not overwrite:
        raise FileExistsError(
            f"{file} exists; choose another name, or pass overwrite (--overwrite) to replace it."
        )
    return atomic_file(file)
