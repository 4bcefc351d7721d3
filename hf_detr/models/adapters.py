"""LoRA adapters of PEFT, also those that were trained on transformers' own models.

transformers names modules otherwise than files do, and adapters have the modules' names.
"""

import re
from collections.abc import Collection, Mapping
from typing import Any

from safetensors.torch import load_file
from torch import Tensor, nn
from transformers.utils import cached_file

from ..wording import some_of

PREFIX = "base_model.model."  # of PEFT's files
MARK = ".lora_"
SHOWN = 3
# Names of modules in transformers, and ours
TRANSFORMERS_NAMES = {
    r"(layers\.\d+)\.mlp\.(fc[12])\b": r"\1.\2",
    r"\bo_proj\b": "out_proj",
    r"\bbackbone\.model\b": "backbone.conv_encoder.model",
}


def load_adapter_file(
    name: str, new_names: Mapping[str, str], **download: Any
) -> tuple[Any, dict[str, Tensor]]:
    """An adapter for a model of ours: its configuration and its weights.

    The configuration names the modules of the weights, because `target_modules` may have names that
    mean other modules here.

    Args:
        name: the adapter's folder or repository.
        new_names: {regular expression in transformers' names: replacement}.
        download: options of the download, such as `revision`.

    Raises:
        OSError: without `adapter_model.safetensors`.
        ValueError: for settings of single modules that transformers names otherwise.
    """
    from peft import PeftConfig, PeftType

    config = PeftConfig.from_pretrained(name, **download)
    saved = load_file(cached_file(name, "adapter_model.safetensors", **download))
    weights = {_rename(key, new_names): tensor for key, tensor in saved.items()}
    if config.peft_type == PeftType.LORA:
        if weights.keys() != saved.keys() and (config.rank_pattern or config.alpha_pattern):
            raise ValueError(
                f"The adapter {name} has settings of single modules (rank_pattern, alpha_pattern) "
                "under transformers' names, which isn't supported; load it with transformers."
            )
        config.target_modules = {
            key.removeprefix(PREFIX).partition(MARK)[0] for key in weights if MARK in key
        }
    return config, weights


def check_adapter_weights(model: nn.Module, names: Collection[str], prefix: str) -> None:
    """Check that a model has the parameters of LoRA adapters that are about to be loaded.

    Args:
        model: with its adapters.
        names: of weights, those of other modules and kinds too.
        prefix: of the model's own names.

    Raises:
        ValueError: if it hasn't; the results would be those of a part of the adapter.
    """
    given = {name.removeprefix(prefix) for name in names if name.startswith(prefix)}
    given = {name for name in given if MARK in name}
    if not given:
        return
    unknown = sorted(given - model.state_dict().keys())
    if unknown:
        raise ValueError(
            f"The adapter has weights for {some_of(unknown, SHOWN)}, which target_modules doesn't "
            "give an adapter in this model. An adapter that was trained on transformers' own model "
            "is loaded by model.load_adapter(folder) instead of PeftModel.from_pretrained."
        )


def missing_weights(model: nn.Module, names: Collection[str], before: list[Tensor]) -> set[str]:
    """Return the weights that an adapter has added to a model, but not loaded.

    Args:
        model: with the adapter.
        names: of all tensors that weren't loaded, those of the model and of other adapters too.
        before: the model's parameters before the adapter was added.
    """
    named = dict(model.named_parameters(remove_duplicate=False))
    loaded = [tensor for name, tensor in named.items() if name not in names]
    known = {id(tensor) for tensor in (*before, *loaded)}  # a shared one may have another name
    return {name for name in names if name in named and id(named[name]) not in known}


def _rename(key: str, new_names: Mapping[str, str]) -> str:
    for old, new in new_names.items():
        key = re.sub(old, new, key)
    return key
