"""Prepare a training: model, image processor, augmentation and data checks."""

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
from backbone_weights import load_backbone_weights
from training_options import RECIPES, FurtherOptions, Options
from transformers import (
    AutoConfig,
    AutoImageProcessor,
    AutoModelForImageSegmentation,
    AutoModelForObjectDetection,
    PreTrainedConfig,
)

from hf_detr.data.augmentation import (
    PAPER_SHORTEST_EDGES,
    SampleTransform,
    make_evaluation_transform,
    make_training_transform,
)
from hf_detr.data.check import check_dataset
from hf_detr.data.dataset import DetectionDataset


def make_model(options: Options, further: FurtherOptions, data: DetectionDataset) -> tuple:
    """Make or load the model and its image processor."""
    factory = AutoModelForImageSegmentation if further.panoptic else AutoModelForObjectDetection
    labels = {"id2label": data.id2label, "label2id": {n: i for i, n in data.id2label.items()}}
    if options.model not in RECIPES and not options.model.endswith(".json"):
        model = factory.from_pretrained(options.model, ignore_mismatched_sizes=True, **labels)
        processor = AutoImageProcessor.from_pretrained(options.model)
    else:
        architecture = read_architecture(options, further, data)
        preprocessing = architecture.pop("preprocessing", {})
        config = AutoConfig.for_model(architecture.pop("model_type"), **architecture, **labels)
        model = factory.from_config(config)
        if further.backbone_weights is not None:
            load_backbone_weights(model, further.backbone_weights)
        processor = RECIPES[config.model_type].processor(**preprocessing)
    model.config.auxiliary_loss = True
    model.unfreeze_backbone(further.frozen_stages)
    model.add_query_groups(further.query_groups)
    if further.freeze_detector:
        model.freeze_detector()
    if further.gradient_checkpointing:
        model.gradient_checkpointing_enable()
    if options.image_size is not None:
        longest = round(options.image_size * 1333 / 800)
        processor.size = {"shortest_edge": options.image_size, "longest_edge": longest}
    return model.to(memory_format=torch.channels_last), processor


def read_architecture(
    options: Options, further: FurtherOptions, data: DetectionDataset
) -> dict[str, Any]:
    """Values of a new model's configuration, and `preprocessing` of its image processor."""
    if options.model.endswith(".json"):
        return json.loads(Path(options.model).read_text())
    architecture: dict[str, Any] = {
        "model_type": options.model,
        "backbone": "resnet50.tv_in1k",
        "use_pretrained_backbone": further.backbone_weights is None,
    }
    if options.small_data:
        most = int(np.diff(data.table.offsets).max())
        architecture["num_queries"] = max(2 * most, 20)
    return architecture


def make_transform(options: Options, further: FurtherOptions, processor: Any) -> SampleTransform:
    """The papers' augmentation scaled to the model's image size; none for the health check."""
    size = dict(processor.size)
    if options.overfit or further.no_augmentation:
        return make_evaluation_transform(size["shortest_edge"], size.get("longest_edge"))
    scale = size["shortest_edge"] / max(PAPER_SHORTEST_EDGES)
    return make_training_transform(
        [round(edge * scale) for edge in PAPER_SHORTEST_EDGES],
        size.get("longest_edge"),
        crop_probability=further.crop,
    )


def check(data: DetectionDataset, name: str, config: PreTrainedConfig) -> None:
    """Exit if the data have errors."""
    num_queries = config.num_queries
    if getattr(config, "two_stage", False):
        num_queries = config.two_stage_num_proposals
    report = check_dataset(data, num_queries)
    print(f"{name} data: {report.text()}", file=sys.stderr)
    if not report.may_train:
        sys.exit(f"The {name} data have errors; fix the problems marked ERROR above.")
