"""Tests reports on a training, and that all processes find losses that aren't finite."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from hf_detr.losses.classification import SigmoidFocalClassification, SoftmaxClassification
from hf_detr.models.outputs import ObjectDetectionOutput
from hf_detr.training.health import (
    TrainingHealth,
    describe_nonfinite_gradients,
    find_nonfinite_loss,
)

from ..processes import run_processes
from ..tiny import padded_batch, some_labels, tiny_detector

WEIGHTS = {"loss_ce": 1.0, "loss_bbox": 5.0, "loss_giou": 2.0}
NAMES = {0: "cat", 1: "dog", 2: "owl"}


def make_health(max_norm: float | None = None) -> TrainingHealth:
    """Training health with three classes."""
    return TrainingHealth(WEIGHTS, SigmoidFocalClassification(3, 0.25), NAMES, max_norm)


def outputs_of(
    boxes: Tensor, scores: Tensor | None = None, **terms: float
) -> ObjectDetectionOutput:
    """Outputs with boxes (B, Q, 4), probabilities (B, Q, 3) and loss terms."""
    terms = terms or {"loss_ce": 1.0, "loss_bbox": 0.2, "loss_giou": 0.5}
    scores = torch.full((*boxes.shape[:2], 3), 0.5) if scores is None else scores
    loss_dict = {name: torch.tensor(value) for name, value in terms.items()}
    loss = sum(loss_dict.values())
    return ObjectDetectionOutput(
        loss=loss, loss_dict=loss_dict, logits=scores.logit(), pred_boxes=boxes
    )


def labels_of(*images: list[int]) -> list[dict[str, Tensor]]:
    """Class labels per image."""
    return [{"class_labels": torch.tensor(image, dtype=torch.long)} for image in images]


def random_boxes(num_images: int, num_queries: int = 20) -> Tensor:
    """Boxes (B, Q, 4) that differ between images."""
    generator = torch.Generator().manual_seed(0)
    return torch.rand(num_images, num_queries, 4, generator=generator)


def only(lines: list[str], start: str) -> str:
    """The only line with this start."""
    (line,) = [line for line in lines if line.startswith(start)]
    return line


def test_shares_of_the_loss_by_hand() -> None:
    """Weighted terms of layers, proposals and denoising are summed; unweighted ones are ignored."""
    health = make_health()
    terms = {"loss_ce": 1.0, "loss_ce_0": 2.0, "loss_ce_enc": 1.0, "loss_bbox": 0.4}
    terms |= {
        "loss_bbox_0_dn": 0.2,
        "loss_giou_10": 1.5,
        "class_error": 50.0,
        "cardinality_error": 7,
    }
    for _ in range(2):  # two micro-batches are one step
        health.add_batch(outputs_of(random_boxes(1), **terms), labels_of([0]))
    health.add_step(1.0)
    line = health.report()[0]
    assert line == "Loss 20: loss_ce 40%, loss_bbox 30%, loss_giou 30%, summed over layers."


def test_numbers_of_proposals_may_differ() -> None:
    """Small images have fewer proposals than large ones; those that all have are compared."""
    health = make_health()
    for number in (20, 7, 9, 20):
        boxes = random_boxes(2, number)
        boxes[:, :4] = 0.5  # stuck
        health.add_batch(outputs_of(boxes), labels_of([0], [1]))
    assert "4 of 7 queries" in only(health.report(), "Boxes:")


@pytest.mark.parametrize("kind", ["detr", "two-stage"])
def test_weighted_terms_are_the_model_loss(kind: str) -> None:
    """The reported mean includes all terms: it equals the model's loss."""
    options = {"with_box_refine": True, "two_stage": True} if kind == "two-stage" else {}
    variant = "deformable_detr" if options else "detr"
    model = tiny_detector(variant, auxiliary_loss=True, **options)
    outputs = model(*padded_batch(), labels=some_labels())
    names = {index: str(index) for index in range(5)}
    health = TrainingHealth(model.criterion.weights, model.criterion.classification, names)
    health.add_batch(outputs, some_labels())
    health.add_step(torch.tensor(1.0))
    assert health.report()[0].startswith(f"Loss {outputs.loss.item():.4g}: loss_ce ")


