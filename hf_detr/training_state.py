"""The tensors of a training as named tensors, whether or not processes share them out.

Parameters and optimiser moments go by the model's own names, however it is wrapped: compiled, in
DistributedDataParallel, or sharded. So a training may be taken up with another number of
processes or wrapped otherwise.
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
    """Model, optimiser and average, whole and on the CPU; every process must call this.

    Returns:
        `model`: parameters and buffers; `optimizer`: what it keeps of each parameter, as
        `state.<name>.<what>`; and `ema`, as `model`, if there is an average.
    """
    whole = StateDictOptions(full_state_dict=True, cpu_offload=True)
    moments = get_optimizer_state_dict(model, optimizer, options=_flat(whole))
    state = {
        "model": get_model_state_dict(model, options=whole),
        "optimizer": {n: v for n, v in moments.items() if isinstance(v, Tensor)},
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
    """Put back what `gather_training_state` gave; every process needs the state and calls this.

    The optimiser's settings, such as learning rates, stay as they are.

    Raises:
        RuntimeError: if names or shapes aren't the model's.
        ValueError: if an average is missing, or the optimiser's names aren't the model's.
    """
    whole = StateDictOptions(full_state_dict=True)
    if ema is not None:
        if "ema" not in state:
            raise ValueError("The state has no averaged weights; go on without an average.")
        set_model_state_dict(model, state["ema"], options=whole)
        ema.restart()
    set_model_state_dict(model, state["model"], options=whole)
    settings = get_optimizer_state_dict(model, optimizer, options=_flat(whole))
    expected = {name for name, value in settings.items() if isinstance(value, Tensor)}
    if expected != set(state["optimizer"]):
        different = sorted(expected ^ set(state["optimizer"]))
        raise ValueError(
            f"The optimiser's state doesn't fit this model and optimiser: {different[0]!r} is in "
            "only one of them. Train the same parameters with the same optimiser."
        )
    set_optimizer_state_dict(
        model, optimizer, optim_state_dict={**settings, **state["optimizer"]}, options=_flat(whole)
    )


def _flat(options: StateDictOptions) -> StateDictOptions:
    return StateDictOptions(
        full_state_dict=options.full_state_dict,
        cpu_offload=options.cpu_offload,
        flatten_optimizer_state_dict=True,
    )
