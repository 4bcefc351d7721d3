"""MMDetection's names of weights (its version 3), as the papers' own code calls them.

The three models are the same there, but for names: a number for every norm in the order of use,
heads apart from the transformer, and the backbone's maps projected by a "neck", without a bias
where a norm follows.
"""

import re
from collections.abc import Iterable, Mapping

from torch import Tensor

from .checkpoint_names import Rules, apply_rules

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


def has_mmdetection_names(names: Iterable[str]) -> bool:
    """Whether weights are called as MMDetection 3 calls them."""
    return any(name.startswith("bbox_head.") for name in names)


def with_official_names(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """MMDetection's weights under official names; other names stay."""
    rules = _SHARED_RULES + (_SEVERAL_LEVELS if "level_embed" in weights else _ONE_LEVEL)
    projections = [re.match(r"neck\.convs\.(\d+)\.", name) for name in weights]
    num_maps = len({match[1] for match in projections if match})

    def renamed(name: str) -> str:
        # Levels beyond the backbone's maps come after these in the original.
        extra = re.match(r"neck\.extra_convs\.(\d+)\.", name)
        if extra is not None:
            name = f"neck.convs.{num_maps + int(extra[1])}.{name[extra.end() :]}"
        return apply_rules(rules, name)

    official = {renamed(name): weight for name, weight in weights.items()}
    for name, weight in list(official.items()):
        if re.fullmatch(r"input_proj\.\d+\.0\.weight", name):
            official.setdefault(name.replace("weight", "bias"), weight.new_zeros(len(weight)))
    return official
