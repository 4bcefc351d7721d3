"""Checks of configurations."""

import math
import warnings
from numbers import Real
from typing import Any

import torch
from transformers import PreTrainedConfig
from transformers.activations import ACT2FN

from ..wording import some_of

# Limits that protect the memory from invalid files.
MOST, MOST_LAYERS = 2**16, 1000


def warn_about_contradiction(id2label: dict[int, str], label2id: dict[str, int] | None) -> None:
    """Warn if `label2id` has other numbers than `id2label`, which is used."""
    numbers = {str(index): name for index, name in id2label.items()}  # files may have texts
    wrong = [f"{n!r}: {i}" for n, i in (label2id or {}).items() if numbers.get(str(i)) != n]
    if wrong:
        warnings.warn(
            f"label2id contradicts id2label in {some_of(wrong)}; id2label is used. Leave label2id "
            "out, or correct it.",
            stacklevel=2,
        )


def warn_about_gaps(id2label: dict[int, str]) -> None:
    """Warn if classes aren't numbered from 0 without gaps."""
    expected = set(range(len(id2label)))
    if set(id2label) != expected:
        found = some_of([str(label) for label in sorted(id2label)], 5)
        warnings.warn(
            f"id2label names the classes {found}, but the model's classes are 0 to "
            f"{len(id2label) - 1}; those without a name can't be shown. Number classes from 0 "
            "without gaps.",
            stacklevel=2,
        )


def check_stored(stored: Any, config_class: type[PreTrainedConfig]) -> None:
    """Check the contents of a config.json that would cause unclear errors in transformers.

    Raises:
        ValueError: if a field is invalid.
    """
    if not isinstance(stored, dict):
        raise ValueError(f"config.json contains a {type(stored).__name__}; expected a dict.")
    for name in stored:
        if name == "attribute_map" or callable(getattr(config_class, name, None)):
            raise ValueError(
                f"config.json has a field {name!r}, which is an attribute of the class; remove it."
            )
    _check_model_type(stored.get("model_type"), config_class)
    labels = stored.get("id2label")
    if labels is not None and not (
        isinstance(labels, dict) and all(str(number).isdecimal() for number in labels)
    ):
        raise ValueError(
            f"id2label is {_shortened(labels)}; expected a dict from label to class name, such as "
            '{"0": "cat"}.'
        )
    numbers = stored.get("label2id")
    if numbers is not None and not isinstance(numbers, dict):
        raise ValueError(
            f"label2id is {_shortened(numbers)}; expected a dict from class name to label, such as "
            '{"cat": 0}.'
        )
    for name in ("dtype", "torch_dtype"):
        dtype = stored.get(name)
        if isinstance(dtype, str):
            dtype = getattr(torch, dtype.removeprefix("torch."), dtype)
        if dtype is not None and not (isinstance(dtype, torch.dtype) and dtype.is_floating_point):
            raise ValueError(
                f"{name} is {stored[name]!r}; expected a float type, such as 'float32'."
            )


def _check_model_type(model_type: Any, config_class: type[PreTrainedConfig]) -> None:
    # Weights of a related architecture may have the same names and shapes and mean something else,
    # as those of Table Transformer do, which normalises before a layer instead of after it.
    own = {parent.model_type for parent in config_class.__mro__ if hasattr(parent, "model_type")}
    if model_type is not None and model_type not in own - {""}:
        raise ValueError(
            f"The configuration is that of a {model_type!r} model; {config_class.__name__} reads "
            f"{config_class.model_type!r}. Load it with AutoModelForObjectDetection, or give "
            "`config=` to use weights of another architecture."
        )


def check_number_of_labels(number: Any) -> None:
    """Check the number of classes before the names of that many classes are created."""
    if number is not None and not (isinstance(number, int) and 1 <= number <= MOST):
        raise ValueError(f"num_labels is {number!r}; it must be an integer from 1 to {MOST}.")


def check_class_thresholds(
    thresholds: Any, id2label: dict[int, str], field: str = "class_thresholds"
) -> None:
    """Check the scores that objects must exceed, by class name; None: there are none.

    Raises:
        ValueError: if a class is unknown, or a score isn't from 0 to 1.
    """
    names = set(id2label.values())
    for name, score in (thresholds or {}).items():
        if name not in names:
            raise ValueError(
                f"{field} has the class {name!r}, which isn't in id2label; expected names "
                f"such as {some_of(sorted(names), 3)}. Remove it, or correct its name."
            )
        is_number = isinstance(score, Real) and not isinstance(score, bool)
        if not (is_number and 0 <= score <= 1):
            raise ValueError(f"{field}[{name!r}] is {score!r}; expected a score from 0 to 1.")


def _shortened(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:60]}…"


def check_range(
    config: PreTrainedConfig, names: tuple[str, ...], low: float | int, high: float | int = math.inf
) -> None:
    """Check that fields are finite and in [low, high]."""
    for name in names:
        value = getattr(config, name)
        if not (low <= value <= high and math.isfinite(value)):
            limits = f"at least {low} and finite" if high == math.inf else f"from {low} to {high}"
            raise ValueError(f"{name} is {value}; it must be {limits}.")


def check_transformer(config: PreTrainedConfig) -> None:
    """Check widths, head counts, names and layer drop."""
    if config.d_model % 4:
        raise ValueError(
            f"d_model is {config.d_model}; it must be a multiple of 4, for sines and cosines of x "
            "and y in the position encoding."
        )
    for name in ("encoder_attention_heads", "decoder_attention_heads"):
        heads = getattr(config, name)
        if heads > 0 and config.d_model % heads:
            raise ValueError(f"d_model ({config.d_model}) must be a multiple of {name} ({heads}).")
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
                f"{name} is {getattr(config, name)}; layer drop is not supported. Set it to 0."
            )
