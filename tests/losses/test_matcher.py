"""Protects the matching: exact, per layer and image, in one transfer, with clear errors."""

import warnings
from itertools import permutations

import pytest
import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor
from torch.overrides import TorchFunctionMode

from hf_detr.losses.classification import SoftmaxClassification
from hf_detr.losses.matcher import HungarianMatcher, Matches
from hf_detr.losses.targets import prepare_targets
from hf_detr.ops.box_ops import box_cxcywh_to_xyxy, generalized_box_iou

NUM_LABELS = 4
WEIGHTS = {"class_cost": 1, "bbox_cost": 5, "giou_cost": 2}


def random_labels(counts: list[int], seed: int = 0) -> list[dict[str, Tensor]]:
    """Label dicts with the given numbers of objects."""
    generator = torch.Generator().manual_seed(seed)
    return [
        {
            "class_labels": torch.randint(NUM_LABELS, (n,), generator=generator),
            "boxes": torch.rand(n, 4, generator=generator) * 0.5 + 0.2,
        }
        for n in counts
    ]


def random_predictions(num_layers: int, batch_size: int, num_queries: int) -> tuple[Tensor, Tensor]:
    """Logits (N, B, Q, C + 1) and boxes (N, B, Q, 4)."""
    generator = torch.Generator().manual_seed(1)
    shape = (num_layers, batch_size, num_queries)
    logits = torch.randn(*shape, NUM_LABELS + 1, generator=generator)
    return logits, torch.rand(*shape, 4, generator=generator) * 0.5 + 0.2


def match(
    logits: Tensor, boxes: Tensor, labels: list[dict[str, Tensor]], **weights: float
) -> Matches:
    """Match with DETR's classification and, unless others are given, its weights."""
    matcher = HungarianMatcher(SoftmaxClassification(NUM_LABELS, 0.1), **(weights or WEIGHTS))
    return matcher(logits, boxes, prepare_targets(labels, logits.shape[1], logits.device))


def official_cost(logits: Tensor, boxes: Tensor, label: dict[str, Tensor]) -> Tensor:
    """The original's cost (Q, n) of one layer and image: 1 class, 5 L1, 2 generalised IoU."""
    class_cost = -logits.softmax(-1)[:, label["class_labels"]]
    l1 = (boxes[:, None] - label["boxes"][None]).abs().sum(-1)
    corners = box_cxcywh_to_xyxy(boxes)[:, None], box_cxcywh_to_xyxy(label["boxes"])[None]
    return class_cost + 5 * l1 - 2 * generalized_box_iou(*corners)


@pytest.mark.parametrize("seed", range(4))
def test_least_cost_of_all_assignments(seed: int) -> None:
    """Protects optimality: no other assignment of the queries costs less."""
    logits, boxes = random_predictions(2, 2, 5)
    labels = random_labels([3, 2], seed)
    for layer, images in enumerate(match(logits, boxes, labels)):
        for image, (query, index) in enumerate(images):
            cost = official_cost(logits[layer, image], boxes[layer, image], labels[image])
            objects = range(cost.shape[1])
            best = min(
                sum(cost[q, o].item() for q, o in zip(queries, objects, strict=True))
                for queries in permutations(range(5), len(objects))
            )
            assert cost[query, index].sum().item() == pytest.approx(best, abs=1e-5)
            assert sorted(index.tolist()) == list(objects)


def test_equals_the_original_layer_by_layer() -> None:
    """Protects every layer and image from meeting another's predictions or objects."""
    counts = [7, 0, 1, 12]
    logits, boxes = random_predictions(3, len(counts), 20)
    labels = random_labels(counts)
    matches = match(logits, boxes, labels)
    assert len(matches) == 3 and all(len(images) == len(counts) for images in matches)
    for layer, images in enumerate(matches):
        for image, (query, index) in enumerate(images):
            cost = official_cost(logits[layer, image], boxes[layer, image], labels[image])
            rows, columns = linear_sum_assignment(cost.numpy())
            assert query.tolist() == rows.tolist() and index.tolist() == columns.tolist()
            assert query.dtype == index.dtype == torch.int64


