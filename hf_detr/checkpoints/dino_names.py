"""Renames DINO's weights of MMDetection 3, detrex and Co-DETR to the names of the official code.

In all of them each decoder layer has heads of its own, and the last heads of the lists are those of
the proposals; the official code has other names for these. The order of classes, of coordinates and
of sines is the same. There is no embedding of the unused label.

Sines of positions differ: detrex has another temperature and offset, MMDetection's files may state
others. Weights don't show them.

Co-DETR (arXiv 2211.12860; Sense-X/Co-DETR, and projects/ of MMDetection 3) trains the same model
with further heads that don't take part in its predictions.
"""

import re
import warnings
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from .checkpoint_names import Rules, apply_rules, first_name, rename_weights
from .mmdetection_names import configuration_texts

# After the names that the models in MMDetection have in common were changed to official ones.
_RULES: Rules = (
    (r"^(query_embed|tgt_embed)\.", "transformer.tgt_embed."),
    (r"^(dn_query_generator|bbox_head(\.dn_generator)?)\.label_embedding\.", "label_enc."),
    (r"^transformer\.decoder\.post_norm\.", "transformer.decoder.norm."),
    (r"\.ref_point_head\.0\.", ".ref_point_head.layers.0."),
    (r"\.ref_point_head\.2\.", ".ref_point_head.layers.1."),
)
_CO_DETR = "query_head."
_REFERENCES = "transformer.decoder.ref_point_head."
# What Co-DETR has for training alone: detectors of other kinds, which can predict, too, and parts
# that turn their boxes into queries.
_AUXILIARY = re.compile(
    r"(rpn_head|roi_head|bbox_head|query_head\.downsample"
    r"|query_head\.transformer\.(aux_pos_trans|aux_pos_trans_norm|pos_feats_trans|pos_feats_norm))\."
)
# Position encodings, by the names of the official options; offset 0 is the official code's.
DETREX_POSITIONS = {"pe_temperatureH": 10000, "position_offset": -0.5}
# What MMDetection's position encoding has if its configuration doesn't say it.
_DEFAULT_POSITIONS = {"temperature": "10000", "offset": "0", "normalize": "False"}


def is_dino(weights: Mapping[str, Tensor]) -> bool:
    """Return whether MMDetection's or detrex's weights, with official names, are those of DINO."""
    return "transformer.enc_output.weight" in weights and any(
        name.startswith(_REFERENCES) for name in weights
    )


def has_co_detr_names(names: Iterable[str]) -> bool:
    """Return whether these are names of weights of Co-DETR."""
    return any(name.startswith(_CO_DETR) for name in names)


def without_auxiliary_heads(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Keep those of Co-DETR's weights that its prediction needs, under MMDetection's names.

    Warns once with the names of the parts that are left out.

    Raises:
        ValueError: if the model isn't a Co-DINO.
    """
    if not any(name.startswith(_CO_DETR + _REFERENCES) for name in weights):
        raise ValueError(
            "The checkpoint is a Co-DETR whose queries aren't DINO's (it has no "
            f"{_CO_DETR}{_REFERENCES}…), which can't be converted; expected a Co-DINO "
            "(co_dino_….pth)."
        )
    found = {name: _AUXILIARY.match(name) for name in weights}
    parts = sorted({match[1] for match in found.values() if match})
    if parts:
        warnings.warn(
            f"{', '.join(parts)} are left out: they only help to train Co-DETR. The converted "
            "model predicts what query_head does.",
            stacklevel=2,
        )
    return {
        re.sub(f"^{re.escape(_CO_DETR)}", "bbox_head.", name): weight
        for name, weight in weights.items()
        if not found[name]
    }


def with_official_dino_names(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Rename weights of DINO that otherwise have the official names of Deformable DETR.

    Raises:
        ValueError: if two names map to the same weight, or a weight with two names differs.
    """
    weights = rename_weights(weights, lambda name: apply_rules(_RULES, name))
    heads = [re.match(r"class_embed\.(\d+)\.", name) for name in weights]
    last = max((int(head[1]) for head in heads if head), default=0)
    official: dict[str, Tensor] = {}
    for name, weight in weights.items():
        if re.match(rf"(transformer\.decoder\.)?(class|bbox)_embed\.{last}\.", name):
            name = re.sub(rf"_embed\.{last}\.", "_embed.", first_name(name, is_shared=False))
            name = f"transformer.enc_out_{name}"
            if not torch.equal(official.setdefault(name, weight), weight):
                raise ValueError(f"The file has two different {name!r}, which must be equal.")
        official[name] = weight
    labels = official.get("label_enc.weight")
    if labels is not None:
        official["label_enc.weight"] = F.pad(labels, (0, 0, 0, 1))  # of the unused label
    return official


def position_options(meta: Any) -> dict[str, float]:
    """Return the position encoding in an MMDetection checkpoint's configuration, if it has one.

    Args:
        meta: the value of "meta" in the file; any type.

    Returns:
        Values by the names of the official options.

    Raises:
        ValueError: if positions aren't normalized.
    """
    for text in configuration_texts(meta):
        found = re.search(r"\bpositional_encoding=dict\(([^()]*)\)", text)
        if found is None:
            continue
        stated = re.findall(r"\b(temperature|offset|normalize)=([\w.-]+)", found[1])
        values = _DEFAULT_POSITIONS | dict(stated)
        if values["normalize"] != "True":
            raise ValueError(
                f"The checkpoint's configuration contains {found[0]}; expected normalize=True, "
                "the only position encoding of DINO in hf_detr."
            )
        return {
            "pe_temperatureH": float(values["temperature"]),
            "position_offset": float(values["offset"]),
        }
    return {}
