"""The state of a training is restored exactly, by the names of the unwrapped model."""

import copy
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.distributed.fsdp import fully_shard
from torch.testing import assert_close

from hf_detr.training.model_ema import ModelEma
from hf_detr.training.state import copy_whole_model, gather_training_state, restore_training_state

from ..processes import run_processes
from ..tiny import padded_batch, some_labels, tiny_detector


def fresh(seed: int = 0, **changes: object) -> tuple:
    """Make a detector, its optimiser and its average."""
    model = tiny_detector("deformable_detr", auxiliary_loss=True, **changes).train()
    torch.manual_seed(seed)
    for parameter in model.parameters():
        nn.init.uniform_(parameter, -0.05, 0.05)
    optimizer = torch.optim.AdamW(model.parameter_groups(1e-3), weight_decay=1e-4)
    return model, optimizer, ModelEma(model, 0.9)


def train(model: nn.Module, optimizer: torch.optim.Optimizer, ema: ModelEma, step: int) -> Tensor:
    """Train one step and return its loss; the seed makes dropout repeatable."""
    torch.manual_seed(step)
    loss = model(*padded_batch(), labels=some_labels()).loss
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    ema.update(step)
    return loss.detach()


@pytest.mark.parametrize("compiled", [False, True])
def test_training_goes_on_exactly(compiled: bool) -> None:
    """Losses, weights and averages after resuming are exactly equal (0)."""
    one = fresh()
    for step in (1, 2):
        train(*one, step)
    state = gather_training_state(*one)
    state = copy.deepcopy(state)
    losses = [train(*one, step) for step in (3, 4)]
    model, optimizer, ema = fresh(seed=1)
    wrapped = torch.compile(model, backend="eager") if compiled else model
    restore_training_state(state, wrapped, optimizer, ema)
    again = [train(model, optimizer, ema, step) for step in (3, 4)]
    assert_close(again, losses, atol=0, rtol=0)
    assert_close(model.state_dict(), one[0].state_dict(), atol=0, rtol=0)
    assert_close(ema.averages, one[2].averages, atol=0, rtol=0)


def test_names_are_the_models() -> None:
    """The state of the model is its state dict, which other tools can read."""
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
    """The learning rate, which depends on the step, isn't restored from a file."""
    one, other = fresh(), fresh(seed=1)
    train(*one, 1)
    for group in other[1].param_groups:
        group["lr"] = 7.0
    restore_training_state(gather_training_state(*one), *other)
    assert all(group["lr"] == 7.0 for group in other[1].param_groups)


def with_unused_weight(seed: int = 0) -> tuple:
    """The same with a weight that no output depends on, such as an unused block of a backbone."""
    model, optimizer, _ = fresh(seed)
    model.unused = nn.Parameter(torch.full((2,), float(seed)))
    optimizer.add_param_group({"params": [model.unused]})
    return model, optimizer, ModelEma(model, 0.9)


def test_weights_without_gradient_go_on_too() -> None:
    """Weights that were never trained are restored, and so is the rest."""
    one, other = with_unused_weight(), with_unused_weight(seed=1)
    train(*one, 1)
    restore_training_state(copy.deepcopy(gather_training_state(*one)), *other)
    assert_close(train(*other, 2), train(*one, 2), atol=0, rtol=0)
    assert_close(other[0].state_dict(), one[0].state_dict(), atol=0, rtol=0)


def test_what_does_not_fit_is_refused() -> None:
    """Other shapes, other parameters and a missing average are refused."""
    one = fresh()
    train(*one, 1)
    state = gather_training_state(*one)
    with pytest.raises(RuntimeError, match="size mismatch"):
        restore_training_state(state, *fresh(num_queries=3))
    frozen = fresh()[0]
    frozen.freeze_backbone()
    optimizer = torch.optim.AdamW(frozen.parameter_groups(1e-3))
    with pytest.raises(ValueError, match=r"model\.backbone.* isn't trained now"):
        restore_training_state(state, frozen, optimizer)
    del state["ema"]
    with pytest.raises(ValueError, match="no averaged weights"):
        restore_training_state(state, *one)


def go_on_sharded(rank: int, folder: str) -> None:
    """Train sharded in each of two processes, and resume from the gathered state."""
    torch.set_num_threads(1)
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=2
    )
    trainings = []
    for seed in (0, 1):
        model = fresh(seed)[0]
        fully_shard(model)
        optimizer = torch.optim.AdamW(model.parameter_groups(1e-3), weight_decay=1e-4)
        trainings.append((model, optimizer, ModelEma(model, 0.9)))
    one, other = trainings
    train(*one, 1)
    gathered = [copy.deepcopy(gather_training_state(*one))]
    torch.distributed.broadcast_object_list(gathered)
    restore_training_state(gathered[0], *other)
    states = []
    for training in (one, other):
        train(*training, 2)
        states.append(copy.deepcopy(gather_training_state(*training)))
    whole = fresh(seed=2)[0]
    copy_whole_model(other[0], whole)
    if rank == 0:
        assert_close(dict(whole.state_dict()), states[1]["model"], atol=0, rtol=0)
    torch.save({"gathered": gathered[0], "states": states}, f"{folder}/{rank}.pt")
    torch.distributed.destroy_process_group()


@pytest.mark.slow
def test_sharded_training_goes_on_exactly(tmp_path: Path) -> None:
    """With FSDP the full state is gathered and resumed exactly, including tied heads.

    A training that isn't sharded can take it up as well.
    """
    run_processes(go_on_sharded, str(tmp_path))
    first, second = (torch.load(tmp_path / f"{rank}.pt") for rank in range(2))
    assert all(not tensors for tensors in second["states"][0].values())
    assert_close(first["states"][0], first["states"][1], atol=0, rtol=0)
    plain = fresh(seed=1)
    restore_training_state(first["gathered"], *plain)
    assert_close(gather_training_state(*plain), first["gathered"], atol=0, rtol=0)