def test_by_hand() -> None:
    """Protects the trade between class and box: the weights decide which query gets the object."""
    logits = torch.full((1, 1, 2, NUM_LABELS + 1), -10.0)
    logits[0, 0, 0, 2] = logits[0, 0, 1, 3] = 10.0  # query 0 has the class, query 1 the box
    boxes = torch.tensor([[[[0.2, 0.2, 0.1, 0.1], [0.7, 0.7, 0.2, 0.2]]]])
    label = {"class_labels": torch.tensor([2]), "boxes": torch.tensor([[0.7, 0.7, 0.2, 0.2]])}

    def winner(**weights: float) -> list[int]:
        return match(logits, boxes, [label], **weights)[0][0][0].tolist()

    assert winner(class_cost=1, bbox_cost=0, giou_cost=0) == [0]
    assert winner(class_cost=0, bbox_cost=1, giou_cost=0) == [1]
    assert winner(class_cost=0, bbox_cost=0, giou_cost=1) == [1]
    assert winner(class_cost=1, bbox_cost=0.1, giou_cost=0) == [0]
    assert winner(class_cost=1, bbox_cost=5, giou_cost=2) == [1]


def test_empty_images() -> None:
    """Protects batches in which nothing is to be found."""
    logits, boxes = random_predictions(2, 2, 5)
    for images in match(logits, boxes, random_labels([0, 0])):
        assert [len(query) for query, _ in images] == [0, 0]
        assert [len(index) for _, index in images] == [0, 0]


class HostReads(TorchFunctionMode):
    """Records the calls by which the host would wait for an accelerator."""

    NAMES = {
        *("cpu", "item", "tolist", "nonzero", "argwhere", "unique", "masked_select"),
        *("__bool__", "__int__", "__float__", "__index__", "__contains__", "equal", "allclose"),
    }

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[str] = []

    def __torch_function__(self, func, types, args=(), kwargs=None):
        name = getattr(func, "__name__", "")
        to_host = name == "to" and any(str(argument) == "cpu" for argument in args[1:])
        by_mask = name == "__getitem__" and getattr(args[1], "dtype", None) == torch.bool
        if name in self.NAMES or to_host or by_mask:
            self.calls.append(name)
        return func(*args, **(kwargs or {}))


def test_the_recorder_sees_reads() -> None:
    """Protects the next test from a recorder that is blind."""
    tensor = torch.ones(2)
    with HostReads() as reads:
        if tensor[0] > 0:
            tensor.sum().item()
        tensor.tolist(), tensor.to("cpu"), tensor[tensor > 0], int(tensor[0]), tensor.cpu()
    assert reads.calls == ["__bool__", "item", "tolist", "to", "__getitem__", "__int__", "cpu"]


@pytest.mark.parametrize("counts", [[3, 0, 5], [0, 0, 0]])
def test_one_transfer(counts: list[int]) -> None:
    """Protects speed on accelerators: the host waits once, whatever layers and images there are."""
    logits, boxes = random_predictions(6, len(counts), 10)
    targets = prepare_targets(random_labels(counts), len(counts), logits.device)
    matcher = HungarianMatcher(SoftmaxClassification(NUM_LABELS, 0.1), **WEIGHTS)
    with HostReads() as reads:
        matcher(logits, boxes, targets)
    assert reads.calls == ["cpu"]


def test_no_gradient() -> None:
    """Protects memory: nothing of the matching is kept for the backward pass."""
    logits, boxes = random_predictions(1, 1, 5)
    matcher = HungarianMatcher(SoftmaxClassification(NUM_LABELS, 0.1), **WEIGHTS)
    targets = prepare_targets(random_labels([2]), 1, logits.device)
    matches = matcher(logits.requires_grad_(), boxes.requires_grad_(), targets)
    assert not matches[0][0][0].requires_grad


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_matched_in_float32(dtype: torch.dtype) -> None:
    """Protects pure half-precision training: the same matching as of the same values in float32."""
    logits, boxes = (tensor.to(dtype) for tensor in random_predictions(2, 2, 12))
    labels = random_labels([5, 3])
    expected = match(logits.float(), boxes.float(), labels)
    for got, same in zip(match(logits, boxes, labels), expected, strict=True):
        for (query, index), (same_query, same_index) in zip(got, same, strict=True):
            assert torch.equal(query, same_query) and torch.equal(index, same_index)


