"""One loader for all epochs of a training, so that its workers start once."""

from collections.abc import Callable, Iterator
from typing import Any

from torch.utils.data import DataLoader, Dataset

from ..data.dataset import DetectionDataset, Example
from .plan import MicroBatch

Steps = Callable[[], Iterator[tuple[int, list[MicroBatch]]]]


class EpochSamples(Dataset):
    """The examples of a data set by (epoch, index).

    Workers load ahead, also images of the next epoch, so the epoch is a part of the request.
    """

    def __init__(self, data: DetectionDataset) -> None:
        self.data = data

    def __len__(self) -> int:
        return len(self.data)

    def __getitem__(self, key: tuple[int, int]) -> Example:
        epoch, index = key
        return self.data.example(index, epoch)


class StepImages:
    """The (epoch, index) of the images of each micro-batch, as a DataLoader's `batch_sampler`."""

    def __init__(self, steps: Steps) -> None:
        self.steps = steps

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        for epoch, parts in self.steps():
            for part in parts:
                yield [(epoch, index) for index in part.indices]


def load_steps(
    data: DetectionDataset, steps: Steps, collator: Callable, workers: int, pin_memory: bool
) -> Iterator[tuple[int, list[MicroBatch], list[Any]]]:
    """Yield the epoch, the plan and the batches of each step.

    Args:
        data: the data set for training.
        steps: returns an iterator over the epoch and the micro-batches of each step.
        collator: collates examples.
        workers: number of processes that load images.
        pin_memory: whether batches are copied to page-locked memory.
    """
    loader = DataLoader(
        EpochSamples(data),
        batch_sampler=StepImages(steps),
        collate_fn=collator,
        num_workers=workers,
        pin_memory=pin_memory,
    )
    batches = iter(loader)
    for epoch, parts in steps():
        yield epoch, parts, [next(batches) for _ in parts]
