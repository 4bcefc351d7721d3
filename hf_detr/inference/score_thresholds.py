"""The scores that objects must exceed: given ones, or those of the model's configuration."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedConfig

from ..models.configuration_checks import check_class_thresholds

DEFAULT = 0.5  # of classes without a threshold of their own

# A score; one for each class name, or `DEFAULT` for classes without; None: those of the model
Threshold = float | Mapping[str, float] | None


def known_threshold(threshold: Threshold, config: PreTrainedConfig) -> float | dict[str, float]:
    """Return a given threshold, or else `class_thresholds` of the configuration, or 0.5."""
    if threshold is None:
        threshold = getattr(config, "class_thresholds", None) or DEFAULT
    return dict(threshold) if isinstance(threshold, Mapping) else threshold


def threshold_of_labels(threshold: Threshold, config: PreTrainedConfig) -> Any | Tensor:
    """Return `known_threshold` as post-processing needs it: one number, or one per label (C,).

    Raises:
        ValueError: if a class is unknown, or a score isn't from 0 to 1.
    """
    known = known_threshold(threshold, config)
    if not isinstance(known, dict):
        return known
    field = "class_thresholds" if threshold is None else "threshold"
    check_class_thresholds(known, config.id2label, field)
    names = map(config.id2label.get, range(config.num_labels))
    return torch.tensor([float(known.get(name, DEFAULT)) for name in names])
