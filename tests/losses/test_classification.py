"""Protects DETR's classification: cost, weighted loss, scores, and which logit is "no object"."""

import math

import pytest
import torch
from torch.nn import functional as F

from hf_detr.losses.classification import SigmoidFocalClassification, SoftmaxClassification
from hf_detr.losses.loss_terms import LossNormalizers

NUM_LABELS = 3


def normalizers(matched: float, unmatched: float, boxes: float = 1) -> LossNormalizers:
    """Normalizers of a batch, from numbers."""
    return LossNormalizers(torch.tensor(boxes), torch.tensor(matched), torch.tensor(unmatched))


def log(*probabilities: float) -> list[float]:
    """Logits of the given probabilities, which sum to one."""
    assert math.isclose(sum(probabilities), 1)
    return [math.log(p) for p in probabilities]


def test_cost_by_hand() -> None:
    """Protects the cost: minus the probability of the target's class, "no object" competing."""
    logits = torch.tensor([log(0.1, 0.2, 0.3, 0.4), log(0.7, 0.1, 0.1, 0.1)])[None, None]
    cost = SoftmaxClassification(NUM_LABELS, 0.1).cost(logits, torch.tensor([[2, 0, 2]]))
    expected = torch.tensor([[[[-0.3, -0.1, -0.3], [-0.1, -0.7, -0.1]]]])
    torch.testing.assert_close(cost, expected, atol=1e-6, rtol=0)


def test_cost_of_own_image_only() -> None:
    """Protects that every image's queries are scored with its own labels, layer by layer."""
    torch.manual_seed(0)
    logits = torch.randn(2, 3, 4, NUM_LABELS + 1)
    class_labels = torch.tensor([[0, 1], [2, 2], [1, 0]])
    cost = SoftmaxClassification(NUM_LABELS, 0.1).cost(logits, class_labels)
    assert cost.shape == (2, 3, 4, 2)
    for layer in range(2):
        for image in range(3):
            expected = -logits[layer, image].softmax(-1)[:, class_labels[image]]
            torch.testing.assert_close(cost[layer, image], expected, atol=1e-6, rtol=0)


def test_loss_by_hand() -> None:
    """Protects the weighted mean: a query without object counts `eos_coefficient`."""
    logits = torch.tensor([log(0.5, 0.2, 0.2, 0.1), log(0.1, 0.2, 0.3, 0.4)])[None, None]
    loss = SoftmaxClassification(NUM_LABELS, 0.25).loss(
        logits, torch.tensor([[[0, NUM_LABELS]]]), normalizers(1, 1)
    )
    expected = (-math.log(0.5) - 0.25 * math.log(0.4)) / 1.25
    torch.testing.assert_close(loss, torch.tensor([expected]), atol=1e-6, rtol=0)


@pytest.mark.parametrize("eos_coefficient", [0.1, 1.0, 0.0])
def test_loss_equals_cross_entropy_of_each_layer(eos_coefficient: float) -> None:
    """Protects one weighted mean per layer, with gradients."""
    torch.manual_seed(0)
    logits = torch.randn(3, 2, 5, NUM_LABELS + 1, requires_grad=True)
    classes = torch.tensor([0, 2, 1, 1, *[NUM_LABELS] * 6])  # of 4 objects, in every layer
    target_classes = torch.stack([classes[torch.randperm(10)].view(2, 5) for _ in range(3)])
    weight = torch.tensor([1.0, 1.0, 1.0, eos_coefficient])
    expected = torch.stack(
        [
            F.cross_entropy(logits[i].flatten(0, 1), target_classes[i].flatten(), weight)
            for i in range(3)
        ]
    )
    classification = SoftmaxClassification(NUM_LABELS, eos_coefficient)
    loss = classification.loss(logits, target_classes, normalizers(4, 6))
    torch.testing.assert_close(loss, expected, atol=1e-5, rtol=0)
    (grad,) = torch.autograd.grad(loss.sum(), logits)
    (expected_grad,) = torch.autograd.grad(expected.sum(), logits)
    torch.testing.assert_close(grad, expected_grad, atol=1e-5, rtol=0)


