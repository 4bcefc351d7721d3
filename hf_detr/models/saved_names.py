"""Files whose weights have other names than those of the model that is loaded."""

from collections import Counter
from collections.abc import Callable, Collection, Mapping
from typing import Any

from transformers import PreTrainedModel

from .transformers_resnet import has_transformers_names, timm_names

Renaming = Callable[[Mapping[str, Any]], dict[str, Any]]


def find_renaming(names: Collection[str], model: PreTrainedModel) -> Renaming | None:
    """Return what gives weights, or what is known of them, the model's names; None if not needed.

    A file can have the ResNet of transformers, or be of a model that holds this one, as a segmenter
    holds a detector.
    """
    prefix = _prefix_of_part(names, model)
    has_other_resnet = has_transformers_names(names)
    if not prefix and not has_other_resnet:
        return None

    def rename(weights: Mapping[str, Any]) -> dict[str, Any]:
        weights = timm_names(weights) if has_other_resnet else weights
        return {name.removeprefix(prefix): value for name, value in weights.items()}

    return rename


def _prefix_of_part(names: Collection[str], model: PreTrainedModel) -> str:
    """What the names of the model's weights begin with in the file of one that holds it."""
    expected, base = set(model.state_dict()), f"{model.base_model_prefix}."
    # Names that fit, perhaps as transformers itself reads the base model from a file or into one.
    if any(not expected.isdisjoint((n, base + n, n.removeprefix(base))) for n in names):
        return ""
    prefixes = Counter(
        name[: i + 1]
        for name in names
        for i, letter in enumerate(name)
        if letter == "." and name[i + 1 :] in expected
    )
    return max(prefixes, key=prefixes.__getitem__, default="")
