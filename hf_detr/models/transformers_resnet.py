"""Files with the ResNet of transformers (`use_timm_backbone=False`), read as timm's ResNet.

The networks are equal; configuration and weights have other names. Saving writes timm's.
"""

import re
from collections.abc import Iterable, Mapping
from typing import Any, TypeVar

from transformers import ResNetConfig

BLOCKS = {
    ("basic", (2, 2, 2, 2)): "resnet18",
    ("basic", (3, 4, 6, 3)): "resnet34",
    ("bottleneck", (3, 4, 6, 3)): "resnet50",
    ("bottleneck", (3, 4, 23, 3)): "resnet101",
    ("bottleneck", (3, 8, 36, 3)): "resnet152",
}
WIDTHS = {"basic": [64, 128, 256, 512], "bottleneck": [256, 512, 1024, 2048]}
# Fields that timm's ResNets have no other values of.
FIXED = ("embedding_size", "hidden_act", "downsample_in_first_stage", "downsample_in_bottleneck")
Value = TypeVar("Value")
PREFIX = r"(backbone\.conv_encoder\.model\.)"


def timm_configuration(nested: Mapping[str, Any]) -> dict[str, Any]:
    """The timm backbone that is equal to a `ResNetConfig`, as its name, channels and levels.

    Raises:
        ValueError: if timm has no such ResNet.
    """
    config = ResNetConfig(**{k: v for k, v in nested.items() if k != "model_type"})
    default = ResNetConfig()
    name = BLOCKS.get((config.layer_type, tuple(config.depths)))
    usual = config.hidden_sizes == WIDTHS.get(config.layer_type)
    if not (name and usual and all(getattr(config, n) == getattr(default, n) for n in FIXED)):
        raise ValueError(
            f"backbone_config is a ResNet of transformers with {config.layer_type} layers, depths "
            f"{config.depths} and widths {config.hidden_sizes}, which timm doesn't have; only "
            f"{', '.join(BLOCKS.values())} can be read. Set a timm model, for example "
            "backbone='resnet50'."
        )
    return {
        "backbone": name,
        "num_channels": config.num_channels,
        "out_indices": list(config.out_indices),
    }


def has_transformers_names(names: Iterable[str]) -> bool:
    """Whether names of weights are those of transformers' ResNet."""
    return any(re.search(PREFIX + r"embedder\.", name) for name in names)


def timm_names(weights: Mapping[str, Value]) -> dict[str, Value]:
    """Weights, or what is known of them, by the names of timm's ResNet."""
    return {_timm_name(name): value for name, value in weights.items()}


def _timm_name(name: str) -> str:
    kinds = {"convolution": "conv", "normalization": "bn"}
    name = re.sub(
        PREFIX + r"embedder\.embedder\.(convolution|normalization)",
        lambda m: f"{m[1]}{kinds[m[2]]}1",
        name,
    )
    name = re.sub(
        PREFIX + r"encoder\.stages\.(\d)\.layers\.",
        lambda m: f"{m[1]}layer{int(m[2]) + 1}.",
        name,
    )
    name = re.sub(
        PREFIX + r"(layer\d\.\d+)\.layer\.(\d)\.(convolution|normalization)",
        lambda m: f"{m[1]}{m[2]}.{kinds[m[4]]}{int(m[3]) + 1}",
        name,
    )
    return re.sub(
        PREFIX + r"(layer\d\.\d+)\.shortcut\.(convolution|normalization)",
        lambda m: f"{m[1]}{m[2]}.downsample.{int(m[3] == 'normalization')}",
        name,
    )
