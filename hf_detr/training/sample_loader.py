"""One loader for all epochs of a training, so that its workers start once."""

import itertools
from collections.abc import Callable, Iterator
from typing import Any

from torch.utils.data import DataLoader, Dataset

from ..data.dataset import DetectionDataset, Example
from ..data.streamed import StreamedDataset
from ..distributed import num_processes, process_index
from .plan import MicroBatch

Steps = Callable[[], Iterator[tuple[int, list[MicroBatch]]]]


class EpochSamples(Dataset):
    """The examples of a data set by (epoch, index); of a stream by (epoch, (number, row)).

    Workers load ahead, also images of the next epoch, so the epoch is a part of the request.
    """

    def __init__(self, data: DetectionDataset | StreamedDataset) -> None:
        self.data = data

    def __len__(self) -> int:
        return len(self.data)

    def __getitem__(self, key: tuple[int, Any]) -> Example:
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


class StepRows:
    """The (epoch, (number, row)) of the images of each micro-batch, of a stream.

    This process reads the rows, and workers decode them. So the rows of a step depend neither on
    the number of workers nor on the size of micro-batches, and can be skipped without decoding.
    """

    def __init__(self, data: StreamedDataset, steps: Steps, done: tuple[int, int]) -> None:
        self.data, self.steps, self.done = data, steps, done

    def __iter__(self) -> Iterator[list[tuple[int, tuple[int, Any]]]]:
        num_steps, batch_size = self.done
        process = process_index(), num_processes()
        num_done = num_steps * len(range(process[0], batch_size, process[1]))
        for epoch, steps in itertools.groupby(self.steps(), key=lambda step: step[0]):
            rows = self.data.endless_rows(*process, epoch)
            rows = itertools.islice(rows, num_done, None)
            num_done = 0
            for part in (part for _, parts in steps for part in parts):
                # A part that doesn't count takes no row, as the plan takes no image.
                found = (next(rows) if part.counts else self.data.first_row for _ in part.indices)
                yield [(epoch, key) for key in zip(part.indices, found, strict=True)]


def load_steps(
    data: DetectionDataset | StreamedDataset,
    steps: Steps,
    collator: Callable,
    workers: int,
    pin_memory: bool,
    done: tuple[int, int] = (0, 1),
) -> Iterator[tuple[int, list[MicroBatch], list[Any]]]:
    """Yield the epoch, the plan and the batches of each step.

    Args:
        data: the data set for training.
        steps: returns an iterator over the epoch and the micro-batches of each step.
        collator: collates examples.
        workers: number of processes that load images.
        pin_memory: whether batches are copied to page-locked memory.
        done: number of steps of the epoch that are done already, and of images in each of them.
    """
    is_stream = isinstance(data, StreamedDataset)
    requests = StepRows(data, steps, done) if is_stream else StepImages(steps)
    loader = DataLoader(
        EpochSamples(data.for_workers() if is_stream else data),
        batch_sampler=requests,
        collate_fn=collator,
        num_workers=workers,
        pin_memory=pin_memory,
    )
    batches = iter(loader)
    for epoch, parts in steps():
        yield epoch, parts, [next(batches) for _ in parts]
