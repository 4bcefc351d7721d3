"""Make or load the model of a training, its image processor and the augmentation."""

import json
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import (
    AutoConfig,
    AutoImageProcessor,
    AutoModelForImageSegmentation,
    AutoModelForObjectDetection,
    PreTrainedModel,
)

from ..data.augmentation import (
    PAPER_SHORTEST_EDGES,
    SampleTransform,
    make_evaluation_transform,
    make_training_transform,
)
from ..data.dataset import DetectionDataset
from ..inference.model_loading import load_config
from ..models.pretrained_model import DetectionPreTrainedModel
from ..models.segmentation import Segmenter
from ..models.variants import VARIANTS, check_has_masks
from ..wording import some_of
from .backbone_weights import load_backbone_weights
from .lora import add_lora
from .options import TrainingOptions


def is_new(name: str) -> bool:
    """Whether the name of a model means a new one: a model type, or a `.json` file."""
    return name in VARIANTS or name.endswith(".json")


def make_model(
    name: str, options: TrainingOptions, data: DetectionDataset
) -> tuple[PreTrainedModel, Any, list[str]]:
    """Make or load a model with the classes of the data, and its image processor.

    A trained model keeps the weights of classes that it knows, see `ObjectDetector.resize_classes`.

    Args:
        name: model type for a new model as in the paper; `.json` file with another architecture
            (`model_type`, values of the configuration, and `preprocessing` of the processor); or
            folder or Hub name of a trained model.
        options: of the training.
        data: for training.

    Returns:
        Model, processor, and the names of the classes that are new to a trained model.

    Raises:
        ValueError: if an option can't be used with the model.
        OSError: if it can't be loaded.
    """
    if options.backbone_weights is not None and not is_new(name):
        raise ValueError(f"--backbone-weights is for a new model; {name} is loaded with its own.")
    factory = AutoModelForImageSegmentation if options.panoptic else AutoModelForObjectDetection
    if not is_new(name):
        config = load_config(name)
        if options.panoptic:
            check_has_masks(config.model_type, name)
        # Half precision, as some are saved in, would round small updates away.
        model = factory.from_pretrained(name, dtype=torch.float32)
        if not isinstance(model, DetectionPreTrainedModel):
            raise ValueError(
                f"{name} is a {model.config.model_type!r} model of {type(model).__module__}; "
                f"expected a model of hf_detr ({', '.join(VARIANTS)})."
            )
        detector = model.detector if isinstance(model, Segmenter) else model
        kept = detector.resize_classes(data.id2label)
        new_classes = [label for label in data.id2label.values() if label not in kept]
        return model, AutoImageProcessor.from_pretrained(name), new_classes
    labels = {"id2label": data.id2label, "label2id": {n: i for i, n in data.id2label.items()}}
    architecture = _read_architecture(name, options, data)
    preprocessing = architecture.pop("preprocessing", {})
    config = AutoConfig.for_model(architecture.pop("model_type"), **architecture, **labels)
    if options.panoptic:
        check_has_masks(config.model_type, name)
    model = factory.from_config(config, dtype=torch.float32)
    if options.backbone_weights is not None:
        load_backbone_weights(model, Path(options.backbone_weights))
    variant = VARIANTS[config.model_type]
    return model, variant.image_processor(**(variant.preprocessing | preprocessing)), []


def prepare_model(model: PreTrainedModel, processor: Any, options: TrainingOptions) -> None:
    """Set what is trained, and the size of the images.

    Raises:
        ValueError: if the model is in half precision, has no such part, or an option can't be used
            with it.
    """
    _check_precision(model)
    model.config.auxiliary_loss = True
    model.config.class_thresholds = None  # training changes the scores
    model.unfreeze_backbone(options.frozen_stages)
    if options.num_queries is not None:
        model.resize_queries(options.num_queries)
    model.add_query_groups(options.query_groups)
    if options.denoising is not None:
        model.add_denoising(options.denoising)
    if options.lora:
        add_lora(model, options.lora)
    freeze(model, options.freeze)
    if options.gradient_checkpointing:
        model.gradient_checkpointing_enable()
    if options.image_size is not None:
        variant = VARIANTS[model.config.model_type]
        paper = variant.preprocessing.get("size", variant.image_processor.size)
        longest = round(options.image_size * paper["longest_edge"] / paper["shortest_edge"])
        processor.size = {"shortest_edge": options.image_size, "longest_edge": longest}
    model.to(memory_format=torch.channels_last)


def _check_precision(model: nn.Module) -> None:
    """Check that small updates of the weights aren't rounded away."""
    for parameter in model.parameters():
        if parameter.dtype in (torch.bfloat16, torch.float16):
            raise ValueError(
                f"The model has parameters in {str(parameter.dtype).removeprefix('torch.')}; "
                "training needs float32: model.float(); --precision bf16 (precision='bf16') is "
                "for mixed precision."
            )


def freeze(model: nn.Module, names: list[str]) -> None:
    """Stop the training of all parts that have one of the names, such as `encoder`.

    Raises:
        ValueError: if no part has the name, or nothing is left to train.
    """
    parts = dict(model.named_modules())
    for name in names:
        found = [part for path, part in parts.items() if path.split(".")[-1] == name]
        if not found:
            known = {path.split(".")[-1] for path in parts if path.count(".") <= 1} - {""}
            raise ValueError(
                f"--freeze is {name!r}, but the model has no such part; it has "
                f"{some_of(sorted(known), 20)}."
            )
        for part in found:
            part.requires_grad_(False)
    if names and not any(parameter.requires_grad for parameter in model.parameters()):
        raise ValueError(f"--freeze {' '.join(names)} leaves nothing to train.")


def _read_architecture(
    name: str, options: TrainingOptions, data: DetectionDataset
) -> dict[str, Any]:
    """Values of a new model's configuration, and `preprocessing` of its image processor."""
    if name.endswith(".json"):
        return json.loads(Path(name).read_text(encoding="utf-8"))
    architecture: dict[str, Any] = {
        "model_type": name,
        "backbone": VARIANTS[name].recipe.backbone,
        "use_pretrained_backbone": options.backbone_weights is None,
    }
    if options.small_data:
        architecture["num_queries"] = max(2 * data.table.most_objects(), 20)
    return architecture


def make_transform(options: TrainingOptions, processor: Any) -> SampleTransform:
    """The papers' augmentation scaled to the model's image size; none for the health check.

    Raises:
        ValueError: if the processor doesn't keep the images' proportions.
    """
    size = dict(processor.size)
    if not size.get("shortest_edge"):
        raise ValueError(
            f"The image processor's size is {size}, which distorts images; set its shortest_edge, "
            "for example by --image-size."
        )
    if options.overfit or options.no_augmentation:
        return make_evaluation_transform(size["shortest_edge"], size.get("longest_edge"))
    scale = size["shortest_edge"] / max(PAPER_SHORTEST_EDGES)
    return make_training_transform(
        [round(edge * scale) for edge in PAPER_SHORTEST_EDGES],
        size.get("longest_edge"),
        crop_probability=options.crop,
    )
