"""Training works: it overfits, compiled too, and two processes equal one."""

from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel
from torch.testing import assert_close

from hf_detr.models.object_detector import ObjectDetector

from ..processes import run_processes
from ..tiny import NO_DROPOUT, class_of, padded_batch, some_labels, tiny_detector

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


KINDS = {
    "detr": ("detr", {}),
    "conditional": ("conditional_detr", {}),
    "deformable": ("deformable_detr", {}),
    "tables": ("table-transformer", {}),
    "refine": ("deformable_detr", {"with_box_refine": True}),
    "two-stage": ("deformable_detr", {"with_box_refine": True, "two_stage": True}),
    "dino": ("dino_detr", {"num_denoising_queries": 0}),  # whose noise is random
}
# Images of the first process hold objects, those of the second hold none.
COUNTS = (2, 1, 0, 0)


def trainable(kind: str, **changes: int) -> ObjectDetector:
    """A detector of a kind in training, with dropout off."""
    variant, options = KINDS[kind]
    return tiny_detector(variant, auxiliary_loss=True, **NO_DROPOUT, **options, **changes).train()


def train_half_a_batch(rank: int, folder: str) -> None:
    """What each of two processes does: two steps of every kind, on its half of the images."""
    torch.set_num_threads(1)
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=2
    )
    images = slice(2 * rank, 2 * rank + 2)
    pixel_values, pixel_mask = padded_batch(4)
    results = {}
    for kind in KINDS:
        model = DistributedDataParallel(trainable(kind), find_unused_parameters=False)
        for _ in range(2):  # the second step fails if a parameter of the first had no gradient
            model.zero_grad()
            labels = some_labels(COUNTS)[images]
            loss = model(pixel_values[images], pixel_mask[images], labels=labels).loss
            loss.backward()
        gradients = {n: p.grad for n, p in model.module.named_parameters() if p.requires_grad}
        results[kind] = {"loss": loss.detach(), "gradients": gradients}
    torch.save(results, f"{folder}/{rank}.pt")
    torch.distributed.destroy_process_group()


@pytest.fixture(scope="module")
def two_processes(tmp_path_factory: pytest.TempPathFactory) -> list[dict]:
    """Losses and gradients of both processes, by kind."""
    folder = tmp_path_factory.mktemp("processes")
    run_processes(train_half_a_batch, str(folder))
    return [torch.load(Path(folder) / f"{rank}.pt") for rank in range(2)]


@pytest.mark.parametrize("kind", KINDS)
def test_two_processes_train_as_one(two_processes: list[dict], kind: str) -> None:
    """Loss (1e-5) and gradients (relative l2 1e-3) are those of one process with all images."""
    model = trainable(kind)
    loss = model(*padded_batch(4), labels=some_labels(COUNTS)).loss
    loss.backward()
    mean = sum(result[kind]["loss"] for result in two_processes) / 2
    assert_close(mean, loss.detach(), atol=0, rtol=1e-5)
    for name, parameter in model.named_parameters():
        if parameter.requires_grad and parameter.grad.norm() > 1e-4:
            for result in two_processes:
                difference = (result[kind]["gradients"][name] - parameter.grad).norm()
                assert difference < 1e-3 * parameter.grad.norm(), name


@pytest.mark.parametrize("kind", KINDS)
def test_every_trained_parameter_gets_a_gradient(kind: str) -> None:
    """After one step all that should train has a gradient, and nothing else has."""
    model = trainable(kind)
    model(*padded_batch(), labels=some_labels()).loss.backward()
    for name, parameter in model.named_parameters():
        assert (parameter.grad is not None) == parameter.requires_grad, name


# The compiler looks at .grad of what it resumes with after the loss, and warns itself.
@pytest.mark.filterwarnings("ignore:The .grad attribute:UserWarning")
@pytest.mark.parametrize("kind", ["detr", "two-stage"])
def test_compiled_training_step(kind: str) -> None:
    """torch.compile goes round matching and gives the same loss (1e-4) for any number of boxes."""
    model = trainable(kind, encoder_layers=1, decoder_layers=2)
    compiled = torch.compile(model, backend="aot_eager")
    for counts in ((2, 0), (1, 3)):
        labels = some_labels(counts)
        expected = model(*padded_batch(), labels=labels).loss
        loss = compiled(*padded_batch(), labels=labels).loss
        loss.backward()
        assert_close(loss, expected, atol=0, rtol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("variant", "changes"),
    # Little noise: the loss of denoising doesn't fall to nothing.
    [("detr", {}), ("dino_detr", {"box_noise_scale": 0.4})],
)
def test_overfitting_recovers_the_boxes(variant: str, changes: dict[str, float]) -> None:
    """From random weights the loss falls to a tenth and every object is found (IoU over 0.7)."""
    from hf_detr.ops.box_ops import box_cxcywh_to_xyxy, box_iou

    model = tiny_detector(
        variant,
        num_labels=3,
        d_model=64,
        encoder_layers=1,
        decoder_layers=2,
        num_queries=8,
        auxiliary_loss=True,
        dropout=0.0,
        attention_dropout=0.0,
        activation_dropout=0.0,
        **changes,
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
    processor = class_of(variant, "ImageProcessor")()
    results = processor.post_process_object_detection(output, threshold=0.5)
    for result, target in zip(results, labels, strict=True):
        assert len(result["labels"]) == len(target["class_labels"])
        overlap, _ = box_iou(
            result["boxes"][:, None], box_cxcywh_to_xyxy(target["boxes"])[None]
        )  # (found, objects)
        best = overlap.argmax(0)
        assert overlap.max(0).values.min() > 0.7
        assert (result["labels"][best] == target["class_labels"]).all()
