"""Derives the configuration of an official checkpoint from names, shapes and training options.

Dilation and the number of heads can't be derived from shapes. They are read from the options that
the training script saved with the weights, or from the name of a published file.
"""

import dataclasses
import math
import re
from collections.abc import Mapping
from typing import Any

import torch
from huggingface_hub.errors import StrictDataclassError
from torch import Tensor
from transformers import PreTrainedConfig

from ..losses.classification import SoftmaxClassification
from ..models.variants import VARIANTS
from .checkpoint_names import DETECTOR, first_name
from .coco_labels import coco_id2label
from .official_options import OPTIONS, RESNETS
from .published_checkpoints import find_published_checkpoint
from .swin_names import swin_fields


def read_configuration(
    weights: Mapping[str, Tensor],
    options: Mapping[str, Any],
    dilation: bool,
    num_heads: int,
    id2label: Mapping[int, str] | None = None,
) -> PreTrainedConfig:
    """Derive the configuration of official weights.

    Args:
        weights: the checkpoint's, with official names.
        options: known options of the official training script.
        dilation: whether the backbone is dilated (DC5).
        num_heads: number of heads in every attention.
        id2label: names of the classes. Default: COCO's if the number of classes is COCO's.

    Raises:
        ValueError: if the weights aren't a model of the official code or contradict each other.
    """
    model_type, has_masks = recognize(weights)
    _refuse_other_position_encodings(options)
    prefix = DETECTOR if has_masks else ""
    shapes = {
        name.removeprefix(prefix): tuple(tensor.shape)
        for name, tensor in weights.items()
        if name.startswith(prefix)
    }
    is_shared = heads_are_shared(weights)
    shapes |= {first_name(name, is_shared): shape for name, shape in shapes.items()}
    values = {field: options[option] for option, field in OPTIONS.items() if option in options}
    if "position_offset" in options:  # of other libraries; the official code has none
        values["position_offset"] = options["position_offset"]
    if "dropout" in values:
        values["attention_dropout"] = values["activation_dropout"] = values["dropout"]
    try:
        values |= _sizes(shapes, num_heads)
        classification = VARIANTS[model_type].image_processor.classification
        values["num_labels"] -= classification is SoftmaxClassification  # the last is "no object"
        if "transformer.level_embed" in shapes:
            values |= _sizes_of_levels(shapes, num_heads)
            values["with_box_refine"] = not is_shared
            values["shared_heads"] = is_shared
            if values["two_stage"]:
                values["two_stage_num_proposals"] = options.get("num_queries", 300)
    except KeyError as error:
        raise ValueError(f"The checkpoint lacks {error}; it seems to be incomplete.") from None
    except IndexError:
        raise ValueError("A weight of the checkpoint has fewer dimensions than expected.") from None
    config = _make(VARIANTS[model_type].config, values, dilation, id2label)
    _check_norms(config, options)
    return config


def _make(
    config_class: type[PreTrainedConfig],
    values: dict[str, Any],
    dilation: bool,
    id2label: Mapping[int, str] | None,
) -> PreTrainedConfig:
    num_labels = values["num_labels"]
    names = dict(id2label or coco_id2label(num_labels) or {})
    if names:
        if sorted(names) != list(range(num_labels)):
            raise ValueError(
                f"id2label must name the classes 0 to {num_labels - 1} of the checkpoint; got "
                f"{len(names)} names, from {min(names)} to {max(names)}."
            )
        values = {**values, "id2label": names}
        del values["num_labels"]
    fields = {field.name for field in dataclasses.fields(config_class)}
    fields |= {"num_labels", "backbone"}
    known = {name: value for name, value in values.items() if name in fields}
    of_backbone = ("out_indices", "output_norm")
    known["backbone_kwargs"] = {name: values[name] for name in of_backbone if name in values}
    try:
        # With auxiliary_loss=True in the file, transformers' DETR predicts wrongly.
        return config_class(dilation=dilation, auxiliary_loss=False, **known)
    except (StrictDataclassError, TypeError) as error:
        reason = " ".join(str(error).split())
        raise ValueError(f"The checkpoint's sizes or options are invalid: {reason}") from error