def test_dominating_term() -> None:
    """A term that dominates the loss is reported."""
    health = make_health()
    health.add_batch(outputs_of(random_boxes(2)), labels_of([0], [1]))
    assert not any("dominates" in line for line in health.report())
    boxes = random_boxes(2)
    health.add_batch(
        outputs_of(boxes, loss_ce=0.1, loss_bbox=900.0, loss_giou=0.5), labels_of([0], [1])
    )
    assert "Check its weight (5)" in only(health.report(), "loss_bbox dominates the loss")


@pytest.mark.parametrize("batch_size", [1, 3])
def test_query_collapse(batch_size: int) -> None:
    """Equal boxes for all images are reported as a collapse, with any batch size."""
    for boxes, collapsed in (
        (random_boxes(1).expand(6, -1, -1), True),
        (random_boxes(6), False),
    ):
        health = make_health()
        for part in boxes.split(batch_size):
            health.add_batch(outputs_of(part), labels_of(*[[0]] * batch_size))
        lines = health.report()
        if collapsed:
            assert "20 of 20 queries predict the same box" in only(lines, "Query collapse")
        else:
            assert "0 of 20 queries don't move" in only(lines, "Boxes")


def test_a_model_that_ignores_its_image_collapses() -> None:
    """A detector with a zero box head collapses; one with large weights doesn't."""
    for factor, start in ((0, "Query collapse: 7 of 7"), (10, "Boxes: ")):
        model = tiny_detector("detr")
        with torch.no_grad():
            model.bbox_predictor.layers[-1].weight.mul_(factor)
        names = {index: str(index) for index in range(5)}
        health = TrainingHealth(model.criterion.weights, model.criterion.classification, names)
        outputs = model(*padded_batch(4), labels=some_labels((1, 1, 1, 1)))
        health.add_batch(outputs, some_labels((1, 1, 1, 1)))
        assert only(health.report(), start)


def test_dead_classes() -> None:
    """Classes without a score in their images are dead, most frequent first."""
    scores = torch.full((2, 20, 3), 0.01)
    scores[0, 3, 0] = 0.6
    scores[1, 3, 2] = 0.6  # an owl in an image without owls
    health = make_health()
    labels = labels_of([0, 2, 1], [1, 1])
    health.add_batch(outputs_of(random_boxes(2), scores), labels)
    line = only(health.report(), "Dead classes: 2 of 3 never scored above 0.1")
    assert "dog (2 images), owl (1 images). This" in line
    health.add_batch(outputs_of(random_boxes(2)), labels)
    assert only(health.report(), "Classes: all 3")
    health.add_batch(outputs_of(random_boxes(1)), labels_of([]))
    assert only(health.report(), "No image has an object")


def test_no_object_is_no_score() -> None:
    """Probability of "no object" isn't a score of a class."""
    health = TrainingHealth(WEIGHTS, SoftmaxClassification(3, 0.1), NAMES)
    outputs = outputs_of(random_boxes(1))
    outputs["logits"] = torch.tensor([0.0, 0.0, 0.0, 9.0]).expand(1, 20, 4)
    health.add_batch(outputs, labels_of([1]))
    assert "dog (1 images)" in only(health.report(), "Dead classes: 1 of 1")


@pytest.mark.parametrize(
    ("norms", "expected"),
    [
        ([1.0, 1.0, 1.0, 1.0], None),
        ([0.0, 0.0, 0.0], "The gradient is 0"),
        ([1.0, 1.0, 1.0, 300.0], "The highest gradient norm is 300 times"),
        ([1.0, 1.0, 6.0, 7.0], "The gradient norm increased 6.0 times"),
    ],
)
def test_gradient_norms(norms: list[float], expected: str | None) -> None:
    """Zero gradients, spikes and growth are reported."""
    health = make_health(max_norm=0.5)
    for norm in norms:
        health.add_step(torch.tensor(norm))
    lines = health.report()
    share = 0 if max(norms) == 0 else 100
    assert lines[0].endswith(f"Clipped at 0.5 in {share}% of {len(norms)} steps.")
    assert lines[1:] == [] if expected is None else lines[1].startswith(expected)


