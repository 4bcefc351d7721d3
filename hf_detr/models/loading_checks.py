"""Checks a model's files before they are loaded."""

import hashlib
import os
import re
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.utils.hub import has_file

from ..wording import some_of

SHOWN = 3
SAFE_WEIGHTS = ("model.safetensors", "model.safetensors.index.json")
PICKLED_WEIGHTS = ("pytorch_model.bin", "pytorch_model.bin.index.json")
CONVERT_PICKLES = (
    "To convert weights that you trust, load them with transformers in a process without hf_detr, "
    "and save them with save_pretrained."
)
Header = tuple[tuple[int, ...], str]  # shape and dtype, by safetensors' names
FLOATING = ("F64", "F32", "F16", "BF16")


def check_config_class(config: PreTrainedConfig | None, expected: type[PreTrainedConfig]) -> None:
    """Check that a configuration isn't transformers' of the same name, which has other defaults.

    Raises:
        TypeError: if it has another class.
    """
    if isinstance(config, expected):
        return
    found, name = type(config), expected.__name__
    how = (
        f": import it from hf_detr, or convert yours by {name}.from_dict(config.to_dict())"
        if found.__name__ == name
        else ""
    )
    raise TypeError(
        f"config is a {found.__name__} of {found.__module__}; expected {name} of "
        f"{expected.__module__}{how}."
    )


def _check_weight_files(files: Collection[str], source: str | os.PathLike) -> None:
    """Check that files of weights are safetensors, in the model's folder and not corrupted.

    Args:
        files: files of weights; an index of shards can contain any path.
        source: the model's folder, or its repository on the Hub, where the client checks paths.

    Raises:
        ValueError: if a file fails the check.
    """
    for file in map(str, files):
        if not file.endswith(".safetensors"):
            raise ValueError(
                f"{file!r} is not a .safetensors file; other formats are not loaded, because they "
                "can run code."
            )
        # Symbolic links aren't resolved: in the Hub's cache, files are links out of the folder.
        is_inside = Path(os.path.abspath(file)).is_relative_to(os.path.abspath(source))
        if os.path.isdir(source) and not is_inside:
            raise ValueError(
                f"The index of the checkpoint in {source} contains {file!r}, which is outside that "
                "folder; expected files in the same folder."
            )
        if not os.path.isfile(file):
            raise ValueError(f"{file!r} is a file of the checkpoint, but it doesn't exist.")
        _check_digest(Path(file).resolve())


def read_headers(files: Collection[str], source: str | os.PathLike) -> dict[str, Header]:
    """Read the shape and dtype of each tensor in safetensors files.

    Raises:
        ValueError: as in `_check_weight_files`, or if a file isn't a complete safetensors file.
    """
    _check_weight_files(files, source)
    headers: dict[str, Header] = {}
    for file in files:
        try:
            with safe_open(file, framework="pt") as opened:
                slices = {name: opened.get_slice(name) for name in opened.keys()}  # noqa: SIM118
                headers |= {n: (tuple(s.get_shape()), s.get_dtype()) for n, s in slices.items()}
        except SafetensorError as error:
            raise unreadable(file, error) from error
    return headers


def check_headers(
    model: PreTrainedModel, headers: Mapping[str, Header], any_shape: bool, any_dtype: bool
) -> None:
    """Compare the shapes and dtypes of the files' tensors with the model's.

    Args:
        model: on any device.
        headers: of the files, by the model's names.
        any_shape: allow other shapes.
        any_dtype: allow integers where the model has floating-point numbers.

    Raises:
        ValueError: if they differ.
    """
    expected = model.state_dict()
    different, integers = [], []
    for name, (shape, dtype) in headers.items():
        if name not in expected:
            continue
        wanted = tuple(expected[name].shape)
        if shape != wanted and not any_shape:
            different.append(f"{name} is {shape}, expected {wanted}")
        if expected[name].is_floating_point() and dtype not in FLOATING and not any_dtype:
            integers.append(f"{name} ({dtype})")
    if integers:
        raise ValueError(
            f"The weights contain {some_of(integers, SHOWN)}, expected one of "
            f"{', '.join(FLOATING)}: quantized weights mean nothing without their scales. Load the "
            "weights from before the quantization."
        )
    if different:
        raise ValueError(
            f"The weights don't match the configuration: {some_of(different, SHOWN, '; ')}. Use "
            "the configuration of the weights, or ignore_mismatched_sizes=True to initialize "
            "these weights randomly, for example for other classes."
        )


def check_finite(model: PreTrainedModel) -> None:
    """Check that all weights are finite.

    Raises:
        ValueError: if a weight is NaN or infinite.
    """
    nonfinite = [
        name
        for name, tensor in model.state_dict().items()
        if tensor.is_floating_point()
        and tensor.numel()
        and not tensor.is_meta  # offloaded
        and not all(torch.isfinite(extreme) for extreme in tensor.aminmax())
    ]
    if nonfinite:
        raise ValueError(
            f"The weights contain NaN or infinity in {some_of(nonfinite, SHOWN)}. Load an earlier "
            "checkpoint of the training."
        )


def check_safe_options(options: Mapping[str, Any]) -> None:
    """Check that the options of `from_pretrained` don't ask for a pickle.

    Raises:
        ValueError: if they do.
    """
    if options.get("use_safetensors") is False or options.get("weights_only") is False:
        raise ValueError(
            "use_safetensors=False or weights_only=False would unpickle weights, which can run "
            f"code; hf_detr loads safetensors only. {CONVERT_PICKLES}"
        )


def check_not_only_pickled(
    name: str | os.PathLike | None, options: Mapping[str, Any], error: OSError
) -> None:
    """Check whether a model can't be loaded because its weights are a pickle.

    Args:
        name: its folder, or its repository on the Hub.
        options: those of `from_pretrained`; of them, `subfolder`, `revision`, `token` and
            `cache_dir` say where on the Hub.
        error: that of loading.

    Raises:
        OSError: if there is a pickle, and no safetensors.
    """
    where = {k: options[k] for k in ("revision", "token", "cache_dir") if options.get(k)}

    def has_one_of(files: tuple[str, ...]) -> bool:
        folder = options.get("subfolder") or ""
        return any(has_file(str(name), os.path.join(folder, file), **where) for file in files)

    try:
        if name is None or not has_one_of(PICKLED_WEIGHTS) or has_one_of(SAFE_WEIGHTS):
            return
    except (ValueError, OSError):  # no such repository, or no network
        return
    raise OSError(
        f"{name} has weights only as pytorch_model.bin, a pickle, which can run code; hf_detr "
        f"loads safetensors only. {CONVERT_PICKLES}"
    ) from error


def unreadable(name: str | os.PathLike, error: SafetensorError) -> ValueError:
    """The error for a file that isn't a complete safetensors file."""
    return ValueError(
        f"The weights of {name} can't be read: {error}. The file is incomplete or corrupted; "
        "download it again with force_download=True, or save it again."
    )


def _check_digest(file: Path) -> None:
    """Compare a large file in the Hub's cache with its name, which is its SHA-256."""
    # The client compares sizes only.
    if file.parent.name != "blobs" or not re.fullmatch("[0-9a-f]{64}", file.name):
        return
    with file.open("rb") as opened:
        if hashlib.file_digest(opened, "sha256").hexdigest() != file.name:
            raise ValueError(
                f"{file} is corrupted: its SHA-256 differs from that on the Hub. Delete the file "
                "or load with force_download=True."
            )
