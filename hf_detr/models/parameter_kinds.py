"""Kinds of parameters whose learning rates differ, told by their names."""

import re
from collections.abc import Mapping
from typing import Any

from torch import nn

PARAMETER_KINDS = {
    "backbone": re.compile(r"\bbackbone\."),
    "points": re.compile("sampling_offsets|reference_points"),
    "classes": re.compile(r"\bclass_"),
}


def group_parameters(model: nn.Module, lrs: Mapping[str, float]) -> list[dict[str, Any]]:
    """Groups for an optimizer, without frozen parameters; `lrs` has `"other"` for the last kind."""
    groups: dict[str, list[nn.Parameter]] = {kind: [] for kind in lrs}
    for name, parameter in model.named_parameters():
        kinds = (kind for kind, pattern in PARAMETER_KINDS.items() if pattern.search(name))
        if parameter.requires_grad:
            groups[next(kinds, "other")].append(parameter)
    return [
        {"name": kind, "params": parameters, "lr": lrs[kind]}
        for kind, parameters in groups.items()
        if parameters
    ]
