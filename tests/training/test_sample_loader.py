"""Tests the loader that serves all epochs of a training."""

import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from hf_detr import StreamedDataset, read_coco
from hf_detr.training import sample_loader
from hf_detr.training.plan import MicroBatch, plan_epoch
from hf_detr.training.sample_loader import load_steps

from ..data.test_streamed import numbers_of, sharded
from ..some_data import entry, write_coco


def collate(samples: list[Any]) -> list[tuple[int, float]]:
    """The image id and the random number of each sample."""
    return [(int(target["image_id"]), number) for number, target in samples]


def draw(image: Any, target: dict) -> tuple[float, dict]:
    """A transform whose result is a random number."""
    return float(torch.rand(())), target


@pytest.mark.parametrize("workers", [0, 2])
def test_epochs_of_one_loader(tmp_path: Path, workers: int) -> None:
    """Workers that load ahead draw the numbers of each image's own epoch, whatever is set."""
    data = read_coco(*write_coco(tmp_path, [entry(1)], num_images=5), seed=3)
    data.set_transform(draw)

    def steps() -> Iterator[tuple[int, list[MicroBatch]]]:
        for epoch in (4, 5, 6):
            for parts in plan_epoch(5, 4, 2, epoch=epoch):
                yield epoch, parts

    loaded = list(load_steps(data, steps, collate, workers, pin_memory=False))
    assert [epoch for epoch, _, _ in loaded] == [4, 4, 5, 5, 6, 6]
    for epoch, parts, batches in loaded:
        data.set_epoch(epoch)
        expected = [collate([data[i] for i in part.indices]) for part in parts]
        assert batches == expected
    assert (
        len({number for _, _, batches in loaded for batch in batches for _, number in batch}) == 15
    )


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize(("process", "num_processes"), [(0, 1), (0, 2), (1, 2)])
def test_steps_of_a_stream(
    workers: int, process: int, num_processes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each epoch has the process's rows in their order, also from the middle of an epoch on.

    Neither workers nor micro-batches change which rows a step has.
    """
    monkeypatch.setattr(sample_loader, "process_index", lambda: process)
    monkeypatch.setattr(sample_loader, "num_processes", lambda: num_processes)
    stream = StreamedDataset(sharded([5, 4]), 9, "coco_xywh", seed=3)

    def steps(start: int, size: int) -> Iterator[tuple[int, list[MicroBatch]]]:
        shared = {"num_processes": num_processes, "process_index": process}
        plans = [(e, parts) for e in (0, 1) for parts in plan_epoch(9, 4, size, epoch=e, **shared)]
        yield from plans[start:]

    def load(start: int, size: int) -> list[list[int]]:
        """The colors of the images of each step."""
        given = stream, lambda: steps(start, size), colors, workers, False, (start % 3, 4)
        return [
            [
                color
                for part, batch in zip(parts, batches, strict=True)
                for color in batch * part.counts
            ]
            for _, parts, batches in load_steps(*given)
        ]

    whole = load(0, 2)
    for epoch in (0, 1):
        rows = stream.endless_rows(process, num_processes, epoch)
        found = [color for step in whole[3 * epoch : 3 * epoch + 3] for color in step]
        assert found == numbers_of(itertools.islice(rows, len(found)))
        assert len(found) == len(range(process, 9, num_processes))
    assert load(2, 1) == whole[2:] and load(4, 3) == whole[4:]


def colors(samples: list[Any]) -> list[int]:
    """The color of each image."""
    return [int(image[0, 0, 0]) for image, _ in samples]
