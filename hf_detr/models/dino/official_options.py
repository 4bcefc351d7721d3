"""Options of DINO's official code, https://github.com/IDEA-Research/DINO."""

from typing import Any

from .configuration_dino import DinoDetrConfig

# timm's Swin Transformers, by which `backbone` and `pretrain_img_size` are named there.
OFFICIAL_BACKBONES = {
    "swin_tiny_patch4_window7_224": "swin_T_224_1k",
    "swin_base_patch4_window7_224": "swin_B_224_22k",
    "swin_base_patch4_window12_384": "swin_B_384_22k",
    "swin_large_patch4_window7_224": "swin_L_224_22k",
    "swin_large_patch4_window12_384": "swin_L_384_22k",
}


def official_options(config: DinoDetrConfig) -> dict[str, Any]:
    """Options that build a model of this configuration, besides those that DETR's code has, too.

    Raises:
        ValueError: if the official code doesn't have such a model.
    """
    if config.position_offset != 0:
        raise ValueError(
            f"The official code doesn't support position_offset {config.position_offset}; it is "
            "that of detrex's models."
        )
    if config.num_denoising_queries == 0:
        raise ValueError(
            "The official code's models have embeddings of noised labels, but "
            "num_denoising_queries is 0; call model.add_denoising(100) and save the model first."
        )
    num_maps = 4 if config.backbone.startswith("swin") else 5  # a ResNet's stem is timm's first
    levels = [level % num_maps - num_maps for level in config.backbone_config.out_indices]
    return {
        "modelname": "dino",
        "num_classes": config.num_labels,
        "query_dim": 4,
        "pe_temperatureW": config.position_temperature,
        "return_interm_indices": [level + 4 for level in levels],
        "two_stage_type": "standard",
        "embed_init_tgt": True,
        "dec_pred_class_embed_share": config.shared_heads,
        "dec_pred_bbox_embed_share": config.shared_heads,
        "use_dn": True,
        "dn_labelbook_size": config.num_labels,
    }
