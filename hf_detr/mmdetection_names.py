"""MMDetection's names of weights (its versions 2 and 3), as the papers' own code calls them.

The models are the same there, but for names: a number for every norm in the order of use, heads
apart from the transformer, and the backbone's maps projected by a "neck", without a bias where a
norm follows. Version 2 has no Conditional DETR, holds the transformer within the head, and numbers
a layer's other parts, too.
"""

import re
from collections.abc import Iterable, Mapping
from typing import Any

from torch import Tensor

from .checkpoint_names import Rules, apply_rules, rename_weights

# A layer's parts, and the transformer's own, as version 3 calls them.
_NUMBERED_PARTS: Rules = (
    (r"\.attentions\.0\.", ".self_attn."),
    (r"\.attentions\.1\.", ".cross_attn."),
    (r"\.ffns\.0\.", ".ffn."),
    (r"^level_embeds$", "level_embed"),
    (r"^(reference_points|pos_trans)\.", r"\1_fc."),
    (r"^enc_output\.", "memory_trans_fc."),
    (r"^enc_output_norm\.", "memory_trans_norm."),
)
_VERSION_2: Rules = (
    (r"^bbox_head\.transformer\.", ""),
    (r"^bbox_head\.(input_proj|query_embedding)\.", r"\1."),
    # Until 2.10, whose layers had no numbers yet.
    (r"\.multihead_attn\.", ".cross_attn."),
    (r"^decoder\.norm\.", "decoder.post_norm."),
)
_SHARED_RULES: Rules = (
    (r"^backbone\.", "backbone.0.body."),
    (r"^query_embedding\.", "query_embed."),
    (r"^(encoder|decoder|level_embed)", r"transformer.\1"),
    (r"\.ffn\.layers\.0\.0\.", ".linear1."),
    (r"\.ffn\.layers\.1\.", ".linear2."),
    (r"\.self_attn\.attn\.", ".self_attn."),
)
_ONE_LEVEL: Rules = (
    (r"^neck\.convs\.0\.conv\.", "input_proj."),
    (r"^bbox_head\.fc_cls\.", "class_embed."),
    (r"^bbox_head\.reg_ffn\.layers\.0\.0\.", "bbox_embed.layers.0."),
    (r"^bbox_head\.reg_ffn\.layers\.1\.", "bbox_embed.layers.1."),
    (r"^bbox_head\.fc_reg\.", "bbox_embed.layers.2."),
    (r"\.norms\.0\.", ".norm1."),
    (r"\.norms\.1\.", ".norm2."),
    (r"\.norms\.2\.", ".norm3."),
    (r"^transformer\.decoder\.post_norm\.", "transformer.decoder.norm."),
    (r"\.cross_attn\.attn\.", ".multihead_attn."),
    # Conditional DETR's decoder only: elsewhere these are one matrix.
    (r"\.self_attn\.([qkv]\w*_proj)\.", r".sa_\1."),
    (r"\.cross_attn\.([qkv]\w*_proj)\.", r".ca_\1."),
)
_SEVERAL_LEVELS: Rules = (
    (r"^neck\.convs\.(\d+)\.conv\.", r"input_proj.\1.0."),
    (r"^neck\.convs\.(\d+)\.gn\.", r"input_proj.\1.1."),
    (r"^bbox_head\.cls_branches\.", "class_embed."),
    (r"^bbox_head\.reg_branches\.(\d+)\.0\.", r"bbox_embed.\1.layers.0."),
    (r"^bbox_head\.reg_branches\.(\d+)\.2\.", r"bbox_embed.\1.layers.1."),
    (r"^bbox_head\.reg_branches\.(\d+)\.4\.", r"bbox_embed.\1.layers.2."),
    (r"^reference_points_fc\.", "transformer.reference_points."),
    (r"^memory_trans_fc\.", "transformer.enc_output."),
    (r"^memory_trans_norm\.", "transformer.enc_output_norm."),
    (r"^pos_trans_fc\.", "transformer.pos_trans."),
    (r"^pos_trans_norm\.", "transformer.pos_trans_norm."),
    (r"(\.encoder\.layers\.\d+)\.norms\.0\.", r"\1.norm1."),
    (r"(\.encoder\.layers\.\d+)\.norms\.1\.", r"\1.norm2."),
    # The original numbers its decoder's norms in another order than it uses them.
    (r"(\.decoder\.layers\.\d+)\.norms\.0\.", r"\1.norm2."),
    (r"(\.decoder\.layers\.\d+)\.norms\.1\.", r"\1.norm1."),
    (r"(\.decoder\.layers\.\d+)\.norms\.2\.", r"\1.norm3."),
)
# Settings that weights don't show: strides in other convolutions, BGR, or another normalisation.
_OTHER_SETTINGS = (
    r"style='caffe'|to_rgb=False"
    r"|\bmean=\[(?!123\.675, 116\.28, 103\.53\])[^\]]*\]"
    r"|\bstd=\[(?!58\.395, 57\.12, 57\.375\])[^\]]*\]"
)


def has_mmdetection_names(names: Iterable[str]) -> bool:
    """Whether weights are called as MMDetection calls them."""
    return any(name.startswith("bbox_head.") for name in names)


def with_official_names(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """MMDetection's weights under official names; other names stay.

    Raises:
        ValueError: if two of them are names of the same weight.
    """
    latest = rename_weights(
        weights, lambda name: apply_rules((*_VERSION_2, *_NUMBERED_PARTS), name)
    )
    rules = _SHARED_RULES + (_SEVERAL_LEVELS if "level_embed" in latest else _ONE_LEVEL)
    projections = [re.match(r"neck\.convs\.(\d+)\.", name) for name in latest]
    num_maps = len({match[1] for match in projections if match})

    def renamed(name: str) -> str:
        # Levels beyond the backbone's maps come after these in the original.
        extra = re.match(r"neck\.extra_convs\.(\d+)\.", name)
        if extra is not None:
            name = f"neck.convs.{num_maps + int(extra[1])}.{name[extra.end() :]}"
        return apply_rules(rules, name)

    official = rename_weights(latest, renamed)
    for name, weight in list(official.items()):
        if re.fullmatch(r"input_proj\.\d+\.0\.weight", name):
            official.setdefault(name.replace("weight", "bias"), weight.new_zeros(len(weight)))
    return official


def refuse_other_settings(meta: Any) -> None:
    """Check the configuration in a checkpoint, if one is there, for what hf_detr doesn't have.

    Args:
        meta: what the file has under this name.

    Raises:
        ValueError: naming the setting.
    """
    texts = [meta.get(name) for name in ("config", "cfg")] if isinstance(meta, dict) else []
    for text in (" ".join(text.split()) for text in texts if isinstance(text, str)):
        found = re.search(_OTHER_SETTINGS, text)
        if found:
            raise ValueError(
                f"The checkpoint's configuration says {found[0]}. hf_detr's ResNets are "
                "torchvision's, on RGB images with ImageNet's mean and deviation. If that concerns "
                "another part of the configuration, save the state dict alone and convert that."
            )
