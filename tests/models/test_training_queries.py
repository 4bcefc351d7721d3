"""Protects queries that exist in training alone: their loss, and that nothing of them is saved."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from torch import Tensor
from torch.testing import assert_close
from torch.utils._pytree import tree_map

import hf_detr
from hf_detr import DetrForSegmentation
from hf_detr.layers.feature_pyramid import FeaturePyramid
from hf_detr.losses.criterion import LossPart
from hf_detr.losses.matcher import NonFinitePredictionError
from hf_detr.models.object_detector import ObjectDetector
from hf_detr.models.training_queries import QuerySet, TrainingQueries

from ..tiny import (
    NO_DROPOUT,
    WITH_GROUPS,
    class_of,
    padded_batch,
    some_labels,
    tiny_config,
    tiny_detector,
)


def learning(variant: str, num_groups: int = 2, **changes: int) -> ObjectDetector:
    """A tiny detector with groups, ready to learn, without anything random."""
    model = tiny_detector(variant, auxiliary_loss=True, **NO_DROPOUT, **changes).train()
    model.add_query_groups(num_groups)
    return model


def saved_names(folder: Path) -> list[str]:
    """Names of the weights in a saved model's file."""
    with safe_open(folder / "model.safetensors", "pt") as file:
        return list(file.keys())


@pytest.mark.parametrize("variant", WITH_GROUPS)
def test_loss_is_the_mean_over_groups(variant: str) -> None:
    """As if each group were the model's own queries, in a padded batch (1e-5); gradients too."""
    model, batch, labels = learning(variant), padded_batch(), some_labels((2, 3))
    output = model(*batch, labels=labels)
    output.loss.backward()
    groups = model.model.query_groups.embeddings
    own = model.model.query_position_embeddings
    gradients = torch.cat([own.weight.grad, groups.weight.grad])
    encoder = model.model.encoder.layers[0].fc1.weight
    of_encoder = encoder.grad

    alone = tiny_detector(variant, auxiliary_loss=True, **NO_DROPOUT).train()
    losses, expected = [], []
    for queries in (own.weight, *groups.weight.unflatten(0, (2, -1))):
        alone.model.query_position_embeddings.weight.data.copy_(queries)
        alone.model.query_position_embeddings.weight.grad = None
        loss = alone(*batch, labels=labels).loss
        (loss / 3).backward()
        losses.append(loss.detach())
        expected.append(alone.model.query_position_embeddings.weight.grad)
    assert len({round(loss.item(), 4) for loss in losses}) == 3
    assert_close(output.loss, torch.stack(losses).mean(), atol=1e-5, rtol=1e-5)
    assert_close(gradients, torch.cat(expected), atol=1e-5, rtol=1e-4)
    assert_close(of_encoder, alone.model.encoder.layers[0].fc1.weight.grad, atol=1e-5, rtol=1e-4)
    assert output.logits.shape[:2] == (2, 7)  # the model's own queries'


def copies_of_own_queries(model: ObjectDetector) -> Callable[..., TrainingQueries]:
    """A hook that adds the detector's own queries once more, which attend to each other."""

    def training_queries(
        labels: list | None, memory: Tensor, positions: Tensor, pyramid: FeaturePyramid
    ) -> TrainingQueries:
        if isinstance(model.model, hf_detr.DinoDetrModel):
            _, box_logits = model.model.proposals(memory, pyramid, model.model.num_queries)
            own = model.model.queries_at(box_logits, memory)
        elif getattr(model.config, "two_stage", False):
            own = model.model.queries_from(*model.model.propose(memory, pyramid))
        else:
            own = model.model.prepare_queries(model.model.query_embeddings(memory))
        num_queries = own.contents.shape[1]
        mask = torch.arange(2 * num_queries) >= num_queries
        copies = QuerySet(num_queries, suffix="_copied")
        return TrainingQueries(own, mask.expand(1, num_queries, -1), (copies,))

    return training_queries


@pytest.mark.parametrize(
    ("variant", "changes"),
    [
        *((variant, {}) for variant in WITH_GROUPS),
        ("dino_detr", {"num_denoising_queries": 0}),
        ("deformable_detr", {"with_box_refine": True}),
        ("deformable_detr", {"with_box_refine": True, "two_stage": True}),
    ],
)
def test_they_are_decoded_like_the_detectors_own(variant: str, changes: dict) -> None:
    """Copies of a detector's queries, also of proposals, get its states, references and loss."""
    model = tiny_detector(variant, auxiliary_loss=True, **NO_DROPOUT, **changes).train()
    batch, labels = padded_batch(), some_labels((2, 3))
    alone = model(*batch, labels=labels)
    model.model.training_queries = copies_of_own_queries(model)
    states = model.model(*batch)
    copied = states.training_states
    assert_close(copied.layer_states, states.intermediate_hidden_states, atol=1e-4, rtol=0)
    assert_close(copied.reference_points, states.reference_points, atol=1e-5, rtol=0)
    output = model(*batch, labels=labels)
    assert_close(output.logits, alone.logits, atol=1e-4, rtol=0)
    assert {*alone.loss_dict} < {*output.loss_dict}
    for name in ("loss_ce", "loss_bbox_0", "loss_giou_1"):
        assert_close(output.loss_dict[f"{name}_copied"], alone.loss_dict[name], atol=1e-4, rtol=0)


