"""Communication between the processes of a distributed training."""

from typing import Any

import torch


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


def any_process(condition: torch.Tensor) -> bool:
    """Return whether a condition, a scalar tensor, is true in any process; all must call this."""
    flag = condition.float()
    if num_processes() > 1:
        torch.distributed.all_reduce(flag, op=torch.distributed.ReduceOp.MAX)
    return bool(flag.item())
