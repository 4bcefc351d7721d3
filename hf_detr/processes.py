"""What several processes tell each other."""

from typing import Any

import torch


def num_processes() -> int:
    """Number of processes that work together."""
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        return torch.distributed.get_world_size()
    return 1


def process_index() -> int:
    """Which of them this is, from 0."""
    return torch.distributed.get_rank() if num_processes() > 1 else 0


def gather_from_processes(value: Any) -> list[Any]:
    """Every process's value, in their order; all of them must call this. Any picklable object."""
    if num_processes() == 1:
        return [value]
    values: list[Any] = [None] * num_processes()
    torch.distributed.all_gather_object(values, value)
    return values


def any_process(condition: torch.Tensor) -> bool:
    """Whether a condition, a scalar tensor on this process's device, holds on any process."""
    flag = condition.float()
    if num_processes() > 1:
        torch.distributed.all_reduce(flag, op=torch.distributed.ReduceOp.MAX)
    return bool(flag.item())
