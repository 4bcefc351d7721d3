"""What an official checkpoint is: its configuration, from names, shapes and options.

Shapes tell nearly everything. What they don't, dilation and the number of heads, is in the options
that the training scripts saved beside the weights, or in the name of a published file.
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

from .checkpoint_names import DETECTOR, first_name
from .coco_labels import coco_id2label
from .configuration_backbone import DC5_STRIDE
from .configuration_detr import CONFIGURATIONS

# Blocks in the four stages of torchvision's ResNets, and convolutions in a block.
RESNETS = {
    "resnet18": ((2, 2, 2, 2), 2),
    "resnet34": ((3, 4, 6, 3), 2),
    "resnet50": ((3, 4, 6, 3), 3),
    "resnet101": ((3, 4, 23, 3), 3),
    "resnet152": ((3, 8, 36, 3), 3),
}
# Options of the training scripts that shapes don't show, and our fields for them.
OPTIONS = {
    "dropout": "dropout",
    "set_cost_class": "class_cost",
    "set_cost_bbox": "bbox_cost",
    "set_cost_giou": "giou_cost",
    "bbox_loss_coef": "bbox_loss_coefficient",
    "giou_loss_coef": "giou_loss_coefficient",
    "cls_loss_coef": "cls_loss_coefficient",
    "mask_loss_coef": "mask_loss_coefficient",
    "dice_loss_coef": "dice_loss_coefficient",
    "eos_coef": "eos_coefficient",
    "focal_alpha": "focal_alpha",
}


def read_configuration(
    weights: Mapping[str, Tensor],
    options: Mapping[str, Any],
    dilation: bool,
    num_heads: int,
    id2label: Mapping[int, str] | None = None,
) -> PreTrainedConfig:
    """Our configuration for official weights.

    Args:
        weights: the checkpoint's, under official names.
        options: of the official training script, as far as they are known.
        dilation: DC5.
        num_heads: heads of every attention.
        id2label: names of the classes; None takes COCO's if there are as many.

    Raises:
        ValueError: if these aren't weights of one of the three papers' code, or contradict
            themselves.
    """
    model_type, has_masks = recognize(weights)
    _refuse_other_architectures(options)
    prefix = DETECTOR if has_masks else ""
    shapes = {
        name.removeprefix(prefix): tuple(tensor.shape)
        for name, tensor in weights.items()
        if name.startswith(prefix)
    }
    is_shared = heads_are_shared(weights, model_type)
    shapes |= {first_name(name, is_shared): shape for name, shape in shapes.items()}
    values = {field: options[option] for option, field in OPTIONS.items() if option in options}
    values["attention_dropout"] = values["activation_dropout"] = values.get("dropout", 0.1)
    try:
        values |= _sizes(shapes, model_type, num_heads)
        if model_type == "deformable_detr":
            values |= _sizes_of_levels(shapes, num_heads)
            values["with_box_refine"] = not is_shared
            if values["two_stage"]:
                values["two_stage_num_proposals"] = options.get("num_queries", 300)
    except KeyError as error:
        raise ValueError(f"The checkpoint lacks {error}; is it complete?") from None
    except IndexError:
        raise ValueError(
            "A weight of the checkpoint has fewer dimensions than it must have."
        ) from None
    return _make(CONFIGURATIONS[model_type], values, dilation, id2label)


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
                f"id2label must name the checkpoint's classes, 0 to {num_labels - 1}; got "
                f"{len(names)} names, from {min(names)} to {max(names)}."
            )
        values = {**values, "id2label": names}
        del values["num_labels"]
    fields = {field.name for field in dataclasses.fields(config_class)} | {"num_labels", "backbone"}
    known = {name: value for name, value in values.items() if name in fields}
    try:
        # transformers' own DETR predicts wrongly with auxiliary_loss=True in the file.
        return config_class(dilation=dilation, auxiliary_loss=False, **known)
    except (StrictDataclassError, TypeError) as error:
        reason = " ".join(str(error).split())
        raise ValueError(f"The checkpoint's sizes or options make no model: {reason}") from error


def recognize(weights: Mapping[str, Tensor]) -> tuple[str, bool]:
    """Which paper's model official weights are, and whether they have a mask head.

    Raises:
        ValueError: if they are none of the three.
    """
    has_masks = any(name.startswith("mask_head.") for name in weights)
    transformer = f"{DETECTOR if has_masks else ''}transformer."
    for model_type, mark in {
        "deformable_detr": "level_embed",
        "conditional_detr": "decoder.ref_point_head.layers.0.weight",
        "detr": "decoder.layers.0.multihead_attn.in_proj_weight",
    }.items():
        if transformer + mark in weights:
            if has_masks and model_type != "detr":
                raise ValueError(
                    "The checkpoint has a mask head on another detector than DETR's, for which "
                    "there is no official model."
                )
            return model_type, has_masks
    some = ", ".join(sorted(weights)[:5])
    raise ValueError(
        "These are not the weights of facebookresearch/detr, fundamentalvision/Deformable-DETR, "
        "Atten4Vis/ConditionalDETR or one of the three in MMDetection 2 or 3 or detrex. Of their "
        f"names, for example: {some or 'there are none'}."
    )


def heads_are_shared(weights: Mapping[str, Tensor], model_type: str) -> bool:
    """Whether official weights list one head under several names: Deformable, unrefined."""
    if model_type != "deformable_detr":
        return False
    if any(name.startswith("transformer.decoder.bbox_embed.") for name in weights):
        return False
    first, second = (weights.get(f"bbox_embed.{i}.layers.0.weight") for i in (0, 1))
    return second is None or first is None or torch.equal(first, second)


def unseen(
    options: Mapping[str, Any], file_name: str, dilation: bool | None, num_heads: int | None
) -> tuple[bool, int]:
    """Dilation and number of heads, which no shape shows: as told, or saved, or published.

    Args:
        options: of the official training script, as far as they are known.
        file_name: published files are called after their backbone, and "dc5" if it is dilated.
        dilation, num_heads: what the caller says, which counts more; None if nothing.

    Raises:
        ValueError: if neither is told, or `num_heads` isn't positive.
    """
    if dilation is None:
        dilation = options.get("dilation")
    if num_heads is None:
        num_heads = options.get("nheads")
    is_published = re.search(r"(?<![a-z])r(?:esnet)?[-_]?(?:50|101)(?![0-9])", file_name.lower())
    if is_published and dilation is None:
        dilation = "dc5" in file_name.lower()
    if is_published and num_heads is None:
        num_heads = 8
    if dilation is None or num_heads is None:
        raise ValueError(
            "Weights don't show whether the backbone is dilated (DC5) nor how many heads attention "
            f"has. The file doesn't say, and {file_name!r} isn't named like a published one "
            "(detr-r50-dc5-….pth); pass dilation=True or False and num_heads (8 in the papers), "
            "on the command line --dilation or --no-dilation, and --num-heads."
        )
    if isinstance(num_heads, bool) or not isinstance(num_heads, int) or num_heads < 1:
        raise ValueError(f"num_heads is {num_heads!r}; expected a positive integer.")
    return bool(dilation), num_heads


def official_options(config: PreTrainedConfig) -> dict[str, Any]:
    """Options of the official training script for our configuration.

    Raises:
        ValueError: if the official code has no such model.
    """
    backbone = config.backbone.split(".")[0]  # without timm's tag, which says who trained it
    problems = {
        f"the backbone {config.backbone!r} (torchvision's ResNets are known)": (
            backbone not in RESNETS
        ),
        "unequal encoders and decoders": (
            config.encoder_attention_heads != config.decoder_attention_heads
            or config.encoder_ffn_dim != config.decoder_ffn_dim
        ),
        f"activation_function {config.activation_function!r}": config.activation_function != "relu",
        f"{config.num_channels} channels of the image": config.num_channels != 3,
    }
    options = {
        "backbone": backbone,
        "dilation": config.backbone_config.output_stride == DC5_STRIDE,
        "position_embedding": config.position_embedding_type,
        "enc_layers": config.encoder_layers,
        "dec_layers": config.decoder_layers,
        "dim_feedforward": config.encoder_ffn_dim,
        "hidden_dim": config.d_model,
        "nheads": config.encoder_attention_heads,
        "num_queries": config.num_queries,
        **{o: getattr(config, field) for o, field in OPTIONS.items() if hasattr(config, field)},
    }
    if config.model_type == "deformable_detr":
        levels = config.num_feature_levels
        problems[f"{levels} feature levels"] = levels == 2
        options |= {
            "num_feature_levels": levels,
            "enc_n_points": config.encoder_n_points,
            "dec_n_points": config.decoder_n_points,
            "with_box_refine": config.with_box_refine,
            "two_stage": config.two_stage,
        }
        if config.two_stage:
            options["num_queries"] = config.two_stage_num_proposals
    found = [problem for problem, is_there in problems.items() if is_there]
    if found:
        raise ValueError(f"The official code has no such model: it lacks {', '.join(found)}.")
    return options


def _refuse_other_architectures(options: Mapping[str, Any]) -> None:
    if options.get("pre_norm"):
        raise ValueError(
            "The checkpoint was trained with --pre_norm, which norms before attention; hf_detr, "
            "like the papers and transformers, does so after it."
        )
    scale = options.get("position_embedding_scale", 2 * math.pi)
    if scale != 2 * math.pi:
        raise ValueError(f"position_embedding_scale is {scale}; only 2π is supported.")


Shapes = dict[str, tuple[int, ...]]


def _sizes(shapes: Shapes, model_type: str, num_heads: int) -> dict[str, Any]:
    """Fields that every variant's shapes show."""
    head = "class_embed.0.weight" if model_type == "deformable_detr" else "class_embed.weight"
    is_learned = "backbone.1.row_embed.weight" in shapes
    values = {
        "backbone": _backbone(shapes),
        "num_channels": shapes["backbone.0.body.conv1.weight"][1],
        "d_model": shapes["transformer.encoder.layers.0.linear1.weight"][1],
        "position_embedding_type": "learned" if is_learned else "sine",
        "num_labels": shapes[head][0] - (model_type == "detr"),  # DETR's last is "no object"
    }
    for side in ("encoder", "decoder"):
        values[f"{side}_layers"] = _count(shapes, rf"transformer\.{side}\.layers\.(\d+)\.")
        values[f"{side}_ffn_dim"] = shapes[f"transformer.{side}.layers.0.linear1.weight"][0]
        values[f"{side}_attention_heads"] = num_heads
    if "query_embed.weight" in shapes:
        values["num_queries"] = shapes["query_embed.weight"][0]
    return values