def recognize(weights: Mapping[str, Tensor]) -> tuple[str, bool]:
    """Return the model type of official weights and whether they have a mask head.

    Raises:
        ValueError: if the model isn't one of the variants.
    """
    has_masks = any(name.startswith("mask_head.") for name in weights)
    transformer = f"{DETECTOR if has_masks else ''}transformer."
    found = [
        (len(variant.official_marks), model_type)
        for model_type, variant in VARIANTS.items()
        if all(transformer + mark in weights for mark in variant.official_marks)
    ]
    if found:
        _, model_type = max(found)
        with_masks = [name for name, variant in VARIANTS.items() if variant.official_masks]
        if has_masks and model_type not in with_masks:
            raise ValueError(
                f"The checkpoint is a {model_type} model with a mask head, which can't be "
                f"converted; official models with masks are of the type {', '.join(with_masks)}."
            )
        return model_type, has_masks
    some = ", ".join(sorted(weights)[:5]) or "none"
    raise ValueError(
        "The weights are not a model of facebookresearch/detr, fundamentalvision/Deformable-DETR, "
        "Atten4Vis/ConditionalDETR, microsoft/table-transformer or IDEA-Research/DINO, nor one of "
        "the first three or DINO in MMDetection 2 or 3 or detrex, nor a Co-DINO. The file's first "
        f"names: {some}."
    )


def heads_are_shared(weights: Mapping[str, Tensor]) -> bool:
    """Return whether official weights list a head per layer although all layers share one."""
    if "class_embed.0.weight" not in weights:
        return False
    kinds = ["bbox_embed.{}.layers.0.weight"]
    if "transformer.enc_out_class_embed.weight" in weights:
        kinds.append("class_embed.{}.weight")  # layers' only: the proposals' have other names
    elif any(name.startswith("transformer.decoder.bbox_embed.") for name in weights):
        return False
    pairs = [(weights.get(kind.format(0)), weights.get(kind.format(1))) for kind in kinds]
    return all(
        second is None or first is None or torch.equal(first, second) for first, second in pairs
    )


def dilation_and_heads(
    options: Mapping[str, Any], file_name: str, dilation: bool | None, num_heads: int | None
) -> tuple[bool, int]:
    """Return dilation and the number of heads, which shapes don't show.

    Args:
        options: known options of the official training script.
        file_name: names of published files contain the backbone, and "dc5" if it is dilated.
        dilation, num_heads: values of the caller, which take precedence; None if unknown.

    Raises:
        ValueError: if a value is unknown, or `num_heads` isn't positive.
    """
    name = file_name.lower()
    published = find_published_checkpoint(file_name)
    if published is not None:
        options = {"dilation": published.make_config().dilation, "nheads": 8, **options}
    # Files of others that are named as these are
    elif re.search(r"(?<![a-z])r(?:esnet)?[-_]?(?:50|101)(?![0-9])|swin", name):
        options = {"dilation": "dc5" in name, "nheads": 8, **options}
    dilation = options.get("dilation") if dilation is None else dilation
    num_heads = options.get("nheads") if num_heads is None else num_heads
    if dilation is None or num_heads is None:
        raise ValueError(
            "Dilation of the backbone (DC5) and the number of attention heads are unknown: the "
            f"checkpoint has no such options, and {file_name!r} isn't the name of a published file "
            "(such as detr-r50-dc5-….pth). Pass dilation=True or False and num_heads (8 in the "
            "papers), on the command line --dilation or --no-dilation, and --num-heads."
        )
    if isinstance(num_heads, bool) or not isinstance(num_heads, int) or num_heads < 1:
        raise ValueError(f"num_heads is {num_heads!r}; expected a positive integer.")
    return bool(dilation), num_heads


def _check_norms(config: PreTrainedConfig, options: Mapping[str, Any]) -> None:
    if options.get("pre_norm", config.normalize_before) and not config.normalize_before:
        raise ValueError(
            "The checkpoint was trained with --pre_norm (layer norm before attention), which a "
            f"{config.model_type} model doesn't support; expected layer norm after attention, as "
            "in its paper, or a DETR with the weight transformer.encoder.norm.weight."
        )


