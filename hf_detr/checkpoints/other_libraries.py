"""Tells which library wrote a checkpoint, and gives its weights the names of the official code."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from .dino_names import (
    DETREX_POSITIONS,
    has_co_detr_names,
    is_dino,
    position_options,
    with_official_dino_names,
    without_auxiliary_heads,
)
from .mmdetection_names import (
    check_settings,
    from_detrex,
    has_detrex_names,
    has_mmdetection_names,
    with_official_names,
)
from .swin_names import has_swin_names, with_official_swin_names


@dataclass(frozen=True)
class OfficialWeights:
    """Weights with the names of the official code.

    Attributes:
        weights: by name.
        options: of the official training script, as far as the library's are known.
        other_dilation: the library whose backbone dilates differently than torchvision's, if any.
    """

    weights: dict[str, Tensor]
    options: dict[str, float] = field(default_factory=dict)
    other_dilation: str | None = None


def rename_other_libraries(weights: Mapping[str, Tensor], meta: Any) -> OfficialWeights:
    """Rename weights of MMDetection, Co-DETR or detrex; others don't change.

    Args:
        weights: the checkpoint's.
        meta: what the file has as "meta", in which MMDetection stores the configuration.

    Raises:
        ValueError: if the model isn't supported, or names contradict each other.
    """
    if has_swin_names(weights):
        weights = with_official_swin_names(weights)
    if has_co_detr_names(weights):
        weights = without_auxiliary_heads(weights)
    if has_mmdetection_names(weights):
        check_settings(meta)
        official, other_dilation = with_official_names(weights), "MMDetection"
    elif has_detrex_names(weights):
        other_dilation = "detectron2" if "backbone.stem.conv1.weight" in weights else None
        official = from_detrex(weights)
    else:
        return OfficialWeights(dict(weights))
    if not is_dino(official):
        return OfficialWeights(official, {}, other_dilation)
    positions = DETREX_POSITIONS if has_detrex_names(weights) else position_options(meta)
    return OfficialWeights(with_official_dino_names(official), positions, other_dilation)
