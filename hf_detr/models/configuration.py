"""The fields of `config.json` that all variants share, and their checks."""

import dataclasses
import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from huggingface_hub.dataclasses import strict
from huggingface_hub.errors import StrictDataclassError
from transformers import PreTrainedConfig

from ..atomic_saving import atomic_folder
from ..wording import warn_about_misspelt
from .configuration_backbone import SHORT_FORM, make_backbone_config, stored_kwargs
from .configuration_checks import (
    MOST,
    MOST_LAYERS,
    check_class_thresholds,
    check_number_of_labels,
    check_range,
    check_stored,
    check_transformer,
    warn_about_contradiction,
    warn_about_gaps,
)

Number = float | int  # JSON returns 0 for 0.0


@strict
class DetectionConfig(PreTrainedConfig):
    """Base of the variants' configurations, which reads files of transformers 4 and 5.

    The backbone can also be set by the fields of transformers 4: `backbone` (a timm name, with a
    tag for pretrained weights: those of the paper are `resnet50.tv_in1k`),
    `use_pretrained_backbone` and `backbone_kwargs`.

    Args:
        backbone_config: nested configuration of the timm backbone; default ResNet-50.
        num_channels: channels of `pixel_values`.
        num_queries: number of object queries, the maximum number of detections per image.
        d_model: width of the transformer, a multiple of 4 and of the head counts.
        encoder_layers, decoder_layers: numbers of layers.
        encoder_attention_heads, decoder_attention_heads: numbers of attention heads.
        encoder_ffn_dim, decoder_ffn_dim: hidden width of the feed-forward networks.
        activation_function: activation of the feed-forward networks.
        dropout: dropout probability of the output of each sub-layer, in [0, 1].
        attention_dropout: dropout probability of attention weights, in [0, 1].
        activation_dropout: dropout probability in the feed-forward networks, in [0, 1].
        encoder_layerdrop, decoder_layerdrop: read for compatibility; must be 0.
        position_embedding_type: `"sine"` or `"learned"` (at most 50 x 50 feature cells).
        dilation: whether the last stage has dilation instead of stride (DC5).
        auxiliary_loss: whether to compute the loss of every decoder layer; predictions don't depend
            on it.
        class_cost, bbox_cost, giou_cost: weights of the matching cost.
        bbox_loss_coefficient, giou_loss_coefficient: weights of the box losses.
        mask_loss_coefficient, dice_loss_coefficient: weights of the mask losses.
        eos_coefficient: weight of "no object" in the classification loss.
        init_std, init_xavier_std: fields of transformers, unused.
        class_thresholds: class name -> score in [0, 1] that its objects must exceed in prediction
            if no threshold is given; 0.5 for other classes. Only hf_detr reads it.

    Raises:
        ValueError: if two forms of the backbone differ, or `class_thresholds` has other names than
            `id2label` or isn't in [0, 1].
        StrictDataclassError: if a value has a wrong type or is out of range.
    """

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
    # Deviation: the defaults of transformers for the next two are 0.0, but the paper's training has
    # dropout of attention weights and hidden units.
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
    class_thresholds: dict[str, Number] | None = None

    def __post_init__(self, **kwargs: Any) -> None:
        self.backbone_config = make_backbone_config(
            self.backbone_config, self.dilation, self.num_channels, self.num_backbone_levels, kwargs
        )
        unknown = [name for name in kwargs if name not in self.attribute_map]
        fields = [field.name for field in dataclasses.fields(self)]
        warn_about_misspelt(unknown, fields, type(self).__name__)
        check_number_of_labels(kwargs.get("num_labels"))
        for name in WEIGHTS:
            # transformers requires integers in most of these fields.
            value = getattr(self, name)
            if isinstance(value, float) and value.is_integer():
                setattr(self, name, int(value))
        super().__post_init__(**kwargs)
        warn_about_contradiction(self.id2label, self.label2id)
        warn_about_gaps(self.id2label)
        self.label2id = {label: index for index, label in self.id2label.items()}
        check_class_thresholds(self.class_thresholds, self.id2label)

    @classmethod
    def from_dict(cls, config_dict: dict[str, Any], **kwargs: Any) -> Any:
        """As in transformers, but overrides are checked as the values of the file.

        Raises:
            ValueError: if a value has a wrong type or is out of range.
        """
        check_stored(config_dict, cls)
        fields = {field.name for field in dataclasses.fields(cls)}
        fields -= {field.name for field in dataclasses.fields(PreTrainedConfig)} - {"id2label"}
        names = fields | SHORT_FORM | set(cls.attribute_map) | {"num_labels"}
        changes = {name: kwargs.pop(name) for name in names & set(kwargs)}
        replaced = {cls.attribute_map.get(name, name) for name in changes}
        if replaced & {"id2label", "num_labels"}:
            replaced |= {"id2label", "label2id", "num_labels"}
        if "num_channels" in changes and config_dict.get("backbone_config"):
            nested = {**config_dict["backbone_config"], "num_channels": changes["num_channels"]}
            config_dict = {**config_dict, "backbone_config": nested}
        if replaced & (SHORT_FORM | {"dilation"}):
            # The overrides replace all fields of the backbone in the file.
            nested = config_dict.get("backbone_config") or {}
            if "backbone" not in changes:
                changes["backbone"] = nested.get("backbone", config_dict.get("backbone"))
                changes.setdefault("backbone_kwargs", stored_kwargs(config_dict, changes))
            replaced |= SHORT_FORM | {"backbone_config"}
        kept = {
            name: value
            for name, value in config_dict.items()
            if cls.attribute_map.get(name, name) not in replaced
        }
        if "id2label" in replaced and kept.get("class_thresholds"):  # only those of the same names
            names = set((changes.get("id2label") or {}).values())
            stored = kept["class_thresholds"].items()
            kept["class_thresholds"] = {name: score for name, score in stored if name in names}
        try:
            return super().from_dict({**kept, **changes}, **kwargs)
        except StrictDataclassError as error:
            raise ValueError(f"The configuration is invalid: {error.__cause__}") from error

    def to_dict(self) -> dict[str, Any]:
        """As in transformers, without `class_thresholds` if there are none."""
        values = super().to_dict()
        if not values.get("class_thresholds"):
            values.pop("class_thresholds", None)
        return values

    def save_pretrained(self, save_directory: str | os.PathLike, **kwargs: Any) -> None:
        """Write `config.json`; arguments as in transformers."""
        if self.auxiliary_loss:
            warnings.warn(
                "auxiliary_loss=True is written to config.json. It doesn't change predictions of "
                "hf_detr, but makes those of transformers wrong. Set "
                "model.config.auxiliary_loss = False before publishing the model.",
                stacklevel=2,
            )
        if kwargs.get("push_to_hub"):
            kwargs.setdefault("repo_id", Path(save_directory).name)
        with atomic_folder(save_directory) as folder:
            super().save_pretrained(folder, **kwargs)

    @property
    def num_backbone_levels(self) -> int:
        """Default number of the backbone's last feature maps that are used."""
        return 4

    @property
    def queries_per_image(self) -> int:
        """Number of queries that the decoder has for an image."""
        return self.num_queries

    @queries_per_image.setter
    def queries_per_image(self, number: int) -> None:
        self.num_queries = number

    @property
    def normalize_before(self) -> bool:
        """Whether layer norms are before attention and feed-forward networks; else after."""
        return False

    @property
    def backbone(self) -> str:
        """Name of the backbone in timm."""
        return self.backbone_config.backbone

    def validate_architecture(self) -> None:
        """Check the values; called by the base class."""
        check_transformer(self)
        check_class_thresholds(self.class_thresholds, self.id2label)
        check_range(self, SIZES, low=1, high=MOST)
        check_range(self, ("encoder_layers", "decoder_layers"), low=1, high=MOST_LAYERS)
        check_range(self, PROBABILITIES, low=0, high=1)
        check_range(self, WEIGHTS, low=0)


SIZES = (
    *("num_channels", "num_queries", "num_labels", "d_model", "encoder_ffn_dim", "decoder_ffn_dim"),
    *("encoder_attention_heads", "decoder_attention_heads"),
)
PROBABILITIES = ("dropout", "attention_dropout", "activation_dropout")
WEIGHTS = (
    *("class_cost", "bbox_cost", "giou_cost", "bbox_loss_coefficient", "giou_loss_coefficient"),
    *("mask_loss_coefficient", "dice_loss_coefficient", "eos_coefficient"),
)


@contextmanager
def without_auxiliary_loss(config: PreTrainedConfig) -> Iterator[None]:
    """Turn `auxiliary_loss` off while files are written that transformers may load.

    Only training needs it, and transformers' predictions are wrong with it.
    """
    trained_so, config.auxiliary_loss = config.auxiliary_loss, False
    try:
        yield
    finally:
        config.auxiliary_loss = trained_so
