"""Official `.pth` checkpoints to Hub folders, and back."""

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

from .checkpoint_files import check_tensors, new_file, new_folder, read_pickled_checkpoint
from .checkpoint_names import first_name, official_name
from .detrex_names import from_detrex, has_detrex_names
from .image_processing_detr import DetrImageProcessor
from .image_processing_sigmoid_detr import (
    ConditionalDetrImageProcessor,
    DeformableDetrImageProcessor,
)
from .mmdetection_names import (
    has_mmdetection_names,
    refuse_other_settings,
    with_official_names,
)
from .model_card import make_model_card
from .modeling_conditional_detr import ConditionalDetrForObjectDetection
from .modeling_deformable_detr import DeformableDetrForObjectDetection
from .modeling_detr import DetrForObjectDetection
from .modeling_detr_segmentation import DetrForSegmentation
from .official_configuration import (
    heads_are_shared,
    official_options,
    read_configuration,
    recognize,
    unseen,
)
from .published_checkpoints import find_published_checkpoint, make_published_card
from .wording import some_of

DETECTORS = {
    "detr": DetrForObjectDetection,
    "conditional_detr": ConditionalDetrForObjectDetection,
    "deformable_detr": DeformableDetrForObjectDetection,
}
PROCESSORS = {
    "detr": DetrImageProcessor,
    "conditional_detr": ConditionalDetrImageProcessor,
    "deformable_detr": DeformableDetrImageProcessor,
}

