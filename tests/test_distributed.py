"""The GPU of each process; communication is tested where it is used."""

import pytest
import torch

from hf_detr.commands.evaluate import _joined_processes
from hf_detr.distributed import device_of_process


def start(monkeypatch: pytest.MonkeyPatch, rank: int, num_gpus: int) -> None:
    """Set what torchrun sets for a process on a machine with these GPUs."""
    monkeypatch.setenv("RANK", str(rank))
    monkeypatch.setenv("LOCAL_RANK", str(rank))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: num_gpus > 0)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: num_gpus)


@pytest.mark.parametrize(("rank", "num_gpus"), [(0, 2), (1, 2), (2, 2), (5, 2), (3, 1)])
def test_processes_may_share_a_gpu(
    monkeypatch: pytest.MonkeyPatch, rank: int, num_gpus: int
) -> None:
    """A third process on a machine with two GPUs gets one that exists, also to evaluate."""
    start(monkeypatch, rank, num_gpus)
    expected = f"cuda:{rank % num_gpus}"
    assert device_of_process() == expected
    chosen, joined = [], []
    monkeypatch.setattr(torch.cuda, "set_device", chosen.append)
    monkeypatch.setattr(torch.distributed, "init_process_group", joined.append)
    monkeypatch.setattr(torch.distributed, "get_rank", lambda: rank)
    monkeypatch.setattr(torch.distributed, "destroy_process_group", lambda: None)
    with _joined_processes() as given:
        assert given == (rank, expected) and chosen == [expected]
    assert joined == ["gloo"]  # nccl refuses two processes on one GPU


def test_default_device(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is chosen without a GPU, or for a process alone."""
    start(monkeypatch, 1, 0)
    assert device_of_process() is None
    start(monkeypatch, 1, 2)
    monkeypatch.delenv("RANK")
    assert device_of_process() is None
