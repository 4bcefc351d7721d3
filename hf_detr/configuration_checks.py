"""Sentences for configurations that no model can be built from."""

import dataclasses
import difflib
import math
import warnings
from typing import Any

import torch
from transformers import PreTrainedConfig
from transformers.activations import ACT2FN

# No detector comes near; a file that asks for more would fill the memory before it is refused.
MOST, MOST_LAYERS = 2**16, 1000


def warn_about_misspelt(kwargs: dict[str, Any], config_class: type[PreTrainedConfig]) -> None:
    """Warn of unknown keys that look like a field: the base class keeps any key, silently."""
    fields = [field.name for field in dataclasses.fields(config_class)]
    for key in kwargs:
        close = difflib.get_close_matches(key, fields, n=1, cutoff=0.85)
        if close and key not in config_class.attribute_map:
            warnings.warn(
                f"{config_class.__name__} has no field {key!r}, so it changes nothing; did you "
                f"mean {close[0]!r}?",
                stacklevel=2,
            )


def check_stored(stored: Any, config_class: type[PreTrainedConfig]) -> None:
    """Refuse contents of a config.json that transformers would fall over, not saying which.

    Raises:
        ValueError: in words.
    """
    if not isinstance(stored, dict):
        raise ValueError(f"config.json holds a {type(stored).__name__}; expected named fields.")
    for name in stored:
        if name == "attribute_map" or callable(getattr(config_class, name, None)):
            raise ValueError(f"config.json has a field {name!r}, which would replace code.")
    labels = stored.get("id2label")
    if labels is not None and not (
        isinstance(labels, dict) and all(str(number).isdecimal() for number in labels)
    ):
        raise ValueError(
            f"id2label is {_shortened(labels)}; expected numbers with the classes' names, such as "
            '{"0": "cat"}.'
        )
    numbers = stored.get("label2id")
    if numbers is not None and not isinstance(numbers, dict):
        raise ValueError(
            f"label2id is {_shortened(numbers)}; expected names with the classes' numbers, such as "
            '{"cat": 0}.'
        )
    for name in ("dtype", "torch_dtype"):
        dtype = stored.get(name)
        if isinstance(dtype, str):
            dtype = getattr(torch, dtype.removeprefix("torch."), dtype)
        if dtype is not None and not (isinstance(dtype, torch.dtype) and dtype.is_floating_point):
            raise ValueError(f"{name} is {stored[name]!r}; expected a float type, as 'float32'.")


def check_number_of_labels(number: Any) -> None:
    """Refuse numbers of classes that names would be made up for until memory is full."""
    if number is not None and not (isinstance(number, int) and 1 <= number <= MOST):
        raise ValueError(f"num_labels is {number!r}; it must be a whole number from 1 to {MOST}.")


def _shortened(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:60]}…"


def check_range(
    config: PreTrainedConfig, names: tuple[str, ...], low: float | int, high: float | int = math.inf
) -> None:
    """Refuse fields outside [low, high], infinity and NaN."""
    for name in names:
        value = getattr(config, name)
        if not (low <= value <= high and math.isfinite(value)):
            limits = f"at least {low} and finite" if high == math.inf else f"from {low} to {high}"
            raise ValueError(f"{name} is {value}; it must be {limits}.")


def check_transformer(config: PreTrainedConfig) -> None:
    """Refuse widths, head counts, names and drops that no transformer can be built from."""
    if config.d_model % 4:
        raise ValueError(
            f"d_model is {config.d_model}; it must be a multiple of 4: the position encoding "
            "gives a half to y and a half to x, and each half to sines and cosines."
        )
    for name in ("encoder_attention_heads", "decoder_attention_heads"):
        heads = getattr(config, name)
        if heads > 0 and config.d_model % heads:
            raise ValueError(
                f"d_model ({config.d_model}) isn't a multiple of {name} ({heads}); every head "
                "needs the same width."
            )
    if config.activation_function not in ACT2FN:
        raise ValueError(
            f"activation_function {config.activation_function!r} is unknown; use one of "
            f"{', '.join(sorted(ACT2FN))}."
        )
    if config.position_embedding_type not in ("sine", "learned"):
        raise ValueError(
            f"position_embedding_type is {config.position_embedding_type!r}; use 'sine' or "
            "'learned'."
        )
    for name in ("encoder_layerdrop", "decoder_layerdrop"):
        if getattr(config, name) != 0:
            raise ValueError(
                f"{name} is {getattr(config, name)}; dropping whole layers isn't part of DETR "
                "and isn't implemented here. Set it to 0."
            )
