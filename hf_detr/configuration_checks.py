"""Sentences for configurations that no model can be built from."""

import dataclasses
import difflib
import math
import warnings
from typing import Any

from transformers import PreTrainedConfig
from transformers.activations import ACT2FN


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