@pytest.mark.parametrize("eos_coefficient", [0.1, 0.0])
def test_loss_without_objects_is_finite(eos_coefficient: float) -> None:
    """Protects batches of empty images, also if "no object" weighs nothing."""
    logits = torch.zeros(2, 1, 5, NUM_LABELS + 1)
    nothing = torch.full((2, 1, 5), NUM_LABELS)
    loss = SoftmaxClassification(NUM_LABELS, eos_coefficient).loss(
        logits, nothing, normalizers(0, 5)
    )
    expected = math.log(NUM_LABELS + 1) if eos_coefficient else 0.0
    torch.testing.assert_close(loss, torch.full((2,), expected), atol=1e-6, rtol=0)


def test_detections_by_hand() -> None:
    """Protects that each query gives its best class and that "no object" is never a label."""
    logits = torch.tensor(
        [[log(0.1, 0.2, 0.3, 0.4), log(0.7, 0.1, 0.1, 0.1)], [log(0.1, 0.1, 0.1, 0.7)] * 2]
    )
    scores, labels, query_indices = SoftmaxClassification.detections(logits)
    expected = torch.tensor([[0.3, 0.7], [0.1, 0.1]])
    torch.testing.assert_close(scores, expected, atol=1e-6, rtol=0)
    assert labels[0].tolist() == [2, 0] and (labels < NUM_LABELS).all()
    assert query_indices.tolist() == [[0, 1], [0, 1]]


def test_number_of_predicted_objects() -> None:
    """Protects the logged count: queries whose best class isn't "no object"."""
    logits = torch.zeros(2, 1, 4, NUM_LABELS + 1)
    logits[0, 0, :3, 1] = 1.0
    logits[0, 0, 3, NUM_LABELS] = 1.0
    logits[1, 0, :, NUM_LABELS] = 1.0
    counts = SoftmaxClassification(NUM_LABELS, 0.1).num_predicted_objects(logits)
    assert counts.tolist() == [[3], [0]]


def test_head_width() -> None:
    """Protects one logit more than classes."""
    classification = SoftmaxClassification(NUM_LABELS, 0.1)
    assert (classification.num_labels, classification.num_logits) == (NUM_LABELS, NUM_LABELS + 1)


def test_focal_cost_by_hand() -> None:
    """Protects the sigmoid cost: focal loss of the target's class as a 1, less that as a 0."""
    p = 0.8
    logits = torch.full((1, 1, 1, NUM_LABELS), math.log(p / (1 - p)))
    cost = SigmoidFocalClassification(NUM_LABELS, 0.25).cost(logits, torch.tensor([[1]]))
    expected = 0.25 * (1 - p) ** 2 * -math.log(p) - 0.75 * p**2 * -math.log(1 - p)
    torch.testing.assert_close(cost, torch.full((1, 1, 1, 1), expected), atol=1e-5, rtol=0)


def test_focal_loss_by_hand() -> None:
    """Protects the sigmoid loss: one sum per layer over queries and classes, per object."""
    logits = torch.zeros(2, 1, 2, NUM_LABELS)  # every probability is one half
    target_classes = torch.tensor([[[1, NUM_LABELS]], [[NUM_LABELS, NUM_LABELS]]])
    classification = SigmoidFocalClassification(NUM_LABELS, 0.25)
    loss = classification.loss(logits, target_classes, normalizers(0, 0, boxes=2.0))
    one, zero = 0.25 * 0.25 * math.log(2), 0.75 * 0.25 * math.log(2)
    expected = torch.tensor([(one + 5 * zero) / 2, 6 * zero / 2])
    torch.testing.assert_close(loss, expected, atol=1e-6, rtol=0)


def test_focal_detections() -> None:
    """Protects the best pairs over queries and classes, sorted, several per query."""
    logits = torch.tensor([[[2.0, -1.0, 1.0], [0.0, 3.0, -2.0]]])
    scores, labels, queries = SigmoidFocalClassification.detections(logits, top_k=3)
    expected = torch.tensor([[3.0, 2.0, 1.0]]).sigmoid()
    torch.testing.assert_close(scores, expected, atol=1e-6, rtol=0)
    assert labels.tolist() == [[1, 0, 2]] and queries.tolist() == [[1, 0, 0]]
    scores, _, _ = SigmoidFocalClassification.detections(logits, top_k=100)
    assert scores.shape == (1, 6)


def test_focal_counts_objects() -> None:
    """Protects the logged count: queries with a class above one half, whichever it is."""
    logits = torch.tensor([[[[-1.0, 2.0], [-1.0, -1.0], [1.0, 1.0]]]])
    classification = SigmoidFocalClassification(2, 0.25)
    assert classification.num_predicted_objects(logits).tolist() == [[2]]
