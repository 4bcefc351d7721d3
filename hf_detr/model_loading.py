"""Models and their image processors by name, as commands take them."""

import os
from typing import Any

import torch
from transformers import (
    AutoConfig,
    AutoImageProcessor,
    AutoModelForImageSegmentation,
    AutoModelForObjectDetection,
)

from .configuration_detr import CONFIGURATIONS
from .embedded_model import embedded_model_folder
from .image_processing_detr import DetrImageProcessor
from .pretrained_model import DetectionPreTrainedModel


def load_model(
    name: str | os.PathLike[str] | None = None,
    device: str | None = None,
    masks: bool | None = None,
    dtype: str | None = None,
) -> tuple[DetectionPreTrainedModel, DetrImageProcessor]:
    """Load a model in eval mode, and its image processor.

    Args:
        name: folder or name on the Hub; None is the small model that comes with hf_detr.
        device: where the model goes; None is a GPU if there is one, else the CPU.
        masks: True asks for a segmentation model; False takes the detector of one; None takes
            what was saved.
        dtype: torch's name of what weights and maps become, such as "bfloat16"; None keeps what
            was saved.

    Raises:
        ValueError, OSError: if there is no such model, if it is another package's, if it has no
            masks and they are asked for, or if the device can't be used.
    """
    name = embedded_model_folder() if name is None else name
    try:
        model, processor = _load(name, masks)
    except (AttributeError, TypeError, KeyError) as error:
        raise ValueError(
            f"{name} can't be loaded; is its config.json or preprocessor_config.json damaged? "
            f"{type(error).__name__}: {error}"
        ) from error
    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    try:
        return model.to(device=device, dtype=dtype and getattr(torch, dtype)), processor
    except (RuntimeError, AssertionError) as error:  # torch has either for devices it lacks
        raise ValueError(f"the device {device!r} can't be used: {error}") from error


def _load(
    name: str | os.PathLike[str], masks: bool | None
) -> tuple[DetectionPreTrainedModel, DetrImageProcessor]:
    config = AutoConfig.from_pretrained(name)
    if not isinstance(config, tuple(CONFIGURATIONS.values())):
        raise ValueError(
            f"{name} is a {config.model_type!r} of {type(config).__module__}; expected one of "
            "hf_detr's: detr, conditional_detr or deformable_detr. If it is one of these, "
            "HF_DETR_REGISTER=0 in the environment keeps it from being loaded as such."
        )
    has_masks = any(str(saved).endswith("ForSegmentation") for saved in config.architectures or ())
    if masks and not has_masks:
        raise ValueError(
            f"{name} has no mask head ({config.architectures}); give a segmentation model for "
            "masks."
        )
    wants_masks = has_masks and masks is not False
    auto_class: Any = AutoModelForImageSegmentation if wants_masks else AutoModelForObjectDetection
    model = auto_class.from_pretrained(name).eval()
    processor = AutoImageProcessor.from_pretrained(name)
    if not isinstance(processor, DetrImageProcessor):
        raise ValueError(
            f"{name} has a {type(processor).__name__} in its preprocessor_config.json; expected an "
            "image processor of hf_detr's, such as DetrImageProcessor."
        )
    return model, processor
