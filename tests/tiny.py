"""Small models and inputs, shared by tests."""

from types import ModuleType
from typing import Any

import torch
from torch import Tensor
from torchvision import tv_tensors
from transformers import PreTrainedConfig

import hf_detr
from hf_detr.models.object_detector import ObjectDetector
from hf_detr.models.variants import VARIANTS

# Prefixes of the variants' class names in hf_detr and transformers.
PREFIXES = {
    "detr": "Detr",
    "conditional_detr": "ConditionalDetr",
    "deformable_detr": "DeformableDetr",
    "table-transformer": "TableTransformer",
    "dino_detr": "DinoDetr",
}
WITH_MASKS = [name for name in PREFIXES if VARIANTS[name].segmenter is not None]
# Variants and kinds of classes with heads.
WITH_HEADS = [
    *((name, "ForObjectDetection") for name in PREFIXES),
    *((name, "ForSegmentation") for name in WITH_MASKS),
]
IN_TRANSFORMERS = [name for name in PREFIXES if name != "dino_detr"]
WITH_GROUPS = [name for name in PREFIXES if name != "dino_detr"]  # of training queries
SAMPLED = ("deformable_detr", "dino_detr")  # attention samples points of several levels
SOFTMAX = ("detr", "table-transformer")  # scores by softmax, boxes without reference points
# Settings of a deterministic model.
NO_DROPOUT = {"dropout": 0.0, "attention_dropout": 0.0, "activation_dropout": 0.0}


def class_of(variant: str, kind: str, package: ModuleType = hf_detr) -> type:
    """Return a variant's class of a kind, such as `ForObjectDetection`."""
    if (variant, kind) == ("table-transformer", "ImageProcessor"):
        variant = "detr"  # it has no image processor of its own
    return getattr(package, PREFIXES[variant] + kind)


def tiny_config(variant: str = "detr", **changes: Any) -> PreTrainedConfig:
    """Return the configuration of a detector with 0.5 M parameters, mostly in its backbone."""
    values = {
        "backbone": "test_resnet",
        "d_model": 64,
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
    if variant == "dino_detr":
        values = {"num_denoising_queries": 4, **values}
    return class_of(variant, "Config")(**values)


def tiny_detector(variant: str = "detr", **changes: Any) -> ObjectDetector:
    """Make a detector with seeded random weights, in eval mode."""
    torch.manual_seed(0)
    return class_of(variant, "ForObjectDetection")(tiny_config(variant, **changes)).eval()


def padded_batch(batch_size: int = 2, height: int = 64, width: int = 96) -> tuple[Tensor, Tensor]:
    """Make random images and their mask; all but the first are padded by different amounts."""
    generator = torch.Generator().manual_seed(1)
    pixel_values = torch.randn(batch_size, 3, height, width, generator=generator)
    pixel_mask = torch.ones(batch_size, height, width, dtype=torch.long)
    for image in range(1, batch_size):
        pixel_mask[image, height - 10 * image :] = 0
        pixel_mask[image, :, width - 7 * image :] = 0
    return pixel_values * pixel_mask[:, None], pixel_mask


def some_labels(counts: tuple[int, ...] = (2, 0), num_labels: int = 5) -> list[dict[str, Tensor]]:
    """Make random labels with the given number of objects per image."""
    generator = torch.Generator().manual_seed(2)
    return [
        {
            "class_labels": torch.randint(num_labels, (n,), generator=generator),
            "boxes": torch.rand(n, 4, generator=generator) * 0.3 + 0.3,
        }
        for n in counts
    ]


def random_sample(
    height: int = 48, width: int = 64, num_objects: int = 3, image_id: int = 1, masks: bool = False
) -> tuple[tv_tensors.Image, dict[str, Tensor]]:
    """Make an image of noise and a target with random boxes, as a data set returns them."""
    generator = torch.Generator().manual_seed(image_id)
    pixels = torch.randint(256, (3, height, width), dtype=torch.uint8, generator=generator)
    points = torch.rand(num_objects, 2, 2, generator=generator) * torch.tensor([width, height])
    boxes = torch.cat([points.amin(1), points.amax(1)], dim=-1)
    target = {
        "image_id": torch.tensor([image_id]),
        "class_labels": torch.arange(num_objects) % 5,
        "boxes": tv_tensors.BoundingBoxes(boxes, format="XYXY", canvas_size=(height, width)),
        "area": (boxes[:, 2:] - boxes[:, :2]).prod(-1),
        "iscrowd": torch.zeros(num_objects, dtype=torch.int64),
        "orig_size": torch.tensor([height, width]),
    }
    if masks:
        noise = torch.rand(num_objects, height, width, generator=generator)
        target["masks"] = tv_tensors.Mask(noise > 0.5)
    return tv_tensors.Image(pixels), target
