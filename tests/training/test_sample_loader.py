"""Tests the loader that serves all epochs of a training."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from hf_detr import read_coco
from hf_detr.training.plan import MicroBatch, plan_epoch
from hf_detr.training.sample_loader import load_steps

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