def _refuse_other_position_encodings(options: Mapping[str, Any]) -> None:
    scale = options.get("position_embedding_scale", 2 * math.pi)
    if scale != 2 * math.pi:
        raise ValueError(f"position_embedding_scale is {scale}; expected 2π.")
    temperatures = [options[f"pe_temperature{d}"] for d in "HW" if f"pe_temperature{d}" in options]
    if len(set(temperatures)) > 1:
        raise ValueError(
            f"pe_temperatureH and pe_temperatureW are {temperatures}; expected the same number."
        )


Shapes = dict[str, tuple[int, ...]]


def _sizes(shapes: Shapes, num_heads: int) -> dict[str, Any]:
    """Fields that follow from shapes in all models; `num_labels` is the number of logits."""
    is_listed = "class_embed.0.weight" in shapes
    head = "class_embed.0.weight" if is_listed else "class_embed.weight"
    is_learned = "backbone.1.row_embed.weight" in shapes
    values = {
        **(swin_fields(shapes) or _resnet_fields(shapes)),
        "d_model": shapes["transformer.encoder.layers.0.linear1.weight"][1],
        "position_embedding_type": "learned" if is_learned else "sine",
        "num_labels": shapes[head][0],
    }
    for side in ("encoder", "decoder"):
        values[f"{side}_layers"] = _count(shapes, rf"transformer\.{side}\.layers\.(\d+)\.")
        values[f"{side}_ffn_dim"] = shapes[f"transformer.{side}.layers.0.linear1.weight"][0]
        values[f"{side}_attention_heads"] = num_heads
    for table in ("query_embed.weight", "transformer.tgt_embed.weight"):
        if table in shapes:
            values["num_queries"] = shapes[table][0]
    return values


def _sizes_of_levels(shapes: Shapes, num_heads: int) -> dict[str, Any]:
    """Fields that follow from shapes where attention samples several levels."""
    num_levels = shapes["transformer.level_embed"][0]
    values = {
        "num_feature_levels": num_levels,
        "two_stage": "transformer.enc_output.weight" in shapes,
    }
    # Of the backbone's maps; further levels are made by 3x3 convolutions.
    num_maps = sum(shapes[f"input_proj.{level}.0.weight"][-1] == 1 for level in range(num_levels))
    if num_maps != min(3, num_levels):
        values["out_indices"] = [*range(-num_maps, 0)]
    for side, attention in (("encoder", "self_attn"), ("decoder", "cross_attn")):
        rows = shapes[f"transformer.{side}.layers.0.{attention}.attention_weights.weight"][0]
        num_points, rest = divmod(rows, max(1, num_heads * num_levels))
        if rest or num_points == 0:
            raise ValueError(
                f"The {side} has {rows} attention weights per query; expected a multiple of "
                f"{num_heads} heads x {num_levels} levels. Pass another num_heads."
            )
        values[f"{side}_n_points"] = num_points
    return values


def _resnet_fields(shapes: Shapes) -> dict[str, Any]:
    """Fields of a ResNet, whose name is the same in timm and torchvision."""
    names = sorted(name for name in shapes if name.startswith("backbone."))
    if names and not any(name.startswith("backbone.0.body.") for name in names):
        raise ValueError(
            f"The backbone isn't a ResNet of torchvision or a Swin Transformer: it has {names[0]}. "
            "Other backbones can't be converted; train a new model with one of timm's."
        )
    stage = r"backbone\.0\.body\.layer{}\.(\d+)\."
    blocks = tuple(_count(shapes, stage.format(number)) for number in range(1, 5))
    convolutions = _count(shapes, r"backbone\.0\.body\.layer1\.0\.conv(\d+)\.")
    for name, structure in RESNETS.items():
        if structure == (blocks, convolutions):
            num_channels = shapes["backbone.0.body.conv1.weight"][1]
            return {"backbone": name, "num_channels": num_channels}
    raise ValueError(
        f"The backbone's stages have {blocks} blocks of {convolutions} convolutions; expected one "
        f"of {', '.join(RESNETS)}."
    )


def _count(shapes: Shapes, pattern: str) -> int:
    """Count the different numbers that the pattern's group matches in the names."""
    return len({match[1] for match in map(re.compile(pattern).match, shapes) if match})
