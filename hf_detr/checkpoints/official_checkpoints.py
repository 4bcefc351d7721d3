"""Converts official `.pth` checkpoints to Hub folders and back."""

import argparse
import hashlib
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import ModelCard
from torch import Tensor
from transformers import PreTrainedConfig, PreTrainedModel

from ..atomic_saving import atomic_file, atomic_folder
from ..models.segmentation import Segmenter
from ..models.variants import VARIANTS
from ..wording import some_of
from .checkpoint_files import check_target, check_tensors, read_pickled_checkpoint
from .checkpoint_names import first_name, official_name, repeated_names
from .model_card import CARD_NAME, make_model_card
from .official_configuration import (
    dilation_and_heads,
    heads_are_shared,
    read_configuration,
    recognize,
)
from .official_options import official_options
from .other_libraries import rename_other_libraries
from .published_checkpoints import find_published_checkpoint, make_published_card

PARALLEL = "module."  # prefix of names that torch's parallel wrappers save
# Fields that distinguish a published configuration from others.
ARCHITECTURE_FIELDS = (
    *("architectures", "backbone", "dilation", "num_labels", "num_queries", "d_model"),
    *("encoder_layers", "decoder_layers", "encoder_attention_heads", "num_feature_levels"),
    *("with_box_refine", "two_stage", "shared_heads"),
)


def convert_official_checkpoint(
    file: str | os.PathLike,
    folder: str | os.PathLike,
    *,
    dilation: bool | None = None,
    num_heads: int | None = None,
    id2label: Mapping[int, str] | None = None,
    overwrite: bool = False,
) -> PreTrainedModel:
    """Convert a `.pth` checkpoint of the official code, MMDetection or detrex to a Hub folder.

    The model is recognized from the names and shapes of its weights: DETR (also with a mask head),
    Conditional DETR, Deformable DETR in all published forms, Table Transformer and DINO. The folder
    contains `config.json`, `model.safetensors`, `preprocessor_config.json` and a model card,
    `README.md`, which includes the published results of a published checkpoint. A two-stage model
    gets 300 queries unless the file has another number.

    Args:
        file: the checkpoint; it is loaded without running code from it.
        folder: the output folder; it is created when all files are written.
        dilation, num_heads: whether the backbone is dilated (DC5) and number of attention heads,
            which weights don't show. Default: the options in the file, or of a published file.
        id2label: names of the classes. Default: COCO's if the number of classes is COCO's.
        overwrite: replace existing files in `folder`.

    Returns:
        The converted model, in eval mode.

    Raises:
        FileNotFoundError, FileExistsError: if `file` doesn't exist or `folder` isn't empty.
        ValueError: if the file is damaged or would run code, if weights are missing or unexpected,
            if `dilation` or `num_heads` is required, or if the backbone isn't supported.
    """
    file, folder = Path(file), Path(folder)
    check_target(folder, overwrite, is_folder=True)
    weights, options, other_dilation = _read(file)
    recognize(weights)  # before options are asked for that no model of hf_detr could use
    dilation, num_heads = dilation_and_heads(options, file.name, dilation, num_heads)
    if dilation and other_dilation:
        raise ValueError(
            f"The checkpoint has a dilated backbone of {other_dilation}, which dilates the first "
            "block of its last stage, too. This isn't supported: the official code, torchvision "
            "and timm don't dilate it."
        )
    published = find_published_checkpoint(file)
    if published is not None:
        id2label = id2label or published.id2label
    model = model_from_weights(weights, options, dilation, num_heads, id2label)
    variant = VARIANTS[model.config.model_type]
    preprocessing = variant.preprocessing | (published.preprocessing if published else {})
    kind = "coco_panoptic" if isinstance(model, Segmenter) else "coco_detection"
    with atomic_folder(folder) as unfinished:
        model.save_pretrained(unfinished)
        variant.image_processor(format=kind, **preprocessing).save_pretrained(unfinished)
        card = make_converted_card(model.config, file, folder.resolve().name)
        (unfinished / CARD_NAME).write_text(str(card), encoding="utf-8")
    return model


