"""The backbone's part of a configuration, in the forms that files have had over the years."""

from typing import Any

from transformers import PreTrainedConfig, TimmBackboneConfig

DC5_STRIDE = 16
# transformers 4's keys for the backbone, also a short way to choose one.
SHORT_FORM = {"backbone", "backbone_kwargs", "use_timm_backbone", "use_pretrained_backbone"}


def make_backbone_config(
    backbone_config: dict | PreTrainedConfig | None,
    dilation: bool,
    num_channels: int,
    num_levels: int,
    kwargs: dict[str, Any],
) -> TimmBackboneConfig:
    """The nested backbone configuration, from any form that transformers 4 and 5 wrote.

    transformers 5 nests it; transformers 4 wrote `backbone`, `backbone_kwargs`,
    `use_timm_backbone` and `use_pretrained_backbone` beside the other fields. These four are
    taken out of `kwargs`.

    Raises:
        ValueError: if two forms name different backbones, or the backbone isn't one of timm's.
    """
    name = kwargs.pop("backbone", None)
    options = kwargs.pop("backbone_kwargs", None) or {}
    use_timm = kwargs.pop("use_timm_backbone", True)
    use_pretrained = kwargs.pop("use_pretrained_backbone", None)

    unknown = set(options) - {"in_chans", "out_indices", "output_stride"}
    if unknown:
        raise ValueError(
            f"backbone_kwargs has {sorted(unknown)}; only in_chans, out_indices and output_stride "
            "are understood, others would be lost."
        )
    nested = backbone_config or {}
    if isinstance(nested, PreTrainedConfig):
        nested = nested.to_dict()
    kind = nested.get("model_type", "timm_backbone")
    if kind != "timm_backbone" or use_timm is False:
        raise ValueError(
            f"The configuration asks for transformers' own backbone (model_type {kind!r}, "
            f"use_timm_backbone={use_timm}); hf_detr takes backbones from timm only. Name a timm "
            "model, for example backbone='resnet50', and use weights saved with it (on the Hub "
            "usually revision 'main')."
        )
    if name is not None and nested.get("backbone", name) != name:
        raise ValueError(
            f"backbone={name!r}, but backbone_config names {nested['backbone']!r}; give one."
        )
    # Counted from the end, the last levels exist whether or not timm lists the stem as one.
    levels = list(range(-num_levels, 0))
    if name is None:  # ResNet-50, in the form that transformers writes
        levels = [5 + level for level in levels]
    values = {
        "backbone": name or "resnet50",
        "num_channels": options.get("in_chans", num_channels),
        "out_indices": list(options.get("out_indices") or levels),
        "output_stride": options.get("output_stride"),
        "use_pretrained_backbone": False,
        **nested,
    }
    if use_pretrained is not None:
        values["use_pretrained_backbone"] = use_pretrained
    values.pop("model_type", None)
    if values["num_channels"] != num_channels:
        raise ValueError(
            f"num_channels is {num_channels}, but the backbone's is {values['num_channels']}; both "
            "are the channels of pixel_values and must be equal."
        )
    if dilation and values["output_stride"] is None:
        values["output_stride"] = DC5_STRIDE
    return TimmBackboneConfig(**values)
