"""Training works: a small model learns a handful of images by heart."""

import pytest
import torch
from torch import Tensor

from hf_detr import DetrImageProcessor

from .tiny import tiny_detector

COLORS = torch.tensor([[0.9, 0.1, 0.1], [0.1, 0.8, 0.2], [0.2, 0.2, 0.9]])


def rectangles(num_images: int, side: int) -> tuple[Tensor, list[dict[str, Tensor]]]:
    """Images of one to three coloured rectangles; the colour is the class."""
    generator = torch.Generator().manual_seed(0)
    images = torch.zeros(num_images, 3, side, side)
    labels = []
    for image in images:
        classes = torch.randperm(3, generator=generator)[: 1 + len(labels) % 3]
        boxes = torch.empty(len(classes), 4)
        for box, color in zip(boxes, COLORS[classes], strict=True):
            w, h = torch.randint(side // 4, side // 2, (2,), generator=generator).tolist()
            x = torch.randint(side - w, (1,), generator=generator).item()
            y = torch.randint(side - h, (1,), generator=generator).item()
            image[:, y : y + h, x : x + w] = color[:, None, None]
            box[:] = torch.tensor([x + w / 2, y + h / 2, w, h]) / side
        labels.append({"class_labels": classes, "boxes": boxes})
    return images - 0.5, labels


@pytest.mark.slow
def test_overfitting_recovers_the_boxes() -> None:
    """From random weights the loss falls to a tenth and every object is found (IoU over 0.7)."""
    from hf_detr.box_ops import box_cxcywh_to_xyxy, box_iou

    model = tiny_detector(
        num_labels=3,
        d_model=64,
        encoder_layers=1,
        decoder_layers=2,
        num_queries=8,
        auxiliary_loss=True,
        dropout=0.0,
        attention_dropout=0.0,
        activation_dropout=0.0,
    ).train()
    model.unfreeze_backbone(num_frozen_stages=0)
    images, labels = rectangles(num_images=6, side=96)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=1e-4)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=1e-3, total_steps=500)
    losses = []
    for _ in range(500):
        loss = model(images, labels=labels).loss
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 0.1)
        optimizer.step()
        schedule.step()
        losses.append(loss.item())
    assert losses[-1] < 0.1 * losses[0], (losses[0], losses[-1])

    with torch.no_grad():
        output = model.eval()(images)
    results = DetrImageProcessor().post_process_object_detection(output, threshold=0.5)
    for result, target in zip(results, labels, strict=True):
        assert len(result["labels"]) == len(target["class_labels"])
        overlap, _ = box_iou(
            result["boxes"][:, None], box_cxcywh_to_xyxy(target["boxes"])[None]
        )  # (found, objects)
        best = overlap.argmax(0)
        assert overlap.max(0).values.min() > 0.7
        assert (result["labels"][best] == target["class_labels"]).all()