def _sizes_of_levels(shapes: Shapes, num_heads: int) -> dict[str, Any]:
    """Fields that shapes show where attention samples points on feature levels."""
    num_levels = shapes["transformer.level_embed"][0]
    values = {
        "num_feature_levels": num_levels,
        "two_stage": "transformer.enc_output.weight" in shapes,
    }
    for side, attention in (("encoder", "self_attn"), ("decoder", "cross_attn")):
        rows = shapes[f"transformer.{side}.layers.0.{attention}.attention_weights.weight"][0]
        num_points, rest = divmod(rows, max(1, num_heads * num_levels))
        if rest or num_points == 0:
            raise ValueError(
                f"The {side} has {rows} attention weights per query, which {num_heads} heads on "
                f"{num_levels} levels can't share equally; num_heads must be another."
            )
        values[f"{side}_n_points"] = num_points
    return values


def _backbone(shapes: Shapes) -> str:
    """timm's and torchvision's common name of a ResNet."""
    stage = r"backbone\.0\.body\.layer{}\.(\d+)\."
    blocks = tuple(_count(shapes, stage.format(number)) for number in range(1, 5))
    convolutions = _count(shapes, r"backbone\.0\.body\.layer1\.0\.conv(\d+)\.")
    for name, structure in RESNETS.items():
        if structure == (blocks, convolutions):
            return name
    raise ValueError(
        f"The backbone's stages have {blocks} blocks of {convolutions} convolutions; known are "
        f"{', '.join(RESNETS)}."
    )


def _count(shapes: Shapes, pattern: str) -> int:
    """How many different numbers the names have where the pattern asks for one."""
    return len({match[1] for match in map(re.compile(pattern).match, shapes) if match})
