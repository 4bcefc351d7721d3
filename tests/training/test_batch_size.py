"""Tests the search for the largest number of images per forward pass."""

from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from torch.testing import assert_close

from hf_detr import DetrImageProcessor, read_coco
from hf_detr.training.batch_size import find_micro_batch_size, largest_batch, search

from ..some_data import entry, write_coco
from ..tiny import tiny_detector


@pytest.fixture
def data(tmp_path: Path) -> Any:
    """Two images, one with three objects."""
    return read_coco(*write_coco(tmp_path, [entry(1), entry(2, bbox=[1, 2, 3, 4]), entry(3)]))


def test_the_largest_batch(data: Any) -> None:
    """A batch is as large as a portrait and a landscape together, with the most objects."""
    processor = DetrImageProcessor(size={"shortest_edge": 32, "longest_edge": 64})
    batch = largest_batch(processor, data, 3)
    assert batch["pixel_values"].shape == (3, 3, 64, 64)
    assert [len(label["boxes"]) for label in batch["labels"]] == [3, 3, 3]


def test_numbers_decrease_until_they_fit(data: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """A lack of memory, also in the backward pass, leads to fewer images; the model stays."""
    model = tiny_detector("detr", auxiliary_loss=True)
    before = {name: weight.clone() for name, weight in model.state_dict().items()}
    processor = DetrImageProcessor(size={"shortest_edge": 32, "longest_edge": 64})
    tried = []
    forward = model.forward

    def limited(pixel_values: torch.Tensor, *arguments: Any, **named: Any) -> Any:
        assert model.training
        tried.append(len(pixel_values))
        output = forward(pixel_values, *arguments, **named)
        if len(pixel_values) > 2:
            output.loss.register_hook(lack_memory)
        return output

    def lack_memory(_: torch.Tensor) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory.")

    monkeypatch.setattr(model, "forward", limited)
    assert search(Accelerator(cpu=True), model, processor, data, most=9) == 2
    assert tried[0] == 9 and tried == sorted(tried, reverse=True) and not model.training
    assert all(parameter.grad is None for parameter in model.parameters())
    assert_close(model.state_dict(), before, atol=0, rtol=0)


def test_cpus_arent_tried(data: Any) -> None:
    """On a CPU, which ends a process that needs too much, the number is the default."""
    given = Accelerator(cpu=True), tiny_detector(), DetrImageProcessor(), data
    assert [find_micro_batch_size(*given, number) for number in (1, 16)] == [1, 2]