def test_all_costs_zero() -> None:
    """Protects from a matching by chance, and takes any single cost."""
    classification = SoftmaxClassification(NUM_LABELS, 0.1)
    with pytest.raises(ValueError, match="class_cost, bbox_cost and giou_cost are all 0"):
        HungarianMatcher(classification, 0, 0, 0)
    for weights in ((1, 0, 0), (0, 1, 0), (0, 0, 1)):
        HungarianMatcher(classification, *weights)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("name", ["logits", "pred_boxes"])
@pytest.mark.parametrize("counts", [[2, 2, 2], [2, 2, 0]])
def test_predictions_that_are_not_finite(name: str, value: float, counts: list[int]) -> None:
    """Protects the search for a NaN: tensor, layer and image are named, also without objects."""
    logits, boxes = random_predictions(3, 3, 5)
    {"logits": logits, "pred_boxes": boxes}[name][1, 2, 3, 0] = value
    message = f"{name} of image 2 hold NaN or infinity, first at decoder layer 1 .*0 … 2"
    with pytest.raises(ValueError, match=message):
        match(logits, boxes, random_labels(counts))


def test_wrong_objects_before_wrong_predictions() -> None:
    """Protects the true reason: a broken annotation is named, also once it broke the model."""
    logits, boxes = random_predictions(1, 2, 5)
    labels = random_labels([1, 2])
    labels[1]["class_labels"][1] = NUM_LABELS
    for predictions in ((logits, boxes), (logits * float("nan"), boxes)):
        with pytest.raises(ValueError, match=r"labels\[1\], object 1 .*class label outside 0 … 3"):
            match(*predictions, labels)


@pytest.mark.parametrize("label", [-1, NUM_LABELS, 10**6])
def test_no_label_indexes_out_of_range(label: int) -> None:
    """Protects from an index error on the device, where it would end the process."""
    logits, boxes = random_predictions(1, 1, 5)
    labels = random_labels([1])
    labels[0]["class_labels"][0] = label
    with pytest.raises(ValueError, match=r"class label outside"):
        match(logits, boxes, labels)


def test_more_objects_than_queries() -> None:
    """Protects from losing objects silently; the cheapest ones are still matched."""
    logits, boxes = random_predictions(2, 2, 3)
    with pytest.warns(UserWarning, match="more objects than the model queries, 3: those"):
        matches = match(logits, boxes, random_labels([3, 5]))
    for images in matches:
        assert [len(query) for query, _ in images] == [3, 3]
        assert images[1][0].tolist() == [0, 1, 2] and len(set(images[1][1].tolist())) == 3
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        match(logits, boxes, random_labels([3, 3]))


def test_predictions_without_width() -> None:
    """Protects from 0/0 where a sigmoid has saturated, as float16 does from -18 on."""
    logits, boxes = random_predictions(1, 1, 3)
    boxes[0, 0, 1, 2] = 0.0
    labels = random_labels([2])
    ((query, index),) = match(logits, boxes, labels)[0]
    assert len(query) == 2 and sorted(index.tolist()) == [0, 1]


def test_objects_without_width_are_refused() -> None:
    """Protects from NaN costs: such an object and such a prediction would be 0/0."""
    logits, boxes = random_predictions(1, 1, 3)
    labels = random_labels([2])
    labels[0]["boxes"][0, 2] = 0.0
    with pytest.raises(ValueError, match=r"labels\[0\], object 0 .*zero or negative size"):
        match(logits, boxes, labels)
