"""Protects training until masks are useful: photographs composed to scenes, and their segments."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from hf_detr import PanopticQuality
from hf_detr.models.segmentation import Segmenter
from hf_detr.ops.box_ops import box_xyxy_to_cxcywh, masks_to_boxes

from ..tiny import WITH_MASKS, class_of, tiny_config

IMAGES = Path(__file__).parents[2] / "examples" / "images"
SIZE_HW = (64, 96)
CAT, CUP, TABLE = range(3)
# Photograph, and centre (x, y) and radius in pixels of the disc that is cut out of it.
DISCS = {CAT: ("cat.jpg", (230, 130), 95), CUP: ("coffee.jpg", (300, 190), 130)}


def cut_disc(label: int, size: int) -> tuple[np.ndarray, np.ndarray]:
    """A round piece of a photograph, (size, size, 3), and which of its pixels are inside."""
    name, (x, y), radius = DISCS[label]
    with Image.open(IMAGES / name) as photograph:
        piece = photograph.convert("RGB").crop((x - radius, y - radius, x + radius, y + radius))
    centers = (np.arange(size) + 0.5) / size - 0.5
    inside = centers[:, None] ** 2 + centers**2 < 0.25
    return np.asarray(piece.resize((size, size))), inside


def compose_scene(generator: np.random.Generator) -> tuple[np.ndarray, np.ndarray, list[int]]:
    """An image (H, W, 3), its map (H, W) of segment ids from 1, and the segments' classes."""
    height, width = SIZE_HW
    x, y = generator.integers(0, 500), generator.integers(0, 40)
    with Image.open(IMAGES / "coffee.jpg") as photograph:
        table = photograph.convert("RGB").crop((x, y, x + 90, y + 60)).resize((width, height))
    image, ids, classes = np.array(table), np.ones(SIZE_HW, dtype=np.int64), [TABLE]
    for _ in range(generator.integers(1, 3)):
        label, size = int(generator.integers(2)), int(generator.integers(24, 44))
        top, left = generator.integers(height - size + 1), generator.integers(width - size + 1)
        piece, inside = cut_disc(label, size)
        place = np.s_[top : top + size, left : left + size]
        classes.append(label)
        image[place][inside], ids[place][inside] = piece[inside], len(classes)
    return image, ids, classes


def make_scenes(count: int) -> tuple[Tensor, list[dict[str, Tensor]], list[dict]]:
    """Normalised images (count, 3, H, W), labels, and the targets of panoptic quality."""
    generator = np.random.default_rng(0)
    images, labels, targets = [], [], []
    for _ in range(count):
        image, ids, classes = compose_scene(generator)
        present = [number for number in range(1, len(classes) + 1) if (ids == number).sum() > 60]
        masks = torch.from_numpy(np.stack([ids == number for number in present]))
        boxes = box_xyxy_to_cxcywh(masks_to_boxes(masks)) / torch.tensor(SIZE_HW[::-1] * 2)
        class_labels = torch.tensor([classes[number - 1] for number in present])
        images.append(torch.from_numpy(image).permute(2, 0, 1) / 255)
        labels.append({"class_labels": class_labels, "boxes": boxes, "masks": masks})
        records = [{"id": n, "category_id": classes[n - 1]} for n in present]
        seen = torch.from_numpy(np.where(np.isin(ids, present), ids, 0))
        targets.append({"segmentation": seen, "segments_info": records})
    return (torch.stack(images) - 0.45) / 0.225, labels, targets


def train(model: nn.Module, arguments: tuple, steps: int, lr: float) -> list[float]:
    """Train what isn't frozen on one batch; the losses."""
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=lr, weight_decay=1e-4)
    losses = []
    for step in range(steps):
        rate = min(1, (step + 1) / 10) * 0.5 * (1 + math.cos(math.pi * step / steps))
        optimizer.param_groups[0]["lr"] = lr * rate
        loss = model(arguments[0], labels=arguments[1]).loss
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 10.0)
        optimizer.step()
        losses.append(loss.item())
    return losses


@torch.no_grad()
def quality(model: Segmenter, variant: str, pixel_values: Tensor, targets: list[dict]) -> dict:
    """Panoptic quality of the model's segments."""
    processor = class_of(variant, "ImageProcessor")()
    results = processor.post_process_panoptic_segmentation(
        model.eval()(pixel_values),
        threshold=0.4,
        mask_threshold=0.2,
        label_ids_to_fuse={TABLE},
        target_sizes=[SIZE_HW] * len(targets),
    )
    metric = PanopticQuality({CAT: "cat", CUP: "cup", TABLE: "table"}, thing_label_ids={CAT, CUP})
    metric.update(range(len(targets)), results, targets)
    return metric.compute()


def small_segmenter(variant: str) -> Segmenter:
    """A model that can learn a few scenes within a minute; its backbone starts from noise."""
    torch.manual_seed(0)
    config = tiny_config(
        variant,
        d_model=128,
        encoder_attention_heads=8,
        encoder_layers=1,
        decoder_layers=2,
        num_queries=10,
        num_labels=3,
        auxiliary_loss=True,
        dropout=0.0,
        attention_dropout=0.0,
        activation_dropout=0.0,
        mask_loss_coefficient=5,
        dice_loss_coefficient=5,
    )
    if hasattr(config, "box_noise_scale"):
        config.box_noise_scale = 0.4  # of the default a tiny model learns less in so few steps
    model = class_of(variant, "ForSegmentation")(config).train()
    model.unfreeze_backbone(num_frozen_stages=0)
    return model


@pytest.mark.parametrize("variant", WITH_MASKS)
@pytest.mark.slow
def test_training_end_to_end(variant: str) -> None:
    """Detector and mask head together learn to find and outline what is in the scenes."""
    pixel_values, labels, targets = make_scenes(8)
    model = small_segmenter(variant)
    losses = train(model, (pixel_values, labels), steps=300, lr=2e-3)
    assert losses[-1] < 0.3 * losses[0]
    result = quality(model, variant, pixel_values, targets)
    assert result["pq"] > 0.5, result


@pytest.mark.slow
def test_training_the_mask_head_alone() -> None:
    """The paper's two steps: a detector, then masks on top of it, the detector frozen."""
    pixel_values, labels, targets = make_scenes(8)
    model = small_segmenter("detr")
    train(model.detector, (pixel_values, labels), steps=120, lr=1e-3)
    before = {name: value.clone() for name, value in model.detector.state_dict().items()}
    assert quality(model, "detr", pixel_values, targets)["pq"] < 0.5
    model.train().freeze_detector()
    losses = train(model, (pixel_values, labels), steps=150, lr=3e-3)
    assert losses[-1] < 0.7 * losses[0]
    for name, value in model.detector.state_dict().items():
        assert torch.equal(value, before[name]), name
    result = quality(model, "detr", pixel_values, targets)
    assert result["pq"] > 0.5, result