def make_converted_card(config: PreTrainedConfig, file: Path, name: str) -> ModelCard:
    """Make the model card of a converted checkpoint.

    The card has the published results and training recipe if the file is a published one: its
    name, the digest in its name if any, and its configuration are compared.

    Args:
        config: of the converted model, with `architectures`.
        file: the official checkpoint.
        name: folder or repository of the card.
    """
    published = find_published_checkpoint(file)
    if published is not None and matches_digest_in_name(file):
        official = published.make_config()
        if all(getattr(config, f, None) == getattr(official, f, None) for f in ARCHITECTURE_FIELDS):
            return make_published_card(published, config, name)
    return make_model_card(
        config,
        name=name,
        description=f"Converted by hf_detr from `{file.name}`, a checkpoint of the official code, "
        "MMDetection or detrex.",
        training="Unknown: the file doesn't contain the training data and recipe.",
        evaluation="Not evaluated. `hf-detr evaluate` measures AP on your data.",
    )


def matches_digest_in_name(file: Path) -> bool:
    """Return whether a file has the SHA-256 at the end of its name, as in torch.hub's names.

    True for names without a digest.
    """
    digest = re.search(r"-([0-9a-f]{8})\.pth$", file.name)
    if digest is None:
        return True
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest().startswith(digest[1])


def export_official_checkpoint(
    folder: str | os.PathLike, file: str | os.PathLike, *, overwrite: bool = False
) -> None:
    """Convert a model folder to a `.pth` checkpoint that the official code loads.

    The checkpoint contains the weights as "model" and the options of the official training script
    that build the model as "args", a plain dictionary; for Table Transformer's code, which reads no
    options from it, only the weights.

    Args:
        folder: model folder with `config.json` and safetensors.
        file: the output file.
        overwrite: replace `file` if it exists.

    Raises:
        FileNotFoundError, FileExistsError: if `folder` isn't a model folder or `file` exists.
        ValueError: if the official code doesn't have such a model.
    """
    check_target(Path(file), overwrite, is_folder=False)
    if not (Path(folder) / "config.json").is_file():
        raise FileNotFoundError(f"{folder} has no config.json; expected a model folder.")
    model = _load(Path(folder))
    config = model.config
    options = {**official_options(config), "masks": isinstance(model, Segmenter)}
    thirds: dict[str, dict[int | None, Tensor]] = {}
    for name, tensor in model.state_dict().items():
        official, part = official_name(name, config.model_type)
        thirds.setdefault(official, {})[part] = tensor
    weights = {
        name: parts[None] if None in parts else torch.cat([parts[0], parts[1], parts[2]])
        for name, parts in thirds.items()
    }
    variant = VARIANTS[config.model_type]
    if variant.official_repeats_heads:
        weights = {
            repeated: tensor
            for name, tensor in weights.items()
            for repeated in repeated_names(name, config.decoder_layers, config.shared_heads)
        }
    content = weights if variant.official_is_bare else {"model": weights, "args": options}
    with atomic_file(file) as unfinished:
        torch.save(content, unfinished)


def model_from_weights(
    weights: Mapping[str, Tensor],
    options: Mapping[str, Any],
    dilation: bool,
    num_heads: int,
    id2label: Mapping[int, str] | None = None,
) -> PreTrainedModel:
    """Build a model from official weights, all of which must be used and none missing.

    Args and errors: see `read_configuration`.
    """
    config = read_configuration(weights, options, dilation, num_heads, id2label)
    model_type, has_masks = recognize(weights)
    variant = VARIANTS[model_type]
    with torch.device("meta"):  # skips the initialisation of weights
        model = (variant.segmenter if has_masks else variant.detector)(config)
    is_shared = heads_are_shared(weights)
    state = _state(model, _one_of_each(weights, is_shared), is_shared)
    model.load_state_dict(state, assign=True)
    model.detection_transformer.backbone.restore_buffers()
    return model.eval()


