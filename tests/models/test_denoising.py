"""Protects denoising queries: their noise, who attends to whom, and that they aren't saved."""

from math import inf, nan
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor
from torch.testing import assert_close

from hf_detr.losses.targets import Targets, prepare_targets
from hf_detr.models.denoising import Denoising, Noise
from hf_detr.models.object_detector import ObjectDetector

from ..tiny import NO_DROPOUT, PREFIXES, class_of, padded_batch, some_labels, tiny_detector

FIXTURE = Path(__file__).parents[1] / "fixtures" / "dino_denoising.safetensors"
NUM_OWN = 900  # queries of the recorded model
WITHOUT = [name for name in PREFIXES if name != "dino_detr"]  # in their papers
TWO_STAGE = {"two_stage": True, "with_box_refine": True, "two_stage_num_proposals": 7}


def learning(variant: str, num_denoising_queries: int = 6, **changes: object) -> ObjectDetector:
    """A tiny detector with denoising, ready to learn, without dropout."""
    model = tiny_detector(variant, auxiliary_loss=True, **NO_DROPOUT, **changes).train()
    model.add_denoising(num_denoising_queries)
    return model


# ---------------------------------------------------------------- the official code


def recorded(target_set: str) -> tuple[dict[str, Tensor], Targets]:
    """What the official code of DINO drew and made for a batch of two images."""
    prefix = f"{target_set}/"
    tensors = load_file(FIXTURE)
    record = {name.removeprefix(prefix): t for name, t in tensors.items() if prefix in name}
    labels = [
        {"class_labels": record[f"target/{i}/labels"], "boxes": record[f"target/{i}/boxes"]}
        for i in range(2)
    ]
    return record, prepare_targets(labels, 2, torch.device("cpu"))


def by_image(flat: Tensor, targets: Targets) -> Tensor:
    """Values (G * 2 * n, …) of the batch's n objects in a row as (B, G, 2, T, …)."""
    rows = flat.unflatten(0, (-1, 2, sum(targets.counts)))  # (G, 2, n, …)
    padded = flat.new_zeros(
        len(targets.counts), *rows.shape[:2], max(targets.counts), *flat.shape[1:]
    )
    for image, part in enumerate(rows.split(list(targets.counts), dim=2)):
        padded[image, :, :, : part.shape[2]] = part
    return padded


def recorded_noise(record: dict[str, Tensor], targets: Targets) -> Noise:
    draws = record["draw/label_probability"]
    others = torch.zeros_like(record["label_indices"])
    others[draws < 0.25] = record["draw/new_label"]  # which are drawn for changed labels only
    signs = record["draw/box_sign"] * 2 - 1
    values = (draws, others, signs, record["draw/box_part"])
    return Noise(*(by_image(value, targets) for value in values))


@pytest.mark.parametrize("target_set", ["main", "one_empty"])
def test_noise_is_that_of_the_official_code(target_set: str) -> None:
    """The same random numbers give the same labels and boxes (1e-6)."""
    record, targets = recorded(target_set)
    noise = recorded_noise(record, targets)
    class_labels, boxes = Denoising(91, 8, 100).add_noise(targets, noise)
    real = by_image(torch.ones_like(record["label_indices"]), targets).bool()
    expected = by_image(record["label_indices"], targets)
    assert torch.equal(class_labels[real], expected[real])
    assert_close(boxes[real], by_image(record["boxes"], targets)[real], rtol=0, atol=1e-6)


@pytest.mark.parametrize("target_set", ["main", "one_empty"])
def test_masks_and_matches_are_those_of_the_official_code(target_set: str) -> None:
    """Which queries see which, and which object each restores; the order of groups too."""
    record, targets = recorded(target_set)
    denoising = Denoising(91, 8, 100)
    training = denoising.make_queries(targets, recorded_noise(record, targets), NUM_OWN)
    (objects,) = training.sets
    number = objects.num_queries
    packed = record["attention_mask"].numpy()
    blocked = np.unpackbits(packed, count=(number + 1) ** 2).reshape(number + 1, -1).astype(bool)
    allowed = ~torch.from_numpy(blocked)
    assert torch.equal(training.mask[0, :, NUM_OWN:], allowed[:number, :number])
    assert training.mask[0, :, :NUM_OWN].all() and allowed[:number, number].all()
    for image, (queries, indices) in enumerate(objects.matches):
        assert torch.equal(queries, record[f"match/{image}/query"])
        assert torch.equal(indices, record[f"match/{image}/target"])
    assert objects.weight == pytest.approx(1 / (len(record["boxes"]) / 2 / sum(targets.counts)))


