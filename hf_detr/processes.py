"""What several processes tell each other."""

from typing import Any

import torch


def num_processes() -> int:
    """Number of processes that work together."""
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        return torch.distributed.get_world_size()
    return 1


def gather_from_processes(value: Any) -> list[Any]:
    """Every process's value, in their order; all of them must call this. Any picklable object."""
    if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
        return [value]
    values: list[Any] = [None] * torch.distributed.get_world_size()
    torch.distributed.all_gather_object(values, value)
    return values


def any_process(condition: torch.Tensor) -> bool:
    """Whether a condition, a scalar tensor on this process's device, holds on any process."""
    flag = condition.float()
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        torch.distributed.all_reduce(flag, op=torch.distributed.ReduceOp.MAX)
    return bool(flag.item())
