"""Why a model's files can't be loaded, said before memory is spent on them."""

import hashlib
import os
import re
from collections.abc import Collection
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from transformers import PreTrainedModel

from .wording import some_of

SHOWN = 3


def check_weight_files(files: Collection[str], source: str | os.PathLike) -> None:
    """Refuse files that can run code, lie outside the folder, or aren't what they should be.

    Args:
        files: that hold the weights; an index of shards may name any.
        source: the model's folder, or its name on the Hub, whose client keeps files inside.

    Raises:
        ValueError: naming the file.
    """
    for file in map(str, files):
        if not file.endswith(".safetensors"):
            raise ValueError(
                f"The checkpoint names {file!r} as one of its files; only .safetensors "
                "are loaded, since others can run code."
            )
        if os.path.isdir(source) and not _is_inside(file, os.fspath(source)):
            raise ValueError(
                f"The checkpoint in {source} names {file!r} as one of its files, which lies "
                "outside that folder; an index may name files beside it only."
            )
        if not os.path.isfile(file):
            raise ValueError(f"The checkpoint names {file!r} as one of its files; it isn't there.")
        _check_digest(Path(file).resolve())


def check_shapes(model: PreTrainedModel, files: Collection[str]) -> None:
    """Refuse weights of other shapes than the model's, from the files' headers alone.

    Raises:
        ValueError: if shapes differ, or a file isn't a whole safetensors file.
    """
    expected = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    different = []
    for file in files:
        try:
            with safe_open(file, framework="pt") as opened:
                # The names of the file, not a dictionary's.
                for name in opened.keys():  # noqa: SIM118
                    shape = tuple(opened.get_slice(name).get_shape())
                    if shape != expected.get(name, shape):
                        different.append(f"{name} is {shape}, expected {expected[name]}")
        except SafetensorError as error:
            raise unreadable(file, error) from error
    if different:
        raise ValueError(
            f"The weights don't fit the configuration: {some_of(different, SHOWN, '; ')}. Give the "
            "configuration they were saved with, or ignore_mismatched_sizes=True to draw these "
            "anew, as for other classes."
        )


def check_finite(model: PreTrainedModel) -> None:
    """Refuse NaN and infinity among the weights.

    Raises:
        ValueError: naming the tensors.
    """
    spoilt = [
        name
        for name, tensor in model.state_dict().items()
        if tensor.is_floating_point()
        and tensor.numel()
        and not tensor.is_meta  # offloaded
        and not all(torch.isfinite(extreme) for extreme in tensor.aminmax())
    ]
    if spoilt:
        raise ValueError(
            f"The weights hold NaN or infinity in {some_of(spoilt, SHOWN)}; such a model can't "
            "predict anything. Load an earlier checkpoint of its training."
        )


def unreadable(name: str | os.PathLike, error: SafetensorError) -> ValueError:
    """What to raise for a file that isn't safetensors, or only a part of one."""
    return ValueError(
        f"The weights of {name} can't be read: {error}. The file is cut off or was altered; "
        "fetch or save it again (from the Hub with force_download=True)."
    )


def _is_inside(file: str, folder: str) -> bool:
    # Names are compared, not places: in the Hub's cache a folder's files are links out of it.
    return Path(os.path.abspath(file)).is_relative_to(os.path.abspath(folder))


def _check_digest(file: Path) -> None:
    """Compare a large file in the Hub's cache with its name, which is what the Hub hashed it to."""
    # The client compares sizes only.
    if file.parent.name != "blobs" or not re.fullmatch("[0-9a-f]{64}", file.name):
        return
    with file.open("rb") as opened:
        if hashlib.file_digest(opened, "sha256").hexdigest() != file.name:
            raise ValueError(
                f"{file} isn't what the Hub has: its sha256 differs from its name. It was altered "
                "on the way or on this disk; delete it, or load with force_download=True."
            )