# ---------------------------------------------------------------- noise and groups


def test_groups_fill_the_number_of_queries() -> None:
    """As many groups of pairs as fit, at least one, whatever the images have."""
    denoising = Denoising(5, 8, num_denoising_queries=10)
    for counts, expected in (((3, 1), 18), ((20, 2), 40), ((1,), 20), ((0, 0), 0)):
        training = denoising(some_labels(counts), 7, torch.zeros(len(counts), 0, 8))
        assert training.sets[0].num_queries == expected
        assert training.queries.contents.shape == (len(counts), expected, 8)
        assert training.mask.shape == (1, expected, 7 + expected)


def test_noise_has_its_size() -> None:
    """Shares of changed labels and distances of corners are those asked for, by kind."""
    torch.manual_seed(0)
    labels = [{"class_labels": torch.zeros(400).long(), "boxes": torch.full((400, 4), 0.4)}]
    targets = prepare_targets(labels, 1, torch.device("cpu"))
    denoising = Denoising(50, 8, 400, label_noise_ratio=0.6, box_noise_scale=0.5)
    names, boxes = denoising.add_noise(targets, denoising.draw_noise(targets, 20))
    changed = (names != 0).float().mean().item()
    assert changed == pytest.approx(0.3 * 49 / 50, abs=0.02)  # a drawn label can be the old one
    corners = boxes[..., :2] - boxes[..., 2:] / 2  # upper left, (1, G, 2, T, 2)
    moved = (corners - 0.2).abs() / 0.2 / 0.5  # in steps of the scale
    restoring, rejecting = moved[:, :, 0], moved[:, :, 1]
    assert restoring.max() <= 1 + 1e-5 and restoring.mean() == pytest.approx(0.5, abs=0.02)
    assert rejecting.min() >= 1 - 1e-5 and rejecting.max() <= 2 + 1e-5


def test_no_noise_gives_the_objects_themselves() -> None:
    """With both scales at 0 queries start at the labels and boxes, padded ones at nothing."""
    denoising = Denoising(5, 8, 4, label_noise_ratio=0, box_noise_scale=0)
    labels = some_labels((2, 1))
    queries = denoising(labels, 7, torch.zeros(2, 0, 8)).queries
    for image, target in enumerate(labels):
        number = len(target["boxes"])
        first = queries.reference_points[image].unflatten(0, (2, 2, 2))[:, :, :number]
        assert_close(first, target["boxes"].expand_as(first), rtol=0, atol=1e-6)
    contents = queries.contents[1].unflatten(0, (2, 2, 2))
    named = denoising.label_embeddings(labels[1]["class_labels"])
    assert torch.equal(contents[:, :, 0], named.expand(2, 2, 8))
    assert (contents[:, :, 1] == 0).all()


@pytest.mark.parametrize(
    "values",
    [(-1,), (2.5,), (2**16 + 1,), (5, 1.5), (5, -0.1), (5, nan), (5, 0.5, -1.0)]
    + [(5, 0.5, nan), (5, 0.5, inf)],
)
def test_values_out_of_range_are_refused(values: tuple[float, ...]) -> None:
    for variant in ("conditional_detr", "dino_detr"):
        model = tiny_detector(variant)
        before = model.config.to_dict()
        with pytest.raises(ValueError, match="num_denoising_queries is .* expected at least 1"):
            model.add_denoising(*values)
        assert model.config.to_dict() == before


@pytest.mark.parametrize("noise", [(9,), (0.5, 0.4), (None, 0.4)])
def test_noise_without_queries_is_refused(variant: str, noise: tuple[float | None, ...]) -> None:
    """Removing the queries doesn't take values that would have no effect."""
    model = tiny_detector(variant)
    before = model.config.to_dict()
    with pytest.raises(ValueError, match="0 denoising queries have no noise; leave both out"):
        model.add_denoising(0, *noise)
    assert model.config.to_dict() == before


