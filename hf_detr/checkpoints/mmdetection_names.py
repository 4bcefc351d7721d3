"""Renames weights of MMDetection (versions 2 and 3) and detrex to the names of the official code.

The models of MMDetection differ in names only: norms are numbered in the order of use, heads are
separate from the transformer, and a "neck" projects the backbone's maps, without a bias if a norm
follows. Version 2 has no Conditional DETR, keeps the transformer inside the head, and numbers the
other parts of a layer, too.

detrex names layers as MMDetection 2 and heads as the official code. Its ResNet is detectron2's, or
torchvision's if it is dilated.
"""

import re
from collections.abc import Iterable, Mapping
from typing import Any

from torch import Tensor

from .checkpoint_names import Rules, apply_rules, rename_weights

# Parts of layers and of the transformer, to their names in version 3.
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
    # Up to 2.10, whose layer parts weren't numbered.
    (r"\.multihead_attn\.", ".cross_attn."),
    (r"^decoder\.norm\.", "decoder.post_norm."),
)
_SHARED_RULES: Rules = (
    (r"^backbone\.(?!0\.)", "backbone.0.body."),  # a Swin Transformer's names are official ones
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
    *((rf"\.norms\.{i}\.", f".norm{i + 1}.") for i in range(3)),
    (r"^transformer\.decoder\.post_norm\.", "transformer.decoder.norm."),
    (r"\.cross_attn\.attn\.", ".multihead_attn."),
    # Only in Conditional DETR's decoder; the other models have one matrix.
    (r"\.self_attn\.([qkv]\w*_proj)\.", r".sa_\1."),
    (r"\.cross_attn\.([qkv]\w*_proj)\.", r".ca_\1."),
)
_SEVERAL_LEVELS: Rules = (
    (r"^neck\.convs\.(\d+)\.conv\.", r"input_proj.\1.0."),
    (r"^neck\.convs\.(\d+)\.gn\.", r"input_proj.\1.1."),
    (r"^bbox_head\.cls_branches\.", "class_embed."),
    *(
        (rf"^bbox_head\.reg_branches\.(\d+)\.{2 * i}\.", rf"bbox_embed.\1.layers.{i}.")
        for i in range(3)
    ),
    (r"^(reference_points|pos_trans)_fc\.", r"transformer.\1."),
    (r"^memory_trans_fc\.", "transformer.enc_output."),
    (r"^memory_trans_norm\.", "transformer.enc_output_norm."),
    (r"^pos_trans_norm\.", "transformer.pos_trans_norm."),
    (r"(\.encoder\.layers\.\d+)\.norms\.0\.", r"\1.norm1."),
    (r"(\.encoder\.layers\.\d+)\.norms\.1\.", r"\1.norm2."),
    # The official code doesn't number the norms of its decoder in the order of use.
    (r"(\.decoder\.layers\.\d+)\.norms\.0\.", r"\1.norm2."),
    (r"(\.decoder\.layers\.\d+)\.norms\.1\.", r"\1.norm1."),
    (r"(\.decoder\.layers\.\d+)\.norms\.2\.", r"\1.norm3."),
)
# From detrex's names to MMDetection's.
_DETREX_RULES: Rules = (
    (r"^transformer\.", ""),
    (r"^backbone\.body\.", "backbone."),
    (r"^backbone\.stem\.", "backbone."),
    *((rf"^backbone\.res{stage + 1}\.", f"backbone.layer{stage}.") for stage in range(1, 5)),
    (r"^(backbone\.\S*)\bconv(\d)\.norm\.", r"\1bn\2."),
    (r"^(backbone\.\S*)\bshortcut\.norm\.", r"\1downsample.1."),
    (r"^(backbone\.\S*)\bshortcut\.", r"\1downsample.0."),
    (r"^(neck\.\w+\.\d+)\.norm\.", r"\1.gn."),
    (r"^decoder\.post_norm_layer\.", "decoder.post_norm."),
)
# The decoder attention of Conditional DETR.
_DETREX_CONDITIONAL: Rules = (
    (r"\.query_(content|pos|pos_sine)_proj\.", r".q\1_proj."),
    (r"\.key_(content|pos)_proj\.", r".k\1_proj."),
    (r"\.value_proj\.", ".v_proj."),
)
# A constant of the loss: the weight of every class and of "no object".
_DETREX_LOSS = "criterion.empty_weight"
# Unsupported settings that weights don't show: stride in the first convolution, BGR, other mean
# and standard deviation.
_OTHER_SETTINGS = (
    r"style='caffe'|to_rgb=False"
    r"|\bmean=\[(?!123\.675, 116\.28, 103\.53\])[^\]]*\]"
    r"|\bstd=\[(?!58\.395, 57\.12, 57\.375\])[^\]]*\]"
)


