"""Observations of tiny detectors that tests of pictures share."""

from typing import Any

import torch
from torch import Tensor

from hf_detr.detection_transformer import ObjectDetector
from hf_detr.observation import Observation
from hf_detr.observing import observe

from .tiny import class_of, tiny_detector


def some_images() -> list[Tensor]:
    """Two images (3, H, W) of noise; side by side in a batch the second one is padded."""
    generator = torch.Generator().manual_seed(3)
    return [
        torch.randint(256, (3, *size_hw), dtype=torch.uint8, generator=generator)
        for size_hw in ((128, 192), (160, 80))
    ]


def make_processor(variant: str) -> Any:
    """A processor that halves those images."""
    return class_of(variant, "ImageProcessor")(size={"max_height": 80, "max_width": 96})


def tiny_observations(variant: str, **changes: Any) -> tuple[ObjectDetector, list[Observation]]:
    """A tiny detector, and what it saw in `some_images` as one batch."""
    model = tiny_detector(variant, **changes)
    return model, observe(model, make_processor(variant), some_images())