# ---------------------------------------------------------------- in a detector


@pytest.mark.parametrize("changes", [{}, TWO_STAGE], ids=["one stage", "two stages"])
def test_the_detectors_own_queries_do_not_notice(variant: str, changes: dict) -> None:
    """Predictions and losses of training are bit for bit the same with and without."""
    if changes and variant != "deformable_detr":
        pytest.skip("only Deformable DETR has two stages")
    model = learning(variant, **changes)
    batch, labels = padded_batch(), some_labels((2, 3))
    output = model(*batch, labels=labels)
    model.add_denoising(0)
    alone = model(*batch, labels=labels)
    assert_close(output.logits, alone.logits, rtol=0, atol=1e-6)
    assert_close(output.pred_boxes, alone.pred_boxes, rtol=0, atol=1e-6)
    for name, value in alone.loss_dict.items():
        assert_close(output.loss_dict[name], value, rtol=1e-5, atol=1e-5, msg=name)
    weights = model.criterion.weights
    shares = [
        weights[name.split("_dn")[0].rstrip("_012")] * value
        for name, value in output.loss_dict.items()
        if name.endswith("_dn") and not name.startswith("cardinality")
    ]
    assert_close(output.loss, alone.loss + sum(shares), rtol=1e-5, atol=1e-5)
    assert {f"{name}_dn" for name in ("loss_ce", "loss_ce_0", "loss_bbox", "loss_giou_1")} <= set(
        output.loss_dict
    )


