"""Tests that corrupted and malicious files are rejected before they are loaded."""

import json
import os
import re
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

import hf_detr
from hf_detr.models.loading_checks import check_finite

from ..tiny import class_of, tiny_detector


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A saved detector."""
    tiny_detector("detr").save_pretrained(tmp_path / "model")
    return tmp_path / "model"


def load(folder: Path, **options: object) -> object:
    """Load the detector."""
    return hf_detr.DetrForObjectDetection.from_pretrained(folder, **options)


def with_header(content: bytes, change: Callable[[dict], None]) -> bytes:
    """Change the header of a safetensors file."""
    length = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + length])
    change(header)
    written = json.dumps(header).encode()
    return len(written).to_bytes(8, "little") + written + content[8 + length :]


def huge(header: dict) -> None:
    """Set an enormous shape for the first tensor."""
    next(entry for name, entry in header.items() if name[0] != "_")["shape"] = [10**9, 10**9]


def beyond(header: dict) -> None:
    """Set an end after the end of the file for the last tensor."""
    max(
        (entry for name, entry in header.items() if name[0] != "_"),
        key=lambda entry: entry["data_offsets"],
    )["data_offsets"][1] += 10**15


CORRUPTIONS = {
    "truncated": lambda content: content[:-100],
    "first bytes": lambda content: content[:5],
    "empty": lambda content: b"",
    "header longer than memory": lambda content: (2**40).to_bytes(8, "little") + content[8:],
    "header longer than the file": lambda content: (
        (2 * len(content)).to_bytes(8, "little") + content[8:]
    ),
    "header overwritten": lambda content: content[:8] + b"x" * 100 + content[108:],
    "huge shape": lambda content: with_header(content, huge),
    "data after the end": lambda content: with_header(content, beyond),
}


@pytest.mark.parametrize("has_dtype", [True, False])
@pytest.mark.parametrize("case", CORRUPTIONS)
def test_corrupted_files(folder: Path, case: str, has_dtype: bool) -> None:
    """Incomplete and corrupted files are rejected, and the error has their name."""
    path = folder / "model.safetensors"
    path.write_bytes(CORRUPTIONS[case](path.read_bytes()))
    if not has_dtype:  # then transformers reads the dtype from the file first
        config = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps({**config, "dtype": None}))
    name = re.escape(str(path if has_dtype else folder))
    with pytest.raises(ValueError, match=f"weights of {name} can't be read: .*incomplete or corr"):
        load(folder)


def test_other_shapes(folder: Path) -> None:
    """Wrong sizes in the configuration are rejected before the model is allocated."""
    config = json.loads((folder / "config.json").read_text())
    config |= {"num_queries": 65536, "encoder_ffn_dim": 65536, "decoder_ffn_dim": 65536}
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(
        ValueError,
        match=r"don't match.* is \(64,\), expected \(65536,\).*and \d+ more.*ignore_mism",
    ):
        load(folder)
    config |= {"encoder_ffn_dim": 64, "decoder_ffn_dim": 64, "num_queries": 9}
    (folder / "config.json").write_text(json.dumps(config))
    loaded = load(folder, ignore_mismatched_sizes=True)
    assert loaded.model.query_position_embeddings.weight.shape == (9, 64)


@pytest.mark.parametrize("dtype", [torch.int8, torch.uint8, torch.bool, torch.float8_e4m3fn])
@pytest.mark.parametrize("ignore", [True, False])
def test_quantized_weights(folder: Path, dtype: torch.dtype, ignore: bool) -> None:
    """Numbers that need a scale aren't cast to floating-point numbers silently."""
    path = folder / "model.safetensors"
    tensors = load_file(path)
    tensors["model.encoder.layers.0.fc1.weight"] = torch.ones(64, 64).to(dtype)
    save_file(tensors, path, metadata={"format": "pt"})
    with pytest.raises(ValueError, match=r"layers.0.fc1.weight \((I8|U8|BOOL|F8_E4M3)\).*before"):
        load(folder, ignore_mismatched_sizes=ignore)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_nonfinite_weights(folder: Path, value: float, dtype: torch.dtype) -> None:
    """NaN and infinity, as from a diverged training, are rejected."""
    path = folder / "model.safetensors"
    tensors = load_file(path)
    tensors["class_labels_classifier.weight"][3, 5] = value
    save_file(tensors, path, metadata={"format": "pt"})
    with pytest.raises(ValueError, match="NaN or infinity in class_labels_classifier.weight\\."):
        load(folder, dtype=dtype)