# By these, published configurations differ from each other and from others of their file's name.
TELLING_FIELDS = (
    *("architectures", "backbone", "dilation", "num_labels", "num_queries", "d_model"),
    *("encoder_layers", "decoder_layers", "encoder_attention_heads", "num_feature_levels"),
    *("with_box_refine", "two_stage"),
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
    """Turn a `.pth` of the papers' own code, MMDetection or detrex into a folder for the Hub.

    Which model it is, is read off the names and shapes of its weights: DETR, Conditional DETR or
    Deformable DETR in all published forms, DETR with a mask head, too. The folder gets
    `config.json`, `model.safetensors`, `preprocessor_config.json` and a card, `README.md`, with the
    authors' figures if the file is one that they published. Where the encoder proposes the
    queries, there are 300 of them unless the file says otherwise.

    Args:
        file: the checkpoint; it is read without running code that it may hold.
        folder: where to write; it appears when everything is written.
        dilation: whether the backbone is dilated (DC5), which weights don't show. None takes what
            the training script saved in the file, or what the name of a published file says.
        num_heads: heads of every attention, which most weights don't show either; likewise.
        id2label: names of the classes; None takes COCO's if there are as many as COCO has.
        overwrite: replace files that are in `folder`.

    Returns:
        The model that was written, in eval mode.

    Raises:
        FileNotFoundError, FileExistsError: if there is no `file`, or something in `folder`.
        ValueError: if the file would run code or is damaged, if its weights aren't all known and
            complete, if nothing says what they don't show, or if hf_detr has no such backbone.
    """
    file, folder = Path(file), Path(folder)
    weights, options, other_dilation = _read(file)
    dilation, num_heads = unseen(options, file.name, dilation, num_heads)
    if dilation and other_dilation:
        raise ValueError(
            f"The checkpoint has the backbone of {other_dilation}, which dilates the first block "
            "of its last stage, too; the papers' code, torchvision and timm don't, so hf_detr has "
            "no such backbone."
        )
    model = model_from_weights(weights, options, dilation, num_heads, id2label)
    kind = "coco_panoptic" if isinstance(model, DetrForSegmentation) else "coco_detection"
    with new_folder(folder, overwrite) as unfinished:
        model.save_pretrained(unfinished)
        PROCESSORS[model.config.model_type](format=kind).save_pretrained(unfinished)
        card = make_converted_card(model.config, file, folder.resolve().name)
        (unfinished / "README.md").write_text(str(card), encoding="utf-8")
    return model


def make_converted_card(config: PreTrainedConfig, file: Path, name: str) -> ModelCard:
    """The card of a converted checkpoint.

    Args:
        config: of the model that was made of it, with `architectures`.
        file: the official file. If it is one that the authors published, by its name, its digest
            where the name tells that, and its configuration, the card has their figures and recipe.
        name: folder or repository that the card lies in.
    """
    published = find_published_checkpoint(file)
    if (
        published is not None
        and _is_built_alike(config, published.make_config())
        and is_what_its_name_says(file)
    ):
        return make_published_card(published, config, name)
    return make_model_card(
        config,
        name=name,
        description=f"hf_detr converted `{file.name}`, a checkpoint of the papers' own code, of "
        "MMDetection or of detrex.",
        training="The file tells nothing of data and recipe.",
        evaluation="None: add what you measure, for example with `hf-detr evaluate`.",
    )


def is_what_its_name_says(file: Path) -> bool:
    """Whether a name that ends as torch.hub's do, with the start of a SHA-256, is the file's own.

    Other names say nothing, so they are believed.
    """
    digest = re.search(r"-([0-9a-f]{8})\.pth$", file.name)
    if digest is None:
        return True
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest().startswith(digest[1])


def export_official_checkpoint(
    folder: str | os.PathLike, file: str | os.PathLike, *, overwrite: bool = False
) -> None:
    """Turn a folder with a model of ours into a `.pth` that the papers' own code loads.

    Weights are under "model" as there; under "args", in a plain dictionary, are the options of the
    official script that build the model.

    Args:
        folder: with `config.json` and safetensors.
        file: where to write.
        overwrite: replace `file` if it exists.

    Raises:
        FileNotFoundError, FileExistsError: if there is no such folder, or `file` exists.
        ValueError: if the official code has no such model.
    """
    if not (Path(folder) / "config.json").is_file():
        raise FileNotFoundError(f"There is no config.json in {folder}; expected a model's folder.")
    model = _load(Path(folder))
    config = model.config
    options = {**official_options(config), "masks": isinstance(model, DetrForSegmentation)}
    thirds: dict[str, dict[int | None, Tensor]] = {}
    for name, tensor in model.state_dict().items():
        official, part = official_name(name, config.model_type)
        thirds.setdefault(official, {})[part] = tensor
    weights = {
        name: parts[None] if None in parts else torch.cat([parts[0], parts[1], parts[2]])
        for name, parts in thirds.items()
    }
    with new_file(Path(file), overwrite) as unfinished:
        torch.save({"model": weights, "args": options}, unfinished)


def model_from_weights(
    weights: Mapping[str, Tensor],
    options: Mapping[str, Any],
    dilation: bool,
    num_heads: int,
    id2label: Mapping[int, str] | None = None,
) -> PreTrainedModel:
    """Our model with official weights, every one of them used and none lacking.

    Arguments and errors as of `read_configuration`.
    """
    config = read_configuration(weights, options, dilation, num_heads, id2label)
    model_type, has_masks = recognize(weights)
    with torch.device("meta"):  # draws no weights
        model = (DetrForSegmentation if has_masks else DETECTORS[model_type])(config)
    is_shared = heads_are_shared(weights, model_type)
    state = _state(model, _one_of_each(weights, is_shared), is_shared)
    model.load_state_dict(state, assign=True)
    return model.eval()


def _state(model: PreTrainedModel, given: dict[str, Tensor], is_shared: bool) -> dict[str, Tensor]:
    """Official weights, one of each, under our names."""
    state, used, problems = {}, set(), {"lacks": [], "has unknown": [], "has of a wrong shape": []}
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
            problems["has of a wrong shape"].append(f"{official} {got} instead of {shape}")
        else:
            tensor = given[official] if part is None else given[official].chunk(3)[part]
            state[name] = tensor.clone(memory_format=torch.contiguous_format)
    problems["has unknown"] = [name for name in given if name not in used]
    if any(problems.values()):
        found = "; ".join(
            f"{what}: {some_of([*dict.fromkeys(names)])}"  # thirds of one tensor are named once
            for what, names in problems.items()
            if names
        )
        raise ValueError(
            f"The weights aren't those of {type(model).__name__} with {model.config.backbone}, as "
            f"which they were recognised. The file {found}."
        )
    return state


def _read(file: Path) -> tuple[dict[str, Tensor], dict[str, Any], str | None]:
    """Weights of a checkpoint under official names, and what else it tells.

    The latter are options of the script that trained it, if they are there, and the library whose
    backbone dilates in another way than torchvision's, or None.
    """
    content = read_pickled_checkpoint(file)
    # The papers' code and detrex, MMDetection, or weights and nothing else.
    place = next((key for key in ("model", "state_dict") if key in content), None)
    weights = content if place is None else content[place]
    options = content.get("args") if place == "model" else None
    if isinstance(options, argparse.Namespace):
        options = vars(options)
    if not isinstance(weights, dict):
        raise ValueError(f"{file} has a {type(weights).__name__} as {place!r}; expected weights.")
    check_tensors(weights, file)
    other_dilation = None
    if has_mmdetection_names(weights):
        refuse_other_settings(content.get("meta"))
        weights, other_dilation = with_official_names(weights), "MMDetection"
    elif has_detrex_names(weights):
        other_dilation = "detectron2" if "backbone.stem.conv1.weight" in weights else None
        weights = from_detrex(weights)
    # Frozen batch norm counts no batches, though some files do.
    weights = {n: t for n, t in weights.items() if not n.endswith(".num_batches_tracked")}
    return weights, options or {}, other_dilation


def _is_built_alike(one: PreTrainedConfig, other: PreTrainedConfig) -> bool:
    """Whether two configurations differ, if at all, in training and in the names of classes."""
    return all(getattr(one, field, None) == getattr(other, field, None) for field in TELLING_FIELDS)


def _load(folder: Path) -> PreTrainedModel:
    """The model in a folder, if all its weights are there and there is such an official one."""
    fields, _ = PreTrainedConfig.get_config_dict(folder)
    known = {c.__name__: c for c in (*DETECTORS.values(), DetrForSegmentation)}
    names = fields.get("architectures") or []
    if len(names) != 1 or names[0] not in known:
        raise ValueError(f"The official code has no such model as {', '.join(names) or None}.")
    model, info = known[names[0]].from_pretrained(folder, output_loading_info=True)
    wrong = {kind: some_of(sorted(map(str, keys))) for kind, keys in info.items() if keys}
    if wrong:
        raise ValueError(f"The weights in {folder} aren't those of its configuration: {wrong}.")
    return model


def _one_of_each(weights: Mapping[str, Tensor], is_shared: bool) -> dict[str, Tensor]:
    """Weights under one name each, after a check that all names of a head hold the same."""
    given: dict[str, Tensor] = {}
    for name, tensor in weights.items():
        first = first_name(name, is_shared)
        if not torch.equal(given.setdefault(first, tensor), tensor):
            raise ValueError(
                f"{name!r} and {first!r} differ in the file, but are one weight of the model."
            )
    dtypes = {tensor.dtype for tensor in given.values()}
    if len(dtypes) != 1 or not dtypes.copy().pop().is_floating_point:
        raise ValueError(
            f"The weights have dtypes {sorted(map(str, dtypes))}; expected one of floating point."
        )
    return given
