"""Processes that work together: their devices and communication."""

import os
from collections.abc import Callable
from typing import Any, TypeVar

import torch

Result = TypeVar("Result")


def device_of_process() -> str | None:
    """Return the GPU of a process of torchrun, the one that Accelerate chooses in training.

    If a machine has fewer GPUs than processes, some share one. None is the default device, of a
    process alone or without a GPU.
    """
    if "RANK" not in os.environ or not torch.cuda.is_available():
        return None
    return f"cuda:{int(os.environ.get('LOCAL_RANK', 0)) % torch.cuda.device_count()}"


def num_processes() -> int:
    """Return the number of processes."""
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        return torch.distributed.get_world_size()
    return 1


def process_index() -> int:
    """Return the index of this process, from 0."""
    return torch.distributed.get_rank() if num_processes() > 1 else 0


def gather_from_processes(value: Any) -> list[Any]:
    """Gather a picklable object from all processes, which must all call this."""
    if num_processes() == 1:
        return [value]
    values: list[Any] = [None] * num_processes()
    torch.distributed.all_gather_object(values, value)
    return values


def compute_on_main_process(compute: Callable[[list[Any]], Result], value: Any) -> Result:
    """Gather a picklable object from all processes in the first one, which computes the result.

    All processes must call this. All return the result, or raise the error of the first one.
    """
    if num_processes() == 1:
        return compute([value])
    is_main = process_index() == 0
    values: list[Any] | None = [None] * num_processes() if is_main else None
    torch.distributed.gather_object(value, values)
    outcome: list[Any] = [None, None]
    if is_main:
        try:
            outcome[0] = compute(values)
        except Exception as error:  # otherwise the other processes would wait for the result
            outcome[1] = error
    torch.distributed.broadcast_object_list(outcome)
    if outcome[1] is not None:
        raise outcome[1]
    return outcome[0]


def any_process(condition: torch.Tensor) -> bool:
    """Return whether a condition, a scalar tensor, is true in any process; all must call this."""
    flag = condition.float()
    if num_processes() > 1:
        torch.distributed.all_reduce(flag, op=torch.distributed.ReduceOp.MAX)
    return bool(flag.item())