def test_many_nonfinite_weights() -> None:
    """The error names the first tensors only; integers and empty tensors are no problem."""
    model = tiny_detector("detr")
    check_finite(model)
    model.register_buffer("number", torch.tensor(3))
    model.register_buffer("nothing", torch.zeros(0))
    check_finite(model)
    for tensor in model.state_dict().values():
        if tensor.is_floating_point():
            tensor.fill_(torch.nan)
    with pytest.raises(ValueError, match=r"NaN or infinity in (\S+, ){2}\S+ and \d+ more\."):
        check_finite(model)


@pytest.mark.parametrize("how", ["..", "absolute", "missing"])
def test_index_outside_the_folder(folder: Path, how: str) -> None:
    """An index with files outside the folder or missing files is rejected."""
    outside = folder.parent / "outside.safetensors"
    os.rename(folder / "model.safetensors", outside)
    name = {"..": "../outside.safetensors", "absolute": str(outside), "missing": "x.safetensors"}
    index = {"metadata": {}, "weight_map": dict.fromkeys(load_file(outside), name[how])}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(ValueError, match="doesn't exist" if how == "missing" else "is outside"):
        load(folder)
    os.rename(outside, folder / "inside.safetensors")
    index["weight_map"] = dict.fromkeys(index["weight_map"], "inside.safetensors")
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    load(folder)


def test_links_within_the_folder_are_followed(folder: Path) -> None:
    """Links out of the folder, as in the Hub's cache, are allowed."""
    os.rename(folder / "model.safetensors", folder.parent / "blob")
    (folder / "model.safetensors").symlink_to(folder.parent / "blob")
    load(folder)


def test_unpickling_is_rejected(folder: Path, variant: str) -> None:
    """No option allows pickled weights."""
    for option in ("use_safetensors", "weights_only"):
        with pytest.raises(ValueError, match="unpickle weights, which can run code"):
            class_of(variant, "ForObjectDetection").from_pretrained(folder, **{option: False})


@pytest.mark.parametrize("file", ["pytorch_model.bin", "pytorch_model.bin.index.json"])
@pytest.mark.parametrize("subfolder", ["", "inner"])
def test_pickled_weights_are_named(folder: Path, file: str, subfolder: str) -> None:
    """A folder whose weights are a pickle says so and how to convert them."""
    (folder / "model.safetensors").rename(folder / file)
    if subfolder:
        folder.rename(folder.parent / subfolder)
        folder = folder.parent
    with pytest.raises(OSError, match=r"only as pytorch_model.bin, a pickle.*transformers in a"):
        load(folder, subfolder=subfolder)


def test_missing_weights(folder: Path) -> None:
    """Without any weights, and without any folder, the error is transformers' own."""
    (folder / "model.safetensors").unlink()
    with pytest.raises(OSError, match="no file named model.safetensors"):
        load(folder)
    with pytest.raises(OSError, match="nothing"):
        load(folder / "nothing")


def test_a_missing_shard_beside_a_pickle(folder: Path) -> None:
    """The advice to convert a pickle is for folders without safetensors."""
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    index = {"metadata": {}, "weight_map": {"a": "model-00001-of-00001.safetensors"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises((OSError, ValueError), match="model-00001-of-00001") as error:
        load(folder)
    assert "pickle" not in str(error.value)


def test_other_architectures(folder: Path) -> None:
    """Weights of Table Transformer have the names of DETR's, but another meaning."""
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "model_type": "table-transformer"}))
    with pytest.raises(ValueError, match=r"a 'table-transformer' model; DetrConfig reads 'detr'"):
        load(folder)
    config = hf_detr.DetrConfig.from_dict(config)
    assert load(folder, config=config).config.model_type == "detr"


def test_unknown_configuration_fields(folder: Path) -> None:
    """An unknown field in config.json gives a warning that suggests a similar one."""
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "num_querys": 7}))
    with pytest.warns(UserWarning, match="no field 'num_querys'.*did you mean 'num_queries'"):
        load(folder)


def test_configuration_of_transformers(folder: Path) -> None:
    """transformers' class of the same name is refused, and the message says how to convert it."""
    theirs = transformers.DetrConfig.from_pretrained(folder)
    with pytest.raises(TypeError, match=r"of transformers.*DetrConfig\.from_dict") as info:
        hf_detr.DetrForObjectDetection.from_pretrained(folder, config=theirs)
    assert "of hf_detr.models" in str(info.value)
    ours = hf_detr.DetrConfig.from_dict(theirs.to_dict())
    hf_detr.DetrForObjectDetection.from_pretrained(folder, config=ours)