def test_a_group_does_not_see_another(variant: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Changing the objects of one group changes the predictions of that group alone."""
    model, batch, labels = learning(variant), padded_batch(), some_labels((2, 2))
    make_queries = Denoising.make_queries
    shifts = []

    def shifted(self: Denoising, *args: object) -> object:
        training = make_queries(self, *args)
        contents = training.queries.contents  # (B, 3 groups of 2 kinds of 2 objects, D)
        contents[:, 4:8] += shifts[-1] * torch.linspace(-1, 1, contents.shape[-1])
        return training

    monkeypatch.setattr(Denoising, "make_queries", shifted)
    states = []
    for shift in (0.0, 1.0):
        shifts.append(shift)
        torch.manual_seed(0)
        states.append(model.model(*batch, labels=labels).training_states.layer_states)
    same = (states[0] - states[1]).abs().amax((0, 1, 3)) < 1e-6
    assert same.tolist() == [True] * 4 + [False] * 4 + [True] * 4


@pytest.mark.parametrize("counts", [(2, 3), (0, 1), (0, 0)], ids=["main", "one empty", "all empty"])
def test_every_weight_gets_a_gradient(variant: str, counts: tuple[int, ...]) -> None:
    """Also without any object, as `DistributedDataParallel` demands."""
    model = learning(variant)
    loss = model(*padded_batch(), labels=some_labels(counts)).loss
    loss.backward()
    names = [n for n, p in model.named_parameters() if p.requires_grad and p.grad is None]
    assert names == []
    assert loss.isfinite()


def test_it_learns_to_restore_objects(variant: str) -> None:
    """Some steps on one batch lower the losses of denoising."""
    torch.manual_seed(0)
    model, batch, labels = learning(variant, 20), padded_batch(), some_labels((2, 3))
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    losses = []
    for _ in range(40):
        output = model(*batch, labels=labels)
        optimizer.zero_grad()
        output.loss.backward()
        optimizer.step()
        # DINO's boxes start where the noise left them, and learn too little in so few steps.
        term = "loss_ce_dn" if variant == "dino_detr" else "loss_bbox_dn"
        losses.append(output.loss_dict[term].item())
    assert sum(losses[-5:]) < 0.85 * sum(losses[:5])


@pytest.mark.parametrize("variant", WITHOUT)
def test_nothing_is_saved(variant: str, tmp_path: Path) -> None:
    """Files, and predictions after loading, are those of a detector without denoising."""
    model, batch = tiny_detector(variant), padded_batch()
    with torch.no_grad():
        before = model(*batch).logits
    model.add_denoising(10)
    with torch.no_grad():
        assert torch.equal(model(*batch).logits, before)
    model.save_pretrained(tmp_path)
    with safe_open(tmp_path / "model.safetensors", "pt") as file:
        saved = list(file.keys())
    assert not any("denoising" in name for name in saved)
    loaded = class_of(variant, "ForObjectDetection").from_pretrained(tmp_path)
    with torch.no_grad():
        assert torch.equal(loaded(*batch).logits, before)
    model.add_denoising(0)
    assert model.state_dict().keys() == loaded.state_dict().keys()


def test_denoising_of_dino_is_saved(tmp_path: Path) -> None:
    """Numbers are the configuration's, embeddings are in the file and survive other numbers."""
    model = tiny_detector("dino_detr", num_denoising_queries=8, box_noise_scale=0.7)
    denoising = model.model.denoising
    assert denoising.num_denoising_queries == 8 and denoising.box_noise_scale == 0.7
    trained = denoising.label_embeddings.weight.detach().clone()
    model.add_denoising(30)
    assert model.model.denoising.box_noise_scale == model.config.box_noise_scale == 0.7
    model.add_denoising(20, 0.25, 0.5)
    model.save_pretrained(tmp_path)
    loaded, info = class_of("dino_detr", "ForObjectDetection").from_pretrained(
        tmp_path, output_loading_info=True
    )
    assert not any(info.values()), info
    again = loaded.model.denoising
    assert torch.equal(again.label_embeddings.weight, trained)
    noise = (again.num_denoising_queries, again.label_noise_ratio, again.box_noise_scale)
    assert noise == (20, 0.25, 0.5)
    loaded.add_denoising(0)
    loaded.save_pretrained(tmp_path)
    with safe_open(tmp_path / "model.safetensors", "pt") as file:
        assert not any("denoising" in name for name in file.keys())  # noqa: SIM118
    _, info = type(loaded).from_pretrained(tmp_path, output_loading_info=True)
    assert not any(info.values()), info


@pytest.mark.parametrize("counts", [(2,), (0,)], ids=["objects", "none"])
@pytest.mark.parametrize(
    ("variant", "changes"),
    [
        ("deformable_detr", TWO_STAGE | {"two_stage_num_proposals": 300}),
        ("dino_detr", {"num_queries": 300}),
    ],
)
def test_fewer_tokens_than_proposals(variant: str, changes: dict, counts: tuple[int]) -> None:
    """An image too small for all proposals trains with denoising all the same."""
    model = learning(variant, **changes)
    loss = model(torch.randn(1, 3, 64, 64), labels=some_labels(counts)).loss
    loss.backward()
    assert loss.isfinite()


def test_classes_that_change() -> None:
    """Known classes keep their embedding, new ones begin as the mean of all."""
    model = learning("conditional_detr")
    model.config.id2label = dict(enumerate("abcde"))
    old = model.model.denoising.label_embeddings.weight.detach().clone()
    model.resize_classes({0: "new", 1: "b"})
    new = model.model.denoising.label_embeddings.weight
    assert_close(new, torch.stack([old[:5].mean(0), old[1], old[5]]))
    labels = some_labels((2, 1), num_labels=2)
    assert model(*padded_batch(), labels=labels).loss.isfinite()


def test_wrong_labels_are_reported() -> None:
    """Labels are used before the loss checks them, whose messages must come all the same."""
    model, batch = learning("deformable_detr"), padded_batch()
    labels = some_labels((2, 1))
    labels[1]["class_labels"][0] = 5
    with pytest.raises(ValueError, match=r"labels\[1\], object 0 .* outside 0 … 4"):
        model(*batch, labels=labels)
    with pytest.raises(ValueError, match="labels has 3 dicts for 2 images"):
        model(*batch, labels=some_labels((2, 1, 1)))
    labels = some_labels((2, 1))
    labels[0]["boxes"][1, 0] = torch.nan
    with pytest.raises(ValueError, match=r"labels\[0\], object 1 .* isn't finite"):
        model(*batch, labels=labels)


def test_groups_and_denoising_together_are_refused() -> None:
    model = learning("deformable_detr")
    model.add_query_groups(2)
    with pytest.raises(ValueError, match="remove one of them"):
        model(*padded_batch(), labels=some_labels((2, 1)))
