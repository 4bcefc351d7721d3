"""detrex's names of weights, as the papers' own code calls them.

The three models are the same there, with layers that are named as in MMDetection 2, heads as in the
original, and a ResNet of detectron2, or of torchvision where it is dilated.
"""

from collections.abc import Iterable, Mapping

from torch import Tensor

from .checkpoint_names import Rules, apply_rules, rename_weights
from .mmdetection_names import with_official_names

# To MMDetection's names, where these aren't detrex's.
_SHARED_RULES: Rules = (
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
# Conditional DETR's attention in the decoder.
_CONDITIONAL: Rules = (
    (r"\.query_(content|pos|pos_sine)_proj\.", r".q\1_proj."),
    (r"\.key_(content|pos)_proj\.", r".k\1_proj."),
    (r"\.value_proj\.", ".v_proj."),
)
# A constant: one for every class, and what "no object" counts.
_OF_THE_LOSS = "criterion.empty_weight"


def has_detrex_names(names: Iterable[str]) -> bool:
    """Whether weights are called as detrex calls them."""
    return any(name.startswith("transformer.encoder.layers.0.attentions.") for name in names)


def from_detrex(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """detrex's weights under official names, without the loss's constants; other names stay.

    Raises:
        ValueError: if two of them are names of the same weight.
    """
    is_conditional = any(".query_content_proj." in name for name in weights)
    rules = (*_SHARED_RULES, *(_CONDITIONAL if is_conditional else ()))
    models = {name: weight for name, weight in weights.items() if name != _OF_THE_LOSS}
    return with_official_names(rename_weights(models, lambda name: apply_rules(rules, name)))
