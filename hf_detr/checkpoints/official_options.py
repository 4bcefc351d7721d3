"""Writes the options of the official training scripts that build the model of a configuration."""

from typing import Any

from transformers import PreTrainedConfig

from ..models.configuration_backbone import DC5_STRIDE
from .official_configuration import OPTIONS, RESNETS, STAGES


def official_options(config: PreTrainedConfig) -> dict[str, Any]:
    """Return the options of the official training script for a configuration.

    Raises:
        ValueError: if the official code doesn't have such a model.
    """
    backbone = config.backbone.split(".")[0]  # without timm's tag of the pretrained weights
    problems = {
        f"the backbone {config.backbone!r} (only torchvision's ResNets)": (backbone not in RESNETS),
        "encoders and decoders with different heads or ffn_dim": (
            config.encoder_attention_heads != config.decoder_attention_heads
            or config.encoder_ffn_dim != config.decoder_ffn_dim
        ),
        f"activation_function {config.activation_function!r}": config.activation_function != "relu",
        f"images with {config.num_channels} channels": config.num_channels != 3,
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
    if hasattr(config, "two_stage"):
        options |= {"with_box_refine": config.with_box_refine, "two_stage": config.two_stage}
        if config.two_stage:
            options["num_queries"] = config.two_stage_num_proposals
    if hasattr(config, "shared_heads"):
        for kind in ("class", "bbox"):
            options[f"dec_pred_{kind}_embed_share"] = config.shared_heads
        offset = options.pop("position_offset")
        problems[f"position_offset {offset}"] = offset != 0
        stages = config.backbone_config.out_indices
        options["return_interm_indices"] = [STAGES.index(stage) for stage in stages]
    found = [problem for problem, is_found in problems.items() if is_found]
    if found:
        raise ValueError(f"The official code doesn't support {', '.join(found)}.")
    return options
