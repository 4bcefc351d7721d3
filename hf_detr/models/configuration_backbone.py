"""The backbone's part of a configuration, in the forms of transformers 4 and 5."""

from collections.abc import Collection
from typing import Any

from transformers import PreTrainedConfig, TimmBackboneConfig

from .transformers_resnet import timm_configuration

DC5_STRIDE = 16
# Keys of transformers 4 for the backbone, also a short form for users.
SHORT_FORM = {"backbone", "backbone_kwargs", "use_timm_backbone", "use_pretrained_backbone"}


KWARGS = ("in_chans", "out_indices", "output_stride", "output_norm")


def stored_kwargs(stored: dict[str, Any], changes: Collection[str]) -> dict[str, Any]:
    """Return the `backbone_kwargs` of a stored configuration, of which some fields will change."""
    kwargs = stored.get("backbone_config") or stored.get("backbone_kwargs") or {}
    changed = {"in_chans"} | ({"output_stride"} if "dilation" in changes else set())
    return {name: kwargs[name] for name in KWARGS if name in kwargs and name not in changed}


def make_backbone_config(
    backbone_config: dict | PreTrainedConfig | None,
    dilation: bool,
    num_channels: int,
    num_levels: int,
    kwargs: dict[str, Any],
) -> TimmBackboneConfig:
    """Make the nested backbone configuration from any form of transformers 4 and 5.

    transformers 5 has a nested configuration, transformers 4 the fields `backbone`,
    `backbone_kwargs`, `use_timm_backbone` and `use_pretrained_backbone`, which are removed from
    `kwargs`.

    Raises:
        ValueError: if two forms have different backbones, or timm doesn't have the backbone.
    """
    name = kwargs.pop("backbone", None)
    options = kwargs.pop("backbone_kwargs", None) or {}
    use_timm = kwargs.pop("use_timm_backbone", True)
    use_pretrained = kwargs.pop("use_pretrained_backbone", None)

    unknown = set(options) - set(KWARGS)
    if unknown:
        raise ValueError(
            f"backbone_kwargs has {sorted(unknown)}; only {', '.join(KWARGS)} are supported."
        )
    if not isinstance(options.get("output_norm", False), bool):
        raise ValueError(f"output_norm is {options['output_norm']!r}; expected True or False.")
    nested = backbone_config or {}
    if isinstance(nested, PreTrainedConfig):
        nested = nested.to_dict()
    kind = nested.get("model_type", "timm_backbone")
    if kind == "resnet" and name is None and not dilation:
        nested = timm_configuration(nested)
    elif kind != "timm_backbone" or use_timm is False:
        raise ValueError(
            f"The configuration has a backbone of transformers (model_type {kind!r}, "
            f"use_timm_backbone={use_timm}, dilation={dilation}); only backbones from timm are "
            "supported, and transformers' ResNet without dilation. Set a timm model, for example "
            "backbone='resnet50', and use weights saved with it (on the Hub usually revision "
            "'main')."
        )
    if name is not None and nested.get("backbone", name) != name:
        raise ValueError(
            f"backbone is {name!r}, but backbone_config has {nested['backbone']!r}; set only one."
        )
    # Negative indices are independent of whether timm includes the stem as a level.
    levels = list(range(-num_levels, 0))
    if name is None:  # ResNet-50, in the form of transformers
        levels = [5 + level for level in levels]
    values = {
        "backbone": name or "resnet50",
        "num_channels": options.get("in_chans", num_channels),
        "out_indices": list(options.get("out_indices") or levels),
        "output_stride": options.get("output_stride"),
        "use_pretrained_backbone": False,
        **({"output_norm": True} if options.get("output_norm") else {}),
        **nested,
    }
    if use_pretrained is not None:
        values["use_pretrained_backbone"] = use_pretrained
    values.pop("model_type", None)
    if values["num_channels"] != num_channels:
        raise ValueError(
            f"num_channels is {num_channels}, but that of the backbone is "
            f"{values['num_channels']}; both are the channels of pixel_values and must be equal."
        )
    if dilation and values["output_stride"] is None:
        values["output_stride"] = DC5_STRIDE
    return TimmBackboneConfig(**values)
