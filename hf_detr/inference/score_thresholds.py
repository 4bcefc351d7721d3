"""The scores that objects must exceed: given ones, or those of the model's configuration."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedConfig

from ..models.configuration_checks import check_class_thresholds

DEFAULT = 0.5  # of classes without a threshold of their own

# A score; one for each class name, or else the model's or `DEFAULT`; None: those of the model
Threshold = float | Mapping[str, float] | None


def known_threshold(threshold: Threshold, config: PreTrainedConfig) -> float | dict[str, float]:
    """Return a given threshold, or else `class_thresholds` of the configuration, or 0.5.

    Given ones of single classes replace those of the configuration.
    """
    if threshold is None or isinstance(threshold, Mapping):
        return {**_own_thresholds(config), **(threshold or {})} or DEFAULT
    return threshold


def _own_thresholds(config: PreTrainedConfig) -> Mapping[str, float]:
    return getattr(config, "class_thresholds", None) or {}


def threshold_of_labels(threshold: Threshold, config: PreTrainedConfig) -> Any | Tensor:
    """Return `known_threshold` as post-processing needs it: one number, or one per label (C,).

    Raises:
        ValueError: if a class is unknown, or a score isn't from 0 to 1.
    """
    known = known_threshold(threshold, config)
    if not isinstance(known, dict):
        return known
    given = {"class_thresholds": _own_thresholds(config), "threshold": threshold or {}}
    for field, thresholds in given.items():
        check_class_thresholds(thresholds, config.id2label, field)
    names = map(config.id2label.get, range(config.num_labels))
    return torch.tensor([float(known.get(name, DEFAULT)) for name in names])