def test_reports_are_separate() -> None:
    """Statistics are reset by a report; skipped steps are reported."""
    health = make_health()
    health.add_batch(outputs_of(random_boxes(2)), labels_of([0], [0]))
    health.add_skipped_step()
    assert only(health.report(), "1 steps were skipped")
    assert health.report() == []


def a_batch(ids: tuple[int, ...] = (11, 12)) -> dict[str, Any]:
    """Pixels and labels of some images."""
    labels = [{"image_id": torch.tensor([i])} for i in ids]
    return {"pixel_values": torch.zeros(len(ids), 3, 4, 4), "labels": labels}


def test_nonfinite_loss_names_terms_and_images() -> None:
    """NaN and infinity are described with terms and images; a finite loss gives None."""
    batch, boxes = a_batch(), random_boxes(2)
    assert find_nonfinite_loss(batch, outputs_of(boxes)) is None
    for value in (float("nan"), float("inf")):
        problem = find_nonfinite_loss(batch, outputs_of(boxes, loss_ce=1.0, loss_bbox=value))
        assert "NaN or infinity in the loss (loss_bbox) of images 11, 12, whose" in problem
    problem = find_nonfinite_loss(batch, None, images=[1])
    assert problem.startswith("NaN or infinity in the predictions of image 12, whose")
    batch["pixel_values"][0, 1, 2, 3] = float("nan")
    problem = find_nonfinite_loss(batch, None, images=[0])
    assert problem == "NaN or infinity in the pixels of image 11: check how images are read."


def test_many_images_are_shortened() -> None:
    """At most ten images are named, by their ids or their indices."""
    batch = a_batch(tuple(range(14)))
    assert "images 0, 1, 2, 3, 4, 5, 6, 7, 8, 9 and 4 more" in find_nonfinite_loss(batch, None)
    batch["labels"] = [{}] * 14
    assert "image number 3 of the batch," in find_nonfinite_loss(batch, None, images=[3])


def test_nonfinite_gradients_are_named() -> None:
    """Parameters with gradients that aren't finite are named."""
    model = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.Linear(2, 1))
    model[0].weight.grad = torch.zeros(2, 2)
    model[0].bias.grad = torch.tensor([0.0, float("inf")])
    text = describe_nonfinite_gradients(model)
    assert "the gradients of 1 of 2 parameters aren't: 0.bias." in text
    model[0].bias.grad.fill_(1e30)  # the sum of squares overflows
    assert "but the norm of all gradients isn't." in describe_nonfinite_gradients(model)


def run_process(rank: int, folder: str) -> None:
    """Run one of two processes; only one has images, or a loss that isn't finite."""
    torch.set_num_threads(1)
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{folder}/init", rank=rank, world_size=2
    )
    boxes, labels = random_boxes(4), labels_of([0], [1], [1], [])
    results = []
    for shares in ((slice(0, 4), slice(0, 0)), (slice(0, 2), slice(2, 4))):
        health, share = make_health(), shares[rank]
        if boxes[share].numel():
            health.add_batch(outputs_of(boxes[share]), labels[share])
        results.append(health.report())
    for bad_rank in (None, 0, 1):
        value = float("nan") if bad_rank == rank else 1.0
        batch = a_batch((10 * rank, 10 * rank + 1))
        results.append(find_nonfinite_loss(batch, outputs_of(random_boxes(2), loss_ce=value)))
    torch.save(results, f"{folder}/{rank}.pt")
    torch.distributed.destroy_process_group()


def test_processes_agree(tmp_path: Path) -> None:
    """All processes have the same report and the same description of a loss that isn't finite."""
    run_processes(run_process, str(tmp_path))
    one, other = (torch.load(tmp_path / f"{rank}.pt") for rank in range(2))
    assert one == other
    health = make_health()
    health.add_batch(outputs_of(random_boxes(4)), labels_of([0], [1], [1], []))
    assert one[0] == health.report()
    assert only(one[1], "Classes: all 2")
    assert one[2] is None
    assert "images 0, 1," in one[3] and "images 10, 11," in one[4]
