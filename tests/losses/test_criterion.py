"""Tests the training loss against the paper's formula, and over several processes."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.ops import generalized_box_iou_loss

from hf_detr.losses.classification import SigmoidFocalClassification, SoftmaxClassification
from hf_detr.losses.criterion import DetectionCriterion, LossPart
from hf_detr.losses.loss_terms import count_loss_normalizers
from hf_detr.losses.matcher import HungarianMatcher
from hf_detr.ops.box_ops import box_cxcywh_to_xyxy

from ..processes import run_processes
from .test_matcher import (
    NUM_LABELS,
    WEIGHTS,
    HostReads,
    official_cost,
    random_labels,
    random_predictions,
)

Labels = list[dict[str, Tensor]]


def make_criterion(eos_coefficient: float = 0.1) -> DetectionCriterion:
    """DETR's criterion with the paper's weights."""
    classification = SoftmaxClassification(NUM_LABELS, eos_coefficient)
    matcher = HungarianMatcher(classification, **WEIGHTS)
    return DetectionCriterion(matcher, 1, 5, 2)


def paper_loss(logits: Tensor, boxes: Tensor, labels: Labels) -> tuple[Tensor, dict[str, Tensor]]:
    """The loss of the DETR paper for one decoder layer, image by image; total and terms."""
    num_boxes = max(sum(len(label["boxes"]) for label in labels), 1)
    target_classes = torch.full(logits.shape[:2], NUM_LABELS)
    l1, giou = boxes.sum() * 0, boxes.sum() * 0
    for image, label in enumerate(labels):
        cost = official_cost(logits[image], boxes[image], label).detach()
        for query, index in zip(*linear_sum_assignment(cost.numpy()), strict=True):
            target_classes[image, query] = label["class_labels"][index]
            box, true = boxes[image, query], label["boxes"][index]
            l1 = l1 + F.l1_loss(box, true, reduction="sum")
            corners = box_cxcywh_to_xyxy(torch.stack([box, true]))
            giou = giou + generalized_box_iou_loss(*corners.split(1)).sum()
    weight = torch.tensor([1.0] * NUM_LABELS + [0.1])
    ce = F.cross_entropy(logits.flatten(0, 1), target_classes.flatten(), weight)
    terms = {"loss_ce": ce, "loss_bbox": l1 / num_boxes, "loss_giou": giou / num_boxes}
    return ce + 5 * terms["loss_bbox"] + 2 * terms["loss_giou"], terms


@pytest.mark.parametrize("counts", [[4, 2, 0], [1], [9, 0, 9, 3], [0, 0]])
@pytest.mark.parametrize("num_layers", [1, 3])
def test_equals_the_paper(counts: list[int], num_layers: int) -> None:
    """Every term of every layer, the total and all gradients equal the paper's formula."""
    labels = random_labels(counts)
    logits, boxes = random_predictions(num_layers, len(counts), 12)
    logits.requires_grad_(), boxes.requires_grad_()
    total, terms = make_criterion()(logits, boxes, labels)
    layers = [paper_loss(logits[i], boxes[i], labels) for i in range(num_layers)]
    expected = sum(layer_total for layer_total, _ in layers)
    torch.testing.assert_close(total, expected, atol=1e-5, rtol=1e-5)
    for i, (_, expected_terms) in enumerate(layers):
        suffix = "" if i == num_layers - 1 else f"_{i}"
        for name, value in expected_terms.items():
            torch.testing.assert_close(terms[name + suffix], value, atol=1e-5, rtol=1e-5)
    got = torch.autograd.grad(total, (logits, boxes))
    for grad, expected_grad in zip(
        got, torch.autograd.grad(expected, (logits, boxes)), strict=True
    ):
        torch.testing.assert_close(grad, expected_grad, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("num_layers", [1, 3])
def test_names(num_layers: int) -> None:
    """The terms of the last layer have no suffix, those of layer i end in _i."""
    _, terms = make_criterion()(*random_predictions(num_layers, 2, 5), random_labels([2, 1]))
    names = ["loss_ce", "loss_bbox", "loss_giou", "cardinality_error"]
    suffixes = ["", *(f"_{i}" for i in range(num_layers - 1))]
    assert set(terms) == {name + suffix for name in names for suffix in suffixes} | {"class_error"}
    assert all(value.ndim == 0 for value in terms.values())


def test_perfect_predictions() -> None:
    """Perfect predictions have no box loss and almost no class loss."""
    labels = random_labels([2, 1])
    logits = torch.full((1, 2, 4, NUM_LABELS + 1), -30.0)
    logits[..., NUM_LABELS] = 0.0
    boxes = torch.full((1, 2, 4, 4), 0.5)
    for image, label in enumerate(labels):
        for index, (category, box) in enumerate(zip(*label.values(), strict=True)):
            query = 3 - index  # any query may take any object
            logits[0, image, query] = -30.0
            logits[0, image, query, category] = 0.0
            boxes[0, image, query] = box
    total, terms = make_criterion()(logits, boxes, labels)
    torch.testing.assert_close(total, torch.tensor(0.0), atol=1e-5, rtol=0)
    assert terms["class_error"] == 0 and terms["cardinality_error"] == 0


def test_order_of_queries_and_images_is_free() -> None:
    """The order of queries, in each layer, and of images doesn't change the loss."""
    labels = random_labels([3, 0, 5])
    logits, boxes = random_predictions(2, 3, 8)
    expected, _ = make_criterion()(logits, boxes, labels)
    torch.manual_seed(0)
    orders = [torch.randperm(8) for _ in range(2)]
    images = [2, 0, 1]
    shuffled = (
        torch.stack([tensor[i][:, order] for i, order in enumerate(orders)])[:, images]
        for tensor in (logits, boxes)
    )
    got, _ = make_criterion()(*shuffled, [labels[i] for i in images])
    torch.testing.assert_close(got, expected, atol=1e-5, rtol=1e-5)


def test_no_objects_at_all() -> None:
    """Without objects the loss is finite, with gradients for classes and none for boxes."""
    logits, boxes = random_predictions(2, 2, 5)
    logits.requires_grad_(), boxes.requires_grad_()
    total, terms = make_criterion()(logits, boxes, random_labels([0, 0]))
    total.backward()
    assert total.isfinite() and all(value.isfinite() for value in terms.values())
    assert terms["loss_bbox"] == terms["loss_giou"] == 0
    assert boxes.grad is not None and not boxes.grad.any()
    assert logits.grad.any()


def test_eos_coefficient() -> None:
    """The weight of "no object" changes the class loss and nothing else."""
    predictions, labels = random_predictions(1, 2, 10), random_labels([2, 3])
    _, low = make_criterion(0.1)(*predictions, labels)
    _, high = make_criterion(1.0)(*predictions, labels)
    assert abs(low["loss_ce"] - high["loss_ce"]) > 1e-3
    assert low["loss_bbox"] == high["loss_bbox"] and low["loss_giou"] == high["loss_giou"]


def test_logged_errors_by_hand() -> None:
    """`class_error` is a percentage of matched queries, `cardinality_error` a number of objects."""
    labels = [
        {"class_labels": torch.tensor([0, 1]), "boxes": torch.tensor([[0.2] * 4, [0.7] * 4])},
        {"class_labels": torch.tensor([2]), "boxes": torch.tensor([[0.5] * 4])},
    ]
    best = torch.tensor([[0, 0, NUM_LABELS], [2, 2, 2]])
    logits = 10 * F.one_hot(best, NUM_LABELS + 1).float()
    nothing_found = 10 * F.one_hot(torch.full((2, 3), NUM_LABELS), NUM_LABELS + 1).float()
    boxes = torch.tensor([[[0.2] * 4, [0.7] * 4, [0.9] * 4], [[0.5] * 4, [0.9] * 4, [0.1] * 4]])
    predictions = torch.stack([nothing_found, logits]), torch.stack([boxes.flip(1), boxes])
    _, terms = make_criterion()(*predictions, labels)
    torch.testing.assert_close(terms["class_error"], torch.tensor(100 / 3), atol=1e-3, rtol=0)
    assert terms["cardinality_error"] == 1.0  # |2 - 2| and |3 - 1|
    assert terms["cardinality_error_0"] == 1.5  # the first layer finds nothing


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("autocast", [False, True])
def test_half_precision_is_compared_in_float32(dtype: torch.dtype, autocast: bool) -> None:
    """The loss of half-precision predictions is that of their exact values."""
    labels = random_labels([3, 1])
    halves = [tensor.to(dtype).requires_grad_() for tensor in random_predictions(2, 2, 10)]
    expected, _ = make_criterion()(*(tensor.float() for tensor in halves), labels)
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocast):
        total, terms = make_criterion()(*halves, labels)
    assert total.dtype == torch.float32
    assert all(value.dtype == torch.float32 for value in terms.values())
    torch.testing.assert_close(total, expected, atol=1e-6, rtol=1e-6)
    total.backward()
    assert all(tensor.grad.dtype == dtype and tensor.grad.isfinite().all() for tensor in halves)


