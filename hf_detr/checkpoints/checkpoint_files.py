"""Files of weights: read without running their code, and not overwritten by accident."""

import argparse
import os
import pickle
import re
import warnings
from pathlib import Path
from typing import Any

import torch
from torch import Tensor


def read_pickled_checkpoint(file: str | os.PathLike) -> dict[str, Any]:
    """Read a `.pth` file with torch's unpickler that doesn't run code from the file.

    Besides tensors and plain data it accepts `argparse.Namespace`, in which the official training
    scripts keep their options.

    Raises:
        FileNotFoundError: if the file doesn't exist.
        ValueError: if it is a folder, would run code, is damaged or isn't a dictionary.
    """
    if Path(file).is_dir():
        raise ValueError(f"{file} is a folder; expected a .pth file.")
    if not Path(file).exists():
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


def _why_unread(file: str | os.PathLike, error: Exception) -> str:
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
        is_tensor = isinstance(tensor, Tensor)
        kind = f"{tensor.layout} on {tensor.device}" if is_tensor else type(tensor).__name__
        if not isinstance(name, str) or kind != "torch.strided on cpu":
            raise ValueError(f"{name!r} in {file} is a {kind}; expected a named tensor of numbers.")
        if tensor.numel() * tensor.element_size() > tensor.untyped_storage().nbytes():
            shape = tuple(tensor.shape)
            raise ValueError(f"{name!r} in {file} has shape {shape}, larger than its data.")


def check_target(path: Path, overwrite: bool, is_folder: bool) -> None:
    """Check that a file, or a folder with files, may be written.

    Raises:
        FileExistsError: if there is a folder instead of a file, or the reverse; or if the file
            exists, or the folder isn't empty, and `overwrite` isn't set.
    """
    if path.exists() and path.is_dir() != is_folder:
        found, expected = ("file", "folder") if is_folder else ("folder", "file")
        raise FileExistsError(f"{path} is a {found}; expected the name of a {expected} to write.")
    is_empty = path.is_dir() and not any(path.iterdir())
    if path.exists() and not (overwrite or is_empty):
        raise FileExistsError(
            f"{path} exists; choose another name, or pass overwrite (--overwrite) to replace files "
            "of the same names."
        )
