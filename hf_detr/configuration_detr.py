"""Configurations: the fields of `config.json`, with the paper's values as defaults."""

import dataclasses
import difflib
import math
import os
import warnings
from typing import Any

from huggingface_hub.dataclasses import strict
from transformers import PreTrainedConfig, TimmBackboneConfig
from transformers.activations import ACT2FN

Number = float | int  # JSON returns 0 for 0.0
DC5_STRIDE = 16


@strict
class DetrConfig(PreTrainedConfig):
    """Configuration of DETR (arXiv 2005.12870); reads what transformers 4 and 5 wrote.

    Besides the fields below it takes transformers 4's short form for the backbone: `backbone`
    (a timm name, with its tag where pretrained weights matter: the paper's are
    `resnet50.tv_in1k`), `use_pretrained_backbone` and `backbone_kwargs`.

    Args:
        backbone_config: nested configuration of the timm backbone; default ResNet-50.
        num_channels: channels of `pixel_values`.
        num_queries: object queries, the most objects that can be found in an image.
        d_model: width of the transformer, a multiple of 4 and of the head counts.
        encoder_layers, decoder_layers: depth.
        encoder_attention_heads, decoder_attention_heads: heads.
        encoder_ffn_dim, decoder_ffn_dim: hidden width of the feed-forward networks.
        activation_function: activation of the feed-forward networks.
        dropout: on what each sub-layer adds, in [0, 1].
        attention_dropout: on attention weights, in [0, 1].
        activation_dropout: inside the feed-forward networks, in [0, 1].
        encoder_layerdrop, decoder_layerdrop: read for compatibility; must be 0.
        position_embedding_type: `"sine"` or `"learned"` (at most 50 x 50 feature cells).
        dilation: DC5, the last stage keeps its resolution by dilation instead of stride.
        auxiliary_loss: train every decoder layer; predictions don't depend on it.
        class_cost, bbox_cost, giou_cost: weights of the matching cost.
        bbox_loss_coefficient, giou_loss_coefficient: weights of the box losses.
        mask_loss_coefficient, dice_loss_coefficient: weights of the mask losses.
        eos_coefficient: weight of "no object" in the classification loss.
        init_std, init_xavier_std: written by transformers, not used here.

    Raises:
        ValueError: if two forms of the backbone contradict each other.
        StrictDataclassError: if a value has a wrong type or lies outside its range, in words.
    """

    model_type = "detr"
    attribute_map = {
        "hidden_size": "d_model",
        "num_attention_heads": "encoder_attention_heads",
        "num_hidden_layers": "encoder_layers",
    }

    backbone_config: dict[str, Any] | PreTrainedConfig | None = None
    num_channels: int = 3
    num_queries: int = 100
    d_model: int = 256
    encoder_layers: int = 6
    encoder_attention_heads: int = 8
    encoder_ffn_dim: int = 2048
    decoder_layers: int = 6
    decoder_attention_heads: int = 8
    decoder_ffn_dim: int = 2048
    is_encoder_decoder: bool = True
    activation_function: str = "relu"
    # Deviation: the paper's training drops attention weights and hidden units too, transformers'
    # defaults (0.0) don't. Files say which they want.
    dropout: Number = 0.1
    attention_dropout: Number = 0.1
    activation_dropout: Number = 0.1
    encoder_layerdrop: Number = 0.0
    decoder_layerdrop: Number = 0.0
    position_embedding_type: str = "sine"
    dilation: bool = False
    # Deviation: on, as in the paper; transformers' default is off.
    auxiliary_loss: bool = True
    class_cost: Number = 1
    bbox_cost: Number = 5
    giou_cost: Number = 2
    bbox_loss_coefficient: Number = 5
    giou_loss_coefficient: Number = 2
    mask_loss_coefficient: Number = 1
    dice_loss_coefficient: Number = 1
    eos_coefficient: Number = 0.1
    init_std: Number = 0.02
    init_xavier_std: Number = 1.0

    def __post_init__(self, **kwargs: Any) -> None:
        self.backbone_config = make_backbone_config(
            self.backbone_config, self.dilation, self.num_channels, kwargs
        )
        warn_about_misspelt(kwargs, type(self))
        for name in WEIGHTS:
            # transformers' own class wants whole numbers as integers in most of these fields.
            value = getattr(self, name)
            if isinstance(value, float) and value.is_integer():
                setattr(self, name, int(value))
        super().__post_init__(**kwargs)

    def save_pretrained(self, save_directory: str | os.PathLike, **kwargs: Any) -> None:
        """Write `config.json`; arguments as in transformers."""
        if self.auxiliary_loss:
            warnings.warn(
                "auxiliary_loss=True is written to config.json. hf_detr's predictions don't "
                "depend on it, but those of transformers' own DETR do, and are then wrong. "
                "Before publishing set model.config.auxiliary_loss = False.",
                stacklevel=2,
            )
        super().save_pretrained(save_directory, **kwargs)

    @property
    def backbone(self) -> str:
        """timm's name of the backbone."""
        return self.backbone_config.backbone

    def validate_architecture(self) -> None:
        """Refuse values that no model can be built from; called by the base class."""
        check_transformer(self)
        check_range(self, POSITIVE_INTEGERS, low=1)
        check_range(self, ("num_labels",), low=1)
        check_range(self, PROBABILITIES, low=0, high=1)
        check_range(self, WEIGHTS, low=0)


@strict
class ConditionalDetrConfig(DetrConfig):
    """Configuration of Conditional DETR (arXiv 2108.06152); fields as DETR's but for these.

    Args:
        cls_loss_coefficient: weight of the classification loss; transformers writes it and
            doesn't read it.
        focal_alpha: weight of an object's class in the focal loss, in [0, 1].
    """

    model_type = "conditional_detr"

    num_queries: int = 300
    class_cost: Number = 2
    cls_loss_coefficient: Number = 2
    focal_alpha: Number = 0.25

    def validate_architecture(self) -> None:
        """Refuse values that no model can be built from; called by the base class."""
        super().validate_architecture()
        check_range(self, ("focal_alpha",), low=0, high=1)
        check_range(self, ("cls_loss_coefficient",), low=0)


POSITIVE_INTEGERS = (
    *("num_channels", "num_queries", "d_model", "encoder_layers", "decoder_layers"),
    *("encoder_attention_heads", "decoder_attention_heads", "encoder_ffn_dim", "decoder_ffn_dim"),
)
PROBABILITIES = ("dropout", "attention_dropout", "activation_dropout")
WEIGHTS = (
    *("class_cost", "bbox_cost", "giou_cost", "bbox_loss_coefficient", "giou_loss_coefficient"),
    *("mask_loss_coefficient", "dice_loss_coefficient", "eos_coefficient"),
)


def make_backbone_config(
    backbone_config: dict | PreTrainedConfig | None,
    dilation: bool,
    num_channels: int,
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
    # Counted from the end, the last four levels exist whether or not timm lists the stem as one.
    levels = [1, 2, 3, 4] if name is None else [-4, -3, -2, -1]
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
    config: PreTrainedConfig, names: tuple[str, ...], low: Number, high: Number = math.inf
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