def test_more_objects_than_queries() -> None:
    """With more objects than queries training continues, and num_boxes counts all objects."""
    labels = random_labels([5, 1])
    logits, boxes = random_predictions(2, 2, 3)
    with pytest.warns(UserWarning, match="more objects than the model queries, 3"):
        _, terms = make_criterion()(logits, boxes, labels)
    for i, suffix in ((0, "_0"), (1, "")):
        _, expected = paper_loss(logits[i], boxes[i], labels)
        for name, value in expected.items():
            torch.testing.assert_close(terms[name + suffix], value, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("counts", [[3, 2, 4, 1], [0, 0, 3, 8], [0, 1, 0, 0], [0, 0, 0, 0]])
@pytest.mark.parametrize("kind", [SoftmaxClassification, SigmoidFocalClassification])
def test_parts_add_up_to_the_whole_batch(counts: list[int], kind: type) -> None:
    """Losses and gradients of three parts of a batch sum to the batch's."""
    classification = kind(NUM_LABELS, 0.25)
    matcher = HungarianMatcher(classification, **WEIGHTS)
    criterion = DetectionCriterion(matcher, 1, 5, 2)
    labels = random_labels(counts)
    logits, boxes = random_predictions(2, 4, 9)
    logits = logits[..., : classification.num_logits].requires_grad_()
    expected, _ = criterion(logits, boxes, labels)
    (expected_grad,) = torch.autograd.grad(expected, logits)
    parts = [slice(0, 1), slice(1, 2), slice(2, 4)]
    normalizers = count_loss_normalizers(counts, num_queries=9, device=logits.device)
    got = sum(criterion(logits[:, p], boxes[:, p], labels[p], normalizers)[0] for p in parts)
    (grad,) = torch.autograd.grad(got, logits)
    torch.testing.assert_close(got, expected, atol=1e-6, rtol=1e-5)
    torch.testing.assert_close(grad, expected_grad, atol=1e-6, rtol=1e-5)


def test_sum_of_parts() -> None:
    """Weights, names, labels and known matches of several sets of queries are used."""
    criterion, labels, others = make_criterion(), random_labels([3, 1]), random_labels([2, 2])
    predictions = [random_predictions(2, 2, 9) for _ in range(2)]
    own, _, final = criterion.sum_parts([LossPart(*predictions[0])], labels)
    assert [len(query) for query, _ in final.pairs] == [3, 1]
    expected, expected_terms = criterion(*predictions[1], others, final.normalizers)
    parts = [
        LossPart(*predictions[0], weight=0.5),
        LossPart(*predictions[1], labels=others, weight=3, suffix="_x", source="others"),
        LossPart(*predictions[1], labels=others, suffix=None, source="others"),
    ]
    total, terms, _ = criterion.sum_parts(parts, labels)
    torch.testing.assert_close(total, 0.5 * own + 4 * expected)
    torch.testing.assert_close(terms["loss_ce_0_x"], 3 * expected_terms["loss_ce_0"])
    assert terms["cardinality_error_0_x"] == expected_terms["cardinality_error_0"]
    assert {name for name in terms if name.endswith("_x")} == {
        f"{name}_x" for name in expected_terms if name != "class_error"
    }
    assert len(terms) == 2 * len(expected_terms) - 1


def test_known_matches() -> None:
    """Known matches are used in every layer; other queries learn "no object"."""
    criterion, labels = make_criterion(), random_labels([2, 1])
    logits, boxes = random_predictions(2, 2, 4)
    matches = [(torch.tensor([0, 2]), torch.tensor([1, 0])), (torch.tensor([3]), torch.tensor([0]))]
    part = LossPart(logits, boxes, matches)
    _, terms, final = criterion.sum_parts([part], labels)
    assert final.pairs == matches
    pairs = [((0, 0), (0, 1)), ((0, 2), (0, 0)), ((1, 3), (1, 0))]
    for layer, suffix in ((0, "_0"), (1, "")):
        distances = [
            (boxes[layer][query] - labels[image]["boxes"][index]).abs().sum()
            for query, (image, index) in pairs
        ]
        torch.testing.assert_close(terms[f"loss_bbox{suffix}"], sum(distances) / 3)
        classes = torch.full((2, 4), NUM_LABELS)
        for query, (image, index) in pairs:
            classes[query] = labels[image]["class_labels"][index]
        weight = torch.tensor([1.0] * NUM_LABELS + [0.1])
        expected = F.cross_entropy(logits[layer].flatten(0, 1), classes.flatten(), weight)
        torch.testing.assert_close(terms[f"loss_ce{suffix}"], expected)


def test_one_wait_for_the_device() -> None:
    """Nothing but the matcher's transfer is read from the device."""
    predictions, labels = random_predictions(6, 2, 10), random_labels([3, 2])
    with HostReads() as reads:
        make_criterion()(*predictions, labels)
    assert [call for call in reads.calls if call != "to"] == ["cpu"]  # "to" uploads here


def test_wrong_labels_are_refused() -> None:
    """Labels that are invalid are refused."""
    predictions, labels = random_predictions(1, 1, 5), random_labels([2])
    with pytest.raises(ValueError, match="labels has 1 dicts for 2 images"):
        make_criterion()(*random_predictions(1, 2, 5), labels)
    labels[0]["boxes"] *= 100
    with pytest.raises(ValueError, match=r"labels\[0\], object 0 .*not in pixels"):
        make_criterion()(*predictions, labels)


# Objects per image; the first process gets the first two images, the second the others
SCENARIOS = {
    "as many objects": [3, 2, 4, 1],
    "more objects in one": [5, 3, 1, 0],
    "one without objects": [0, 0, 3, 1],
    "fewer objects than processes": [0, 1, 0, 0],
    "both without objects": [0, 0, 0, 0],
}


class TinyDetector(nn.Module):
    """Two linear heads on given states, the same in every process."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.classes = nn.Linear(6, NUM_LABELS + 1)
        self.boxes = nn.Linear(6, 4)

    def forward(self, states: Tensor) -> tuple[Tensor, Tensor]:
        return self.classes(states), self.boxes(states).sigmoid()


def step(model: Callable, images: slice, counts: list[int]) -> dict[str, Tensor]:
    """Loss and terms of some images of a batch, after the backward pass."""
    states = torch.randn(2, 4, 7, 6, generator=torch.Generator().manual_seed(3))
    total, terms = make_criterion()(*model(states[:, images]), random_labels(counts)[images])
    total.backward()
    return {"total": total.detach(), **{name: value.detach() for name, value in terms.items()}}


def run_process(rank: int, folder: str) -> None:
    """What each of two processes does: every scenario in turn, on its half of the images."""
    torch.set_num_threads(1)
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=2
    )
    results = {}
    for name, counts in SCENARIOS.items():
        model = nn.parallel.DistributedDataParallel(TinyDetector())
        terms = step(model, slice(2 * rank, 2 * rank + 2), counts)
        gradients = {n: p.grad for n, p in model.module.named_parameters()}
        results[name] = {"terms": terms, "gradients": gradients}
    torch.save(results, f"{folder}/{rank}.pt")
    torch.distributed.destroy_process_group()


@pytest.fixture(scope="module")
def two_processes(tmp_path_factory: pytest.TempPathFactory) -> list[dict]:
    """Results of both processes, by scenario."""
    folder = tmp_path_factory.mktemp("processes")
    run_processes(run_process, str(folder))
    return [torch.load(Path(folder) / f"{rank}.pt") for rank in range(2)]


def compare_with_one_process(two_processes: list[dict], scenario: str, part: str) -> None:
    """Compare terms averaged over the processes, and one part's gradients, with one process."""
    model = TinyDetector()
    expected = step(model, slice(0, 4), SCENARIOS[scenario])
    names = {"boxes": ("loss_bbox", "loss_giou"), "classes": ("loss_ce",)}[part]
    results = [result[scenario] for result in two_processes]
    for name in (n for n in expected if n.startswith(names)):
        mean = sum(result["terms"][name] for result in results) / 2
        torch.testing.assert_close(mean, expected[name], atol=1e-6, rtol=1e-5)
    for name, parameter in getattr(model, part).named_parameters():
        for result in results:
            got = result["gradients"][f"{part}.{name}"]
            torch.testing.assert_close(got, parameter.grad, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("scenario", SCENARIOS)
def test_two_processes_train_boxes_as_one(two_processes: list[dict], scenario: str) -> None:
    """Box losses and gradients don't depend on how a batch is distributed."""
    compare_with_one_process(two_processes, scenario, "boxes")


@pytest.mark.parametrize("scenario", SCENARIOS)
def test_two_processes_train_classes_as_one(two_processes: list[dict], scenario: str) -> None:
    """Class loss and gradients don't either: the weighted mean is over the whole batch."""
    compare_with_one_process(two_processes, scenario, "classes")
