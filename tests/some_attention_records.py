"""Attention records of tiny detectors, for the tests of plots."""

from typing import Any

import torch
from torch import Tensor

from hf_detr.inference.attention_record import AttentionRecord
from hf_detr.inference.record_attention import record_attention
from hf_detr.models.object_detector import ObjectDetector

from .tiny import class_of, tiny_detector


def some_images() -> list[Tensor]:
    """Two images (3, H, W) of noise; in a batch the second one is padded."""
    generator = torch.Generator().manual_seed(3)
    return [
        torch.randint(256, (3, *size_hw), dtype=torch.uint8, generator=generator)
        for size_hw in ((128, 192), (160, 80))
    ]


def make_processor(variant: str) -> Any:
    """An image processor that halves the images."""
    return class_of(variant, "ImageProcessor")(size={"max_height": 80, "max_width": 96})


def tiny_records(variant: str, **changes: Any) -> tuple[ObjectDetector, list[AttentionRecord]]:
    """A tiny detector and its records of `some_images` as one batch."""
    model = tiny_detector(variant, **changes)
    return model, record_attention(model, make_processor(variant), some_images())
