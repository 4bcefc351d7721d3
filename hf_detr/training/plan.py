"""The plan of a training: images of each step, process and epoch, and the learning rate.

The order of images depends on seed and epoch only. So a training can be resumed in the middle of an
epoch, and the images of a step don't depend on the number of processes. The learning rate depends
on the step only.
"""

import math
from dataclasses import dataclass
from typing import Literal

import numpy as np

Schedule = Literal["step", "cosine"]


@dataclass(frozen=True)
class MicroBatch:
    """Images of one forward pass.

    Attributes:
        indices: indices in the data set; never empty.
        counts: False if the process has no image left in the step. It then repeats an image, so
            that it takes part in communication, and must multiply the loss by 0 and not count the
            labels.
    """

    indices: list[int]
    counts: bool = True


def plan_epoch(
    num_images: int,
    batch_size: int,
    micro_batch_size: int,
    *,
    epoch: int = 0,
    seed: int = 0,
    num_processes: int = 1,
    process_index: int = 0,
) -> list[list[MicroBatch]]:
    """Plan the micro-batches of one process for an epoch.

    Every image is in exactly one optimizer step; the last step may be smaller. All processes have
    the same number of steps and micro-batches, also if the images of a step don't divide evenly.

    Args:
        num_images: size of the data set.
        batch_size: number of images in an optimizer step, over all processes.
        micro_batch_size: maximum number of images in a micro-batch.
        epoch, seed: determine the order of images.
        num_processes, process_index: number of processes, and index of this process.

    Returns:
        A list of optimizer steps, each a list of micro-batches.

    Raises:
        ValueError: if a number is less than 1, or `process_index` is out of range.
    """
    if min(num_images, batch_size, micro_batch_size, num_processes) < 1:
        raise ValueError(
            f"num_images is {num_images}, batch_size {batch_size}, micro_batch_size "
            f"{micro_batch_size} and num_processes {num_processes}; expected at least 1 for each."
        )
    if not 0 <= process_index < num_processes:
        raise ValueError(f"process_index is {process_index}; expected 0 to {num_processes - 1}.")
    order = np.random.default_rng([seed, epoch]).permutation(num_images)
    steps = [order[start : start + batch_size] for start in range(0, num_images, batch_size)]
    return [_share(images, micro_batch_size, num_processes, process_index) for images in steps]


def learning_rate_factor(
    step: int,
    total_steps: int,
    schedule: Schedule = "step",
    warmup_steps: int = 0,
    drop_at: float = 0.8,
) -> float:
    """Return the factor of the learning rates in an optimizer step.

    Args:
        step: index of the step, from 0.
        total_steps: number of steps of the training.
        schedule: "step", as in the papers, is 1 and then 0.1 from the fraction `drop_at` of the
            training (400 of 500 epochs, 40 of 50); "cosine" decreases from 1 to 0.
        warmup_steps: number of steps at the beginning in which the factor increases linearly.
        drop_at: see "step".

    Raises:
        ValueError: if `schedule` is another name.
    """
    if step < warmup_steps:
        return (step + 1) / (warmup_steps + 1)
    if schedule == "step":
        return 1.0 if step < round(drop_at * total_steps) else 0.1
    if schedule == "cosine":
        progress = (step - warmup_steps) / max(total_steps - warmup_steps, 1)
        return (1 + math.cos(math.pi * min(progress, 1))) / 2
    raise ValueError(f"schedule is {schedule!r}; expected 'step' or 'cosine'.")


def _share(
    images: np.ndarray, most: int, num_processes: int, process_index: int
) -> list[MicroBatch]:
    """Micro-batches of one process in a step, as many as the process with most images needs."""
    largest = -(-len(images) // num_processes)
    own = np.array_split(images[process_index::num_processes], -(-largest // most))
    return [
        MicroBatch(part.tolist()) if len(part) else MicroBatch(images[:1].tolist(), counts=False)
        for part in own
    ]
