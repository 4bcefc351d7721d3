"""Options of the official training scripts, and the configuration's fields that they are."""

from typing import Any

from transformers import PreTrainedConfig

from ..models.configuration_backbone import DC5_STRIDE
from ..models.variants import VARIANTS

# torchvision's ResNets: blocks in each of the four stages, and convolutions per block.
RESNETS = {
    "resnet18": ((2, 2, 2, 2), 2),
    "resnet34": ((3, 4, 6, 3), 2),
    "resnet50": ((3, 4, 6, 3), 3),
    "resnet101": ((3, 4, 23, 3), 3),
    "resnet152": ((3, 8, 36, 3), 3),
}
# Options of the training scripts that shapes don't show, and the configuration's fields.
OPTIONS = {
    "dropout": "dropout",
    "set_cost_class": "class_cost",
    "set_cost_bbox": "bbox_cost",
    "set_cost_giou": "giou_cost",
    "bbox_loss_coef": "bbox_loss_coefficient",
    "giou_loss_coef": "giou_loss_coefficient",
    "cls_loss_coef": "cls_loss_coefficient",
    "ce_loss_coef": "ce_loss_coefficient",
    "mask_loss_coef": "mask_loss_coefficient",
    "dice_loss_coef": "dice_loss_coefficient",
    "eos_coef": "eos_coefficient",
    "focal_alpha": "focal_alpha",
    "pe_temperatureH": "position_temperature",
    "dn_number": "num_denoising_queries",
    "dn_label_noise_ratio": "label_noise_ratio",
    "dn_box_noise_scale": "box_noise_scale",
}


def official_options(config: PreTrainedConfig) -> dict[str, Any]:
    """Return the options of the official training script for a configuration.

    Raises:
        ValueError: if the official code doesn't have such a model.
    """
    backbone = config.backbone.split(".")[0]  # without timm's tag of the pretrained weights
    others = VARIANTS[config.model_type].official_backbones
    has_norm = getattr(config.backbone_config, "output_norm", False)
    problems = {
        f"the backbone {config.backbone!r} (only {', '.join((*RESNETS, *others))})": (
            backbone not in (*RESNETS, *others)
        ),
        f"output_norm={has_norm} of {backbone}": has_norm != (backbone in others),
        "encoders and decoders with different heads or ffn_dim": (
            config.encoder_attention_heads != config.decoder_attention_heads
            or config.encoder_ffn_dim != config.decoder_ffn_dim
        ),
        f"activation_function {config.activation_function!r}": config.activation_function != "relu",
        f"images with {config.num_channels} channels": config.num_channels != 3,
    }
    options = {
        "backbone": others.get(backbone, backbone),
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
    if config.normalize_before:
        options["pre_norm"] = True
    levels = getattr(config, "num_feature_levels", None)
    if levels is not None:
        problems[f"{levels} feature levels"] = levels == 2
        options |= {
            "num_feature_levels": levels,
            "enc_n_points": config.encoder_n_points,
            "dec_n_points": config.decoder_n_points,
        }
        stages = ("with_box_refine", "two_stage")
        options |= {name: getattr(config, name) for name in stages if hasattr(config, name)}
        if options.get("two_stage"):
            options["num_queries"] = config.two_stage_num_proposals
    options |= VARIANTS[config.model_type].official_options(config)
    if "return_interm_indices" not in options:  # then the encoder's maps are always the last ones
        official = [2, 3, 4] if levels and levels > 1 else [4]  # of a ResNet in timm
        first = config.num_mask_levels if levels else -1
        maps = [level % 5 for level in config.backbone_config.out_indices[first:]]
        problems[f"an encoder of the maps {maps} instead of {official}"] = maps != official
    found = [problem for problem, is_found in problems.items() if is_found]
    if found:
        raise ValueError(f"The official code doesn't support {', '.join(found)}.")
    return options
