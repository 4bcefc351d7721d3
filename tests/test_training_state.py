"""Protects that a training's tensors come back as they were, by the model's own names."""

import pytest
import torch
from torch import Tensor, nn
from torch.testing import assert_close

from hf_detr.model_ema import ModelEma
from hf_detr.training_state import gather_training_state, restore_training_state

from .tiny import padded_batch, some_labels, tiny_detector


def fresh(seed: int = 0, **changes: object) -> tuple:
    """A detector, its optimiser and its average."""
    model = tiny_detector("deformable_detr", auxiliary_loss=True, **changes).train()
    torch.manual_seed(seed)
    for parameter in model.parameters():
        nn.init.uniform_(parameter, -0.05, 0.05)
    optimizer = torch.optim.AdamW(model.parameter_groups(1e-3), weight_decay=1e-4)
    return model, optimizer, ModelEma(model, 0.9)


def train(model: nn.Module, optimizer: torch.optim.Optimizer, ema: ModelEma, step: int) -> Tensor:
    """One step; its loss. The seed makes dropout repeatable."""
    torch.manual_seed(step)
    loss = model(*padded_batch(), some_labels()).loss
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    ema.update(step)
    return loss.detach()


@pytest.mark.parametrize("compiled", [False, True])
def test_training_goes_on_exactly(compiled: bool) -> None:
    """Protects resuming: from a state, losses, weights and averages are the very same (0)."""
    one = fresh()
    for step in (1, 2):
        train(*one, step)
    state = gather_training_state(*one)
    state = {g: {n: t.clone() for n, t in tensors.items()} for g, tensors in state.items()}
    losses = [train(*one, step) for step in (3, 4)]
    model, optimizer, ema = fresh(seed=1)
    wrapped = torch.compile(model, backend="eager") if compiled else model
    restore_training_state(state, wrapped, optimizer, ema)
    again = [train(model, optimizer, ema, step) for step in (3, 4)]
    assert_close(again, losses, atol=0, rtol=0)
    assert_close(model.state_dict(), one[0].state_dict(), atol=0, rtol=0)
    assert_close(ema.averages, one[2].averages, atol=0, rtol=0)


def test_names_are_the_models() -> None:
    """Protects files that other tools read: the state of the model is its state dict."""
    model, optimizer, ema = fresh()
    train(model, optimizer, ema, 1)
    compiled = torch.compile(model, backend="eager")
    state = gather_training_state(compiled, optimizer, ema)
    assert_close(state["model"], dict(model.state_dict()), atol=0, rtol=0)
    trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    kinds = ("exp_avg", "exp_avg_sq", "step")
    assert set(state["optimizer"]) == {f"{name}:{k}" for name in trained for k in kinds}
    assert set(state["ema"]) == set(state["model"])


def test_settings_of_the_optimiser_stay() -> None:
    """Protects the learning rate, which follows from the step, from a file's."""
    one, other = fresh(), fresh(seed=1)
    train(*one, 1)
    for group in other[1].param_groups:
        group["lr"] = 7.0
    restore_training_state(gather_training_state(*one), *other)
    assert all(group["lr"] == 7.0 for group in other[1].param_groups)


def test_what_does_not_fit_is_refused() -> None:
    """Protects against half a state: other shapes, other parameters, no average."""
    one = fresh()
    train(*one, 1)
    state = gather_training_state(*one)
    with pytest.raises(RuntimeError, match="size mismatch"):
        restore_training_state(state, *fresh(num_queries=3))
    frozen = fresh()[0]
    frozen.freeze_backbone()
    optimizer = torch.optim.AdamW(frozen.parameter_groups(1e-3))
    with pytest.raises(ValueError, match=r"model\.backbone.* only one of"):
        restore_training_state(state, frozen, optimizer)
    del state["ema"]
    with pytest.raises(ValueError, match="no averaged weights"):
        restore_training_state(state, *one)
