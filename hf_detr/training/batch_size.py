"""The largest number of images per forward pass that fits into memory."""

from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import find_executable_batch_size
from torch import Tensor
from transformers import PreTrainedModel

from ..data.dataset import DetectionDataset
from ..distributed import gather_from_processes
from ..losses.loss_terms import LossNormalizers

DEFAULT = 2  # on a CPU, whose memory can't be tried out: the system would stop the process


def find_micro_batch_size(
    accelerator: Accelerator,
    model: PreTrainedModel,
    processor: Any,
    data: DetectionDataset,
    batch_size: int,
) -> int:
    """Try forward and backward passes of decreasing numbers of images of the largest size.

    Weights stay as they are; the result is the same in all processes.

    Args:
        accelerator: of the training.
        model: before it is prepared by the accelerator.
        processor: its image processor.
        data: for training; the passes have as many objects as the fullest image.
        batch_size: number of images of a step, over all processes.

    Raises:
        RuntimeError: if there isn't enough memory for one image.
    """
    share = -(-batch_size // accelerator.num_processes)
    if accelerator.device.type == "cpu":
        return min(DEFAULT, share)
    model.to(accelerator.device)
    return min(gather_from_processes(search(accelerator, model, processor, data, share)))


def search(
    accelerator: Accelerator,
    model: PreTrainedModel,
    processor: Any,
    data: DetectionDataset,
    most: int,
) -> int:
    """Decrease the number of images until this process has enough memory for it."""

    @find_executable_batch_size(starting_batch_size=most)
    def attempt(number: int) -> int:
        try_pass(accelerator, model, largest_batch(processor, data, number))
        return number

    return attempt()


def try_pass(accelerator: Accelerator, model: PreTrainedModel, batch: dict[str, Any]) -> None:
    """Do a forward and a backward pass with as much memory in use as in a training."""
    was_training = model.training
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    moments = [torch.empty_like(parameter) for parameter in trained for _ in range(2)]
    device = accelerator.device
    batch = {name: batch[name].to(device) for name in ("pixel_values", "pixel_mask")} | {
        "labels": batch["labels"]
    }
    # Any numbers: to count them, processes would have to communicate, and some run out of memory.
    ones = LossNormalizers(*torch.ones(3, device=device))
    try:
        model.train()
        with accelerator.autocast():
            model(**batch, loss_normalizers=ones).loss.backward()
    finally:
        model.zero_grad()
        model.train(was_training)
        del moments


def largest_batch(processor: Any, data: DetectionDataset, number: int) -> dict[str, Any]:
    """A batch of images of the largest size and number of objects that training may have."""
    size = dict(processor.size)
    height = size.get("height") or size.get("longest_edge") or size["shortest_edge"]
    width = size.get("width") or height
    most = int((data.table.offsets[1:] - data.table.offsets[:-1]).max(initial=1))
    label: dict[str, Tensor] = {
        "class_labels": torch.zeros(most, dtype=torch.int64),
        "boxes": torch.tensor([0.5, 0.5, 0.1, 0.1]).repeat(most, 1),
    }
    if data.masks:
        label["masks"] = torch.zeros(most, height, width, dtype=torch.bool)
    return {
        "pixel_values": torch.zeros(number, 3, height, width),
        "pixel_mask": torch.ones(number, height, width, dtype=torch.int64),
        "labels": [label] * number,
    }