@pytest.mark.parametrize("variant", WITH_GROUPS)
def test_outputs_do_not_show_them(variant: str) -> None:
    """What a detector returns in training is as large as without them, without labels too."""
    batch, given = padded_batch(), {"output_attentions": True, "output_hidden_states": True}
    shapes = []
    for num_groups in (0, 2):
        output = learning(variant, num_groups)(*batch, **given)
        shapes.append(tree_map(lambda tensor: tensor.shape, dict(output)))
    assert shapes[0] == shapes[1]
    assert_close(output.decoder_attentions[0].sum(-1), torch.ones(2, 4, 7))


# The compiler looks at .grad of what it resumes with after the loss, and warns itself.
@pytest.mark.filterwarnings("ignore:The .grad attribute:UserWarning")
def test_compiled_training_step() -> None:
    """A compiled step gives the same loss (1e-4)."""
    model = learning("conditional_detr", encoder_layers=1, decoder_layers=2)
    batch, labels = padded_batch(), some_labels((2, 3))
    compiled = torch.compile(model, backend="aot_eager")(*batch, labels=labels)
    assert_close(compiled.loss, model(*batch, labels=labels).loss, atol=1e-4, rtol=1e-4)
    compiled.loss.backward()


@pytest.mark.parametrize("variant", WITH_GROUPS)
def test_accumulated_parts_add_up(variant: str) -> None:
    """Two images one by one give the loss of both at once (1e-5), one of them without objects."""
    model, labels = learning(variant), some_labels((3, 0))
    pixels = torch.randn(2, 3, 64, 64)
    whole = model(pixels, labels=labels).loss
    counts = model.count_loss_normalizers(labels)
    parts = [
        model(pixels[i : i + 1], labels=labels[i : i + 1], loss_normalizers=counts).loss
        for i in range(2)
    ]
    assert_close(sum(parts), whole, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("variant", WITH_GROUPS)
def test_nothing_of_them_detects_or_is_saved(variant: str, tmp_path: Path) -> None:
    """Predictions are the model's without groups, to the bit; so are the files and their names."""
    model, batch = tiny_detector(variant), padded_batch()
    with torch.no_grad():
        before = model(*batch)
        model.add_query_groups(3)
        assert torch.equal(model(*batch).logits, before.logits)
    model.save_pretrained(tmp_path)
    assert not any("query_groups" in name for name in saved_names(tmp_path))
    loaded = class_of(variant, "ForObjectDetection").from_pretrained(tmp_path)
    with torch.no_grad():
        assert torch.equal(loaded(*batch).logits, before.logits)
    model.add_query_groups(0)
    assert model.state_dict().keys() == loaded.state_dict().keys()


def test_masks_learn_beside_them(tmp_path: Path) -> None:
    """A model with masks trains with groups, its masks those of its own queries, and is saved."""
    sizes = {"d_model": 128, "encoder_attention_heads": 8}
    model = DetrForSegmentation(tiny_config("detr", **sizes, **NO_DROPOUT)).train()
    labels = [{**t, "masks": torch.ones(len(t["boxes"]), 64, 96)} for t in some_labels((2, 1))]
    alone = model(*padded_batch(), labels=labels)
    model.add_query_groups(2)
    output = model(*padded_batch(), labels=labels)
    assert_close(output.loss_dict["loss_mask"], alone.loss_dict["loss_mask"])
    output.loss.backward()
    assert model.detection_transformer.query_groups.embeddings.weight.grad.abs().sum() > 0
    model.save_pretrained(tmp_path)
    assert not any("query_groups" in name for name in saved_names(tmp_path))


def test_predictions_that_are_not_finite() -> None:
    """The error names the image, not the group, and says that the queries are training's."""
    model = learning("detr")
    logits, boxes = torch.zeros(1, 2, 14, 6), torch.full((1, 2, 14, 4), 0.5)
    boxes[:, 1, 12] = torch.nan
    own = LossPart(logits[:, :, :7], boxes[:, :, :7])
    nothing = torch.empty(0, dtype=torch.int64)
    for matches in (None, [(nothing, nothing)] * 4):
        groups = LossPart(logits, boxes, matches, num_groups=2, source="training queries")
        with pytest.raises(
            NonFinitePredictionError, match=r"training queries .*images \[1\]"
        ) as caught:
            model.criterion.sum_parts([own, groups], some_labels((2, 1)))
        assert caught.value.images == [1]


def test_refused_groups() -> None:
    """A negative number, and groups for a model that proposes its queries, are refused."""
    with pytest.raises(ValueError, match="num_groups is -1"):
        tiny_detector().add_query_groups(-1)
    proposing = tiny_detector("deformable_detr", two_stage=True, with_box_refine=True)
    with pytest.raises(ValueError, match="proposals of its encoder"):
        proposing.add_query_groups(2)
    with pytest.raises(ValueError, match="DINO can't have query groups"):
        tiny_detector("dino_detr").add_query_groups(2)


def test_groups_are_as_large_as_the_detectors_own() -> None:
    """Protects groups from staying small when the detector gets more queries."""
    model = tiny_detector(num_queries=3)
    model.add_query_groups(2)
    model.resize_queries(10)
    assert model.model.query_groups.embeddings.weight.shape[0] == 2 * 10
