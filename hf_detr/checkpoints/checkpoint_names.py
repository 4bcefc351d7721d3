"""Maps the names of weights on the Hub, which hf_detr uses, to those of the official code.

The official code fuses the projections of queries, keys and values into one matrix and lists a
shared head under several names.
"""

import re
from collections.abc import Callable, Mapping

from torch import Tensor

from ..models.variants import VARIANTS

Rules = tuple[tuple[str, str], ...]

_NETWORK = r"model\.backbone\.conv_encoder\.model\."
# Regular expressions and replacements, applied in order to a name on the Hub.
_SHARED_RULES: Rules = (
    *(
        # timm begins a stage with the merging of patches by which the one before it ends.
        (rf"^{_NETWORK}layers_{stage + 1}\.downsample\.", f"backbone.0.layers.{stage}.downsample.")
        for stage in range(3)
    ),
    (rf"^{_NETWORK}layers_(\d)\.", r"backbone.0.layers.\1."),
    (rf"^{_NETWORK}patch_embed\.", "backbone.0.patch_embed."),
    (r"^model\.backbone\.conv_encoder\.norms\.", "backbone.0.norm"),
    (rf"^{_NETWORK}", "backbone.0.body."),
    (r"^model\.(?:backbone\.)?position_embedding\.row_embeddings\.", "backbone.1.row_embed."),
    (r"^model\.(?:backbone\.)?position_embedding\.column_embeddings\.", "backbone.1.col_embed."),
    (r"^model\.query_position_embeddings\.", "query_embed."),
    (r"^model\.(input_proj\.|input_projection\.)", "input_proj."),
    (r"^model\.", "transformer."),
    (r"^class_labels_classifier\.", "class_embed."),
    (r"^bbox_predictor\.", "bbox_embed."),
    (r"^(transformer\.(?:en|de)coder\.)layernorm\.", r"\1norm."),
    (r"(\.layers\.\d+\.)fc([12])\.", r"\1linear\2."),
    (r"(\.encoder\.layers\.\d+\.)self_attn_layer_norm\.", r"\1norm1."),
    (r"(\.encoder\.layers\.\d+\.)final_layer_norm\.", r"\1norm2."),
    (r"(\.decoder\.layers\.\d+\.)final_layer_norm\.", r"\1norm3."),
)
DETECTOR = "detr."  # prefix of the detector's weights in a model with a mask head


def official_name(name: str, model_type: str) -> tuple[str, int | None]:
    """Return the official name of a weight and its third of the fused tensor's rows.

    Args:
        name: key of the state dict.
        model_type: of the configuration.

    Returns:
        The name, and 0, 1 or 2 for queries, keys and values, or None for a whole tensor.
    """
    prefix = DETECTOR if name.startswith(DETECTOR) else ""
    name = name.removeprefix(prefix)
    name = apply_rules(_SHARED_RULES + VARIANTS[model_type].official_names, name)
    part = re.search(r"\.([qkv])_proj\.(weight|bias)$", name)
    if part is None:
        return prefix + name, None
    return f"{prefix}{name[: part.start()]}.in_proj_{part[2]}", "qkv".index(part[1])


def apply_rules(rules: Rules, name: str) -> str:
    """Apply regular expressions and their replacements to a name, in order."""
    for pattern, replacement in rules:
        name = re.sub(pattern, replacement, name)
    return name


def rename_weights(
    weights: Mapping[str, Tensor], renamed: Callable[[str], str]
) -> dict[str, Tensor]:
    """Rename weights.

    Raises:
        ValueError: if two of them get the same name.
    """
    former: dict[str, str] = {}
    for name in weights:
        other = former.setdefault(renamed(name), name)
        if other != name:
            raise ValueError(f"{other!r} and {name!r} in the file are names of the same weight.")
    return {name: weights[before] for name, before in former.items()}


def repeated_names(name: str, num_layers: int, is_shared: bool) -> list[str]:
    """Return all official names of a weight where the decoder's heads are listed, too.

    The inverse of `first_name`, with one name per layer if all of `num_layers` share a head; other
    weights have one name.
    """
    head = re.fullmatch(r"(class_embed|bbox_embed)\.(\d+)\.(.+)", name)
    if head is None:
        return [name]
    layers = range(num_layers) if is_shared else [head[2]]
    places = ("", "transformer.decoder.")
    return [f"{place}{head[1]}.{layer}.{head[3]}" for place in places for layer in layers]


def first_name(name: str, is_shared: bool) -> str:
    """Return the first official name of a weight that may have several.

    Heads that the decoder uses are listed there, too, and a shared head is listed once per layer.
    Files may contain all of these names or only one.

    Args:
        name: official name of any weight.
        is_shared: whether all layers share one head.
    """
    head = re.fullmatch(r"(?:transformer\.decoder\.)?(class_embed|bbox_embed)\.(\d+)\.(.+)", name)
    if head is None:
        return name
    return f"{head[1]}.{0 if is_shared else head[2]}.{head[3]}"
