"""Small models and inputs that tests share."""

from typing import Any

import torch
from torch import Tensor

from hf_detr import DetrConfig, DetrForObjectDetection


def tiny_config(**changes: Any) -> DetrConfig:
    """A DETR with 0.5 M parameters, most of them in timm's smallest ResNet."""
    values = {
        "backbone": "test_resnet",
        "d_model": 32,
        "encoder_layers": 2,
        "encoder_attention_heads": 4,
        "encoder_ffn_dim": 64,
        "decoder_layers": 3,
        "decoder_attention_heads": 4,
        "decoder_ffn_dim": 64,
        "num_queries": 7,
        "num_labels": 5,
        "auxiliary_loss": False,
        **changes,
    }
    return DetrConfig(**values)


def tiny_detector(seed: int = 0, **changes: Any) -> DetrForObjectDetection:
    """A detector with seeded random weights, in eval mode."""
    torch.manual_seed(seed)
    return DetrForObjectDetection(tiny_config(**changes)).eval()


def padded_batch(batch_size: int = 2, height: int = 64, width: int = 96) -> tuple[Tensor, Tensor]:
    """Random images and their mask; all but the first are padded, each by another amount."""
    generator = torch.Generator().manual_seed(1)
    pixel_values = torch.randn(batch_size, 3, height, width, generator=generator)
    pixel_mask = torch.ones(batch_size, height, width, dtype=torch.long)
    for image in range(1, batch_size):
        pixel_mask[image, height - 10 * image :] = 0
        pixel_mask[image, :, width - 7 * image :] = 0
    return pixel_values * pixel_mask[:, None], pixel_mask


def some_labels(counts: tuple[int, ...] = (2, 0), num_labels: int = 5) -> list[dict[str, Tensor]]:
    """Random objects, as many per image as asked for."""
    generator = torch.Generator().manual_seed(2)
    return [
        {
            "class_labels": torch.randint(num_labels, (n,), generator=generator),
            "boxes": torch.rand(n, 4, generator=generator) * 0.3 + 0.3,
        }
        for n in counts
    ]
