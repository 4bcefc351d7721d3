"""The state of a training as named tensors, independent of how the model is wrapped.

Parameters and optimiser moments have the names of the unwrapped model, also if it is compiled, in
DistributedDataParallel or sharded. So a training can be resumed with another number of processes
or another wrapper.
"""

import torch
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_model_state_dict,
    get_optimizer_state_dict,
    set_model_state_dict,
    set_optimizer_state_dict,
)

from .model_ema import ModelEma

TrainingState = dict[str, dict[str, Tensor]]


def gather_training_state(
    model: nn.Module, optimizer: torch.optim.Optimizer, ema: ModelEma | None = None
) -> TrainingState:
    """Gather the full model, optimiser and average on the CPU; every process must call this.

    Returns:
        The state on the first process, which saves it; on the others the groups are empty. Tensors
        may share memory with the model: save or copy them before training continues.
        `model`: parameters and buffers; `optimizer`: the optimiser's tensors of each parameter, as
        `<name>:<kind>`; and `ema`, as `model`, if there is an average.
    """
    model, whole = _uncompiled(model), StateDictOptions(full_state_dict=True, cpu_offload=True)
    moments = get_optimizer_state_dict(model, optimizer, options=whole).get("state", {})
    state = {
        "model": get_model_state_dict(model, options=whole),
        "optimizer": {
            f"{n}:{kind}": v for n, kinds in moments.items() for kind, v in kinds.items()
        },
    }
    if ema is not None:
        with ema.applied():
            averages = get_model_state_dict(model, options=whole)
            state["ema"] = {name: tensor.clone() for name, tensor in averages.items()}
    return state


def restore_training_state(
    state: TrainingState,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    ema: ModelEma | None = None,
) -> None:
    """Load what `gather_training_state` returned; every process must call this with the state.

    The optimiser's settings, such as learning rates, stay as they are.

    Raises:
        RuntimeError: if names or shapes differ from the model's.
        ValueError: if an average is missing, or the optimiser's names differ from the model's.
    """
    model, whole = _uncompiled(model), StateDictOptions(full_state_dict=True)
    if ema is not None:
        if "ema" not in state:
            raise ValueError("The state has no averaged weights; resume without an average.")
        _load(model, state["ema"])
        ema.restart()
    _load(model, state["model"])
    trained = get_optimizer_state_dict(model, optimizer, options=whole)
    moments: dict[str, dict[str, Tensor]] = {}
    for key, value in state["optimizer"].items():
        name, _, kind = key.rpartition(":")
        moments.setdefault(name, {})[kind] = value
    if not moments.keys() <= trained["state"].keys():
        unknown = min(moments.keys() - trained["state"].keys())
        raise ValueError(
            f"The optimiser's state has {unknown!r}, which isn't trained now; train the same "
            "parameters as before."
        )
    # Parameters without a gradient until now, such as unused blocks of the backbone, have no
    # moments; they get the initial ones.
    for name, fresh in trained["state"].items():
        moments.setdefault(name, {kind: torch.zeros_like(value) for kind, value in fresh.items()})
    set_optimizer_state_dict(
        model,
        optimizer,
        optim_state_dict={"state": moments, "param_groups": trained["param_groups"]},
        options=whole,
    )


def copy_whole_model(model: nn.Module, other: nn.Module) -> None:
    """Copy weights of a possibly wrapped model to a plain one; every process must call this."""
    whole = get_model_state_dict(_uncompiled(model), options=StateDictOptions(full_state_dict=True))
    other.load_state_dict(whole)


def _load(model: nn.Module, weights: dict[str, Tensor]) -> None:
    """Load named tensors into a possibly wrapped model."""
    # torch can't distribute a tied tensor under its second name, and doesn't need to.
    all_names = {name for name, _ in model.named_parameters(remove_duplicate=False)}
    second = all_names - {name for name, _ in model.named_parameters()}
    second = {name.removeprefix("module.") for name in second}
    unmatched = get_model_state_dict(model).keys() ^ weights.keys()
    if unmatched:
        raise RuntimeError(f"Only one of the state and this model has {min(unmatched)!r}.")
    once = {name: tensor for name, tensor in weights.items() if name not in second}
    options = StateDictOptions(full_state_dict=True, strict=False)
    set_model_state_dict(model, once, options=options)


def _uncompiled(model: nn.Module) -> nn.Module:
    # torch doesn't remove the compiler's prefix from the names of tied parameters.
    return getattr(model, "_orig_mod", model)