def _state(model: PreTrainedModel, given: dict[str, Tensor], is_shared: bool) -> dict[str, Tensor]:
    """Return a state dict with hf_detr's names from official weights with one name each."""
    state, used, problems = {}, set(), {"lacks": [], "has unknown": [], "has wrong shapes": []}
    for name, expected in model.state_dict().items():
        official, part = official_name(name, model.config.model_type)
        official = first_name(official, is_shared)
        used.add(official)
        shape = tuple(expected.shape)
        if part is not None:
            shape = (3 * shape[0], *shape[1:])
        if official not in given:
            problems["lacks"].append(official)
        elif given[official].shape != shape:
            got = tuple(given[official].shape)
            problems["has wrong shapes"].append(f"{official} {got}, expected {shape}")
        else:
            tensor = given[official] if part is None else given[official].chunk(3)[part]
            state[name] = tensor.clone(memory_format=torch.contiguous_format)
    problems["has unknown"] = [name for name in given if name not in used]
    if any(problems.values()):
        found = "; ".join(
            f"{what}: {some_of([*dict.fromkeys(names)])}"  # the thirds of a tensor share a name
            for what, names in problems.items()
            if names
        )
        raise ValueError(
            f"The checkpoint was recognized as a {type(model).__name__} with "
            f"{model.config.backbone}, but its weights don't match: it {found}."
        )
    return state


def _read(file: Path) -> tuple[dict[str, Tensor], dict[str, Any], str | None]:
    """Read a checkpoint.

    Returns:
        The weights under official names, the options of the training script (empty if unknown),
        and the library whose backbone dilates differently than torchvision's, or None.
    """
    content = read_pickled_checkpoint(file)
    # "model": official code and detrex; "state_dict": MMDetection; "model_state_dict": a training
    # of Table Transformer; None: a bare state dict.
    places = ("model", "state_dict", "model_state_dict")
    place = next((key for key in places if key in content), None)
    weights = content if place is None else content[place]
    options = content.get("args") if place == "model" else None
    if isinstance(options, argparse.Namespace):
        options = vars(options)
    if not isinstance(weights, dict):
        raise ValueError(
            f"{file} has a {type(weights).__name__} as {place!r}; expected a state dict."
        )
    check_tensors(weights, file)
    if all(name.startswith(PARALLEL) for name in weights):
        weights = {name.removeprefix(PARALLEL): tensor for name, tensor in weights.items()}
    found = rename_other_libraries(weights, content.get("meta"))
    # Frozen batch norm doesn't have this buffer, but some files do.
    weights = {n: t for n, t in found.weights.items() if not n.endswith(".num_batches_tracked")}
    return weights, found.options or options or {}, found.other_dilation


def _load(folder: Path) -> PreTrainedModel:
    """Load a model folder; raise if weights are missing or the official code lacks the model."""
    fields, _ = PreTrainedConfig.get_config_dict(folder)
    classes = [variant.detector for variant in VARIANTS.values()]
    classes += [variant.segmenter for variant in VARIANTS.values() if variant.official_masks]
    known = {model_class.__name__: model_class for model_class in classes}
    names = fields.get("architectures") or []
    if len(names) != 1 or names[0] not in known:
        raise ValueError(
            f"config.architectures is {names}; expected one of {', '.join(known)}, which are the "
            "models of the official code."
        )
    model, info = known[names[0]].from_pretrained(folder, output_loading_info=True)
    wrong = {kind: some_of(sorted(map(str, keys))) for kind, keys in info.items() if keys}
    if wrong:
        raise ValueError(f"The weights in {folder} don't match its configuration: {wrong}.")
    return model


def _one_of_each(weights: Mapping[str, Tensor], is_shared: bool) -> dict[str, Tensor]:
    """Keep one name per weight; raise if weights with several names differ."""
    given: dict[str, Tensor] = {}
    for name, tensor in weights.items():
        first = first_name(name, is_shared)
        if not torch.equal(given.setdefault(first, tensor), tensor):
            raise ValueError(
                f"{name!r} and {first!r} differ in the file, but must be equal: they are the same "
                "weight of the model."
            )
    dtypes = {tensor.dtype for tensor in given.values()}
    if len(dtypes) != 1 or not dtypes.copy().pop().is_floating_point:
        raise ValueError(
            f"The weights have dtypes {sorted(map(str, dtypes))}; expected a single floating-point "
            "dtype."
        )
    return given
