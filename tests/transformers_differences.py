"""What differs between the public classes of hf_detr and those of the installed transformers.

`python -m tests.transformers_differences` prints the list that `docs/moving.md` explains.
"""

import dataclasses
import importlib
import inspect
from collections import defaultdict
from collections.abc import Iterator
from types import ModuleType

import transformers
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.image_processing_backends import TorchvisionBackend
from transformers.utils import ModelOutput

import hf_detr
from hf_detr.models import outputs

from .tiny import IN_TRANSFORMERS, PREFIXES, class_of

MODELS = ("Model", "ForObjectDetection", "ForSegmentation")
OUTPUTS = {
    "ModelOutput": outputs.DetectionModelOutput,
    "ObjectDetectionOutput": outputs.ObjectDetectionOutput,
    "SegmentationOutput": outputs.SegmentationOutput,
}
OF_TEXT_MODELS = ("past_key_values", "cache")  # fields of a base class; always None


def differences() -> list[str]:
    """One line per difference, with the families that have it unless all have."""
    families: dict[str, list[str]] = defaultdict(list)
    for variant in IN_TRANSFORMERS:
        for difference in dict.fromkeys(_of_family(variant)):
            families[difference].append(PREFIXES[variant])
    return [
        line if len(having) == len(IN_TRANSFORMERS) else f"{line} ({', '.join(having)})"
        for line, having in families.items()
    ]


def _of_family(variant: str) -> Iterator[str]:
    yield from _names(variant)
    yield from _config(class_of(variant, "Config"), class_of(variant, "Config", transformers))
    for kind in MODELS:
        if hasattr(transformers, PREFIXES[variant] + kind):
            ours, theirs = class_of(variant, kind), class_of(variant, kind, transformers)
            yield from _arguments("forward", ours.forward, theirs.forward)
            yield from _methods(kind, ours, theirs, PreTrainedModel)
    for kind, output in OUTPUTS.items():
        theirs = getattr(_module(variant, "modeling"), PREFIXES[variant] + kind, None)
        if theirs is not None:
            yield from _output(kind, output, theirs)
    kind = "ImageProcessor"
    ours, theirs = class_of(variant, kind), class_of(variant, kind, transformers)
    yield from _methods(kind, ours, theirs, TorchvisionBackend)
    yield from _settings(ours, theirs)


def _module(variant: str, kind: str) -> ModuleType:
    name = variant.replace("-", "_")
    return importlib.import_module(f"transformers.models.{name}.{kind}_{name}")


def _names(variant: str) -> Iterator[str]:
    has_processor = hasattr(transformers, PREFIXES[variant] + "ImageProcessor")
    for kind in ("configuration", "modeling", *["image_processing"] * has_processor):
        for name in _module(variant, kind).__all__:
            if not hasattr(hf_detr, name):
                yield f"no class `{name.replace(PREFIXES[variant], '…')}`"


def _config(ours: type[PreTrainedConfig], theirs: type[PreTrainedConfig]) -> Iterator[str]:
    defaults = {field.name: getattr(ours(), field.name) for field in dataclasses.fields(ours)}
    made = theirs()
    for field in dataclasses.fields(theirs):
        if field.name not in defaults:
            yield f"`Config`: no field `{field.name}`"
        elif field.name != "backbone_config" and defaults[field.name] != getattr(made, field.name):
            values = defaults[field.name], getattr(made, field.name)
            yield "`Config`: `{}` is {} by default, not {}".format(field.name, *map(repr, values))


def _arguments(where: str, ours: object, theirs: object) -> Iterator[str]:
    mine, their = inspect.signature(ours).parameters, inspect.signature(theirs).parameters
    any_other = inspect.Parameter.VAR_KEYWORD
    for name, parameter in their.items():
        if parameter.kind is any_other:
            if not any(one.kind is any_other for one in mine.values()):
                yield f"`{where}`: an unknown keyword is an error"
        elif name not in mine:
            yield f"`{where}`: no argument `{name}`"
        elif mine[name].kind is not parameter.kind:
            yield f"`{where}`: `{name}` by keyword only"
        elif parameter.default is not mine[name].default is inspect.Parameter.empty:
            yield f"`{where}`: `{name}` is required"
        elif parameter.default not in (inspect.Parameter.empty, mine[name].default):
            yield f"`{where}`: `{name}` is {mine[name].default} by default"


def _methods(kind: str, ours: type, theirs: type, base: type) -> Iterator[str]:
    for name in dir(theirs):
        theirs_own = getattr(theirs, name)
        if name.startswith("_") or theirs_own is getattr(base, name, None):
            continue
        if not hasattr(ours, name):
            yield f"`{kind}`: no `{name}`"
        elif inspect.isfunction(theirs_own) and name not in ("forward", "__init__"):
            yield from _arguments(f"{kind}.{name}", getattr(ours, name), theirs_own)


def _output(kind: str, ours: type[ModelOutput], theirs: type[ModelOutput]) -> Iterator[str]:
    mine = [field.name for field in dataclasses.fields(ours)]
    shared = []
    for field in dataclasses.fields(theirs):
        if field.name in mine:
            shared.append(field.name)
        elif field.name not in OF_TEXT_MODELS:
            yield f"`{kind}`: no `{field.name}`"
    if shared != sorted(shared, key=mine.index):
        yield f"`{kind}`: as a tuple, another order"


def _settings(ours: type, theirs: type) -> Iterator[str]:
    mine = ours.valid_kwargs.__annotations__
    for name in theirs.valid_kwargs.__annotations__:
        if name not in mine:
            yield f"`ImageProcessor`: no setting `{name}`"
    made, expected = ours().to_dict(), theirs().to_dict()
    for name, value in expected.items():
        if name in made and made[name] != value:
            yield f"`ImageProcessor`: `{name}` is {made[name]!r} by default, not {value!r}"


if __name__ == "__main__":
    print("\n".join(differences()))