def has_mmdetection_names(names: Iterable[str]) -> bool:
    """Return whether these are MMDetection's names of weights."""
    return any(name.startswith("bbox_head.") for name in names)


def with_official_names(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Rename MMDetection's weights to the official names; unknown names don't change.

    Raises:
        ValueError: if two names map to the same weight.
    """
    latest = rename_weights(
        weights, lambda name: apply_rules((*_VERSION_2, *_NUMBERED_PARTS), name)
    )
    rules = _SHARED_RULES + (_SEVERAL_LEVELS if "level_embed" in latest else _ONE_LEVEL)
    projections = [re.match(r"neck\.convs\.(\d+)\.", name) for name in latest]
    num_maps = len({match[1] for match in projections if match})

    def renamed(name: str) -> str:
        # In the official code extra levels follow the levels of the backbone.
        extra = re.match(r"neck\.extra_convs\.(\d+)\.", name)
        if extra is not None:
            name = f"neck.convs.{num_maps + int(extra[1])}.{name[extra.end() :]}"
        return apply_rules(rules, name)

    official = rename_weights(latest, renamed)
    for name, weight in list(official.items()):
        if re.fullmatch(r"input_proj\.\d+\.0\.weight", name):
            official.setdefault(name.replace("weight", "bias"), weight.new_zeros(len(weight)))
    return official


def has_detrex_names(names: Iterable[str]) -> bool:
    """Return whether these are detrex's names of weights."""
    return any(name.startswith("transformer.encoder.layers.0.attentions.") for name in names)


def from_detrex(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Rename detrex's weights to the official names and drop the constants of the loss.

    Raises:
        ValueError: if two names map to the same weight.
    """
    is_conditional = any(".query_content_proj." in name for name in weights)
    rules = (*_DETREX_RULES, *(_DETREX_CONDITIONAL if is_conditional else ()))
    models = {name: weight for name, weight in weights.items() if name != _DETREX_LOSS}
    return with_official_names(rename_weights(models, lambda name: apply_rules(rules, name)))


def configuration_texts(meta: Any) -> list[str]:
    """Return the configuration stored in an MMDetection checkpoint, on one line, if there is one.

    Args:
        meta: the value of "meta" in the file; any type.
    """
    texts = [meta.get(name) for name in ("config", "cfg")] if isinstance(meta, dict) else []
    return [" ".join(text.split()) for text in texts if isinstance(text, str)]


def check_settings(meta: Any) -> None:
    """Check the configuration stored in an MMDetection checkpoint for unsupported settings.

    Args:
        meta: the value of "meta" in the file; any type.

    Raises:
        ValueError: if the backbone or the normalisation of images isn't torchvision's.
    """
    for text in configuration_texts(meta):
        found = re.search(_OTHER_SETTINGS, text)
        if found:
            raise ValueError(
                f"The checkpoint's configuration contains {found[0]}, which isn't supported: "
                "hf_detr uses torchvision's ResNets on RGB images with ImageNet's mean and "
                "standard deviation. If the setting belongs to another part of the configuration, "
                "save the state dict alone and convert that."
            )
