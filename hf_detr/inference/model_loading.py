"""Loads models and image processors for the commands."""

import hashlib
import os
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import try_to_load_from_cache
from transformers import (
    AutoConfig,
    AutoImageProcessor,
    AutoModelForImageSegmentation,
    AutoModelForObjectDetection,
    PreTrainedConfig,
)

from ..image_processing.image_processor import DetectionImageProcessor
from ..models.pretrained_model import DetectionPreTrainedModel
from ..models.variants import VARIANTS, check_has_masks

TRAINED = "model"  # folder in the output of a training
MODEL_FILES = ("config.json", "preprocessor_config.json", "*.safetensors")


def embedded_model_folder(attention: bool = False) -> Path:
    """Return the folder of a small detector that is part of the package.

    It detects ten classes of garments. The folder holds the model and its image processor, for
    `from_pretrained` and `pipeline`.

    Args:
        attention: False for a Deformable DETR with 3.7 million parameters; True for a smaller and
            weaker Conditional DETR, whose attention over all pixels can be drawn.
    """
    return Path(__file__).parents[1] / ("garments_attention" if attention else "garments")


def load_model(
    name: str | os.PathLike[str] | None = None,
    device: str | None = None,
    masks: bool | None = None,
    dtype: str | None = None,
) -> tuple[DetectionPreTrainedModel, DetectionImageProcessor]:
    """Load a model in eval mode and its image processor.

    Args:
        name: folder or repository on the Hub. Default: the small model that comes with hf_detr.
        device: device of the model. Default: a GPU if available, else the CPU.
        masks: True requires a segmentation model; False loads only the detector of a segmentation
            model. Default: the saved class.
        dtype: torch's name of the model's dtype, such as "bfloat16". Default: the saved dtype.

    Raises:
        OSError: if the model doesn't exist.
        ValueError: if the model or its image processor isn't one of hf_detr's, if files are
            damaged, if `masks` is True for a detector, or if the device isn't available.
    """
    name = embedded_model_folder() if name is None else name
    try:
        model, processor = _load(name, masks)
    except (AttributeError, TypeError, KeyError) as error:
        raise ValueError(
            f"{name} can't be loaded; its config.json or preprocessor_config.json may be damaged. "
            f"{type(error).__name__}: {error}"
        ) from error
    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    try:
        return model.to(device=device, dtype=dtype and getattr(torch, dtype)), processor
    except (RuntimeError, AssertionError) as error:  # torch raises either
        raise ValueError(f"The device {device!r} isn't available: {error}") from error


def load_config(name: str | os.PathLike[str]) -> PreTrainedConfig:
    """Load the configuration of a model.

    Raises:
        OSError: if the model doesn't exist; names it, or the folder that has it.
    """
    inside = Path(name) / TRAINED
    try:
        return AutoConfig.from_pretrained(name)
    except (OSError, ValueError) as error:
        has_config = [(folder / MODEL_FILES[0]).is_file() for folder in (Path(name), inside)]
        if has_config == [False, True]:
            raise OSError(
                f"{name} is the output of a training; give its folder {inside}."
            ) from error
        if Path(name).is_dir() or isinstance(error, ValueError):
            raise
        raise OSError(
            f"{name} is neither a folder here, nor a model that can be loaded from the Hub: {error}"
        ) from error


def model_revision(model: DetectionPreTrainedModel) -> str | None:
    """Return what changes with the files of a model: a hash, or the revision on the Hub."""
    folder = Path(model.name_or_path)
    if not folder.is_dir():
        file = try_to_load_from_cache(model.name_or_path, "config.json")
        return Path(file).parent.name if isinstance(file, str) else None
    digest = hashlib.sha256()
    for file in sorted(path for pattern in MODEL_FILES for path in folder.glob(pattern)):
        with file.open("rb") as opened:
            digest.update(hashlib.file_digest(opened, "sha256").digest())
    return digest.hexdigest()


def _load(
    name: str | os.PathLike[str], masks: bool | None
) -> tuple[DetectionPreTrainedModel, DetectionImageProcessor]:
    config = load_config(name)
    if type(config) not in [variant.config for variant in VARIANTS.values()]:
        raise ValueError(
            f"{name} is a {config.model_type!r} model of {type(config).__module__}; expected a "
            f"model of hf_detr ({', '.join(VARIANTS)}). If it is one of these, remove "
            "HF_DETR_REGISTER=0 from the environment."
        )
    if masks:
        check_has_masks(config.model_type, str(name))
    has_masks = any(str(saved).endswith("ForSegmentation") for saved in config.architectures or ())
    if masks and not has_masks:
        raise ValueError(
            f"{name} has no mask head ({config.architectures}); expected a segmentation model."
        )
    use_masks = has_masks and masks is not False
    auto_class: Any = AutoModelForImageSegmentation if use_masks else AutoModelForObjectDetection
    model = auto_class.from_pretrained(name).eval()
    processor = AutoImageProcessor.from_pretrained(name)
    if not isinstance(processor, DetectionImageProcessor):
        raise ValueError(
            f"{name} has a {type(processor).__name__} in its preprocessor_config.json; expected an "
            "image processor of hf_detr, such as DetrImageProcessor."
        )
    return model, processor
