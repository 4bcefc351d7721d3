"""Which process learns from which images, in which order: planned before an epoch begins.

The plan follows from a seed and the epoch alone. So a training can be taken up in the middle of
an epoch, and a step learns from the same images however many processes share them.
"""

import math
from dataclasses import dataclass
from typing import Literal

import numpy as np

Schedule = Literal["step", "cosine"]


@dataclass(frozen=True)
class MicroBatch:
    """Images that go through the model at once.

    Attributes:
        indices: which images of the data set; never empty.
        counts: False if they only keep a process busy that has no image left in a step: its loss
            must be multiplied by 0 and its labels left out of the batch's.
    """

    indices: list[int]
    counts: bool = True


def plan_epoch(
    num_images: int,
    batch_size: int,
    *,
    epoch: int = 0,
    seed: int = 0,
    accumulation_steps: int = 1,
    num_processes: int = 1,
    process_index: int = 0,
) -> list[list[MicroBatch]]:
    """One process's share of an epoch: a list of optimiser steps, each a list of micro-batches.

    Every image is in exactly one step; the last step has what is left. All processes get equally
    many steps and micro-batches, so that they can wait for each other.

    Args:
        num_images: size of the data set.
        batch_size: images of a micro-batch, at most.
        epoch, seed: what the order follows from.
        accumulation_steps: micro-batches per process and optimiser step.
        num_processes, process_index: how many share a step, and which one this is.

    Raises:
        ValueError: if a number is too small, or there is no such process.
    """
    if min(num_images, batch_size, accumulation_steps, num_processes) < 1:
        raise ValueError(
            f"num_images {num_images}, batch_size {batch_size}, accumulation_steps "
            f"{accumulation_steps} and num_processes {num_processes} must all be at least 1."
        )
    if not 0 <= process_index < num_processes:
        raise ValueError(f"process_index is {process_index} of {num_processes} processes.")
    order = np.random.default_rng([seed, epoch]).permutation(num_images)
    whole = batch_size * accumulation_steps * num_processes
    steps = [order[start : start + whole] for start in range(0, num_images, whole)]
    return [_share(images, batch_size, num_processes, process_index) for images in steps]


def learning_rate_factor(
    step: int,
    total_steps: int,
    schedule: Schedule = "step",
    warmup_steps: int = 0,
    drop_at: float = 0.8,
) -> float:
    """What every group's learning rate is multiplied by in optimiser step `step`, from 0.

    It rises linearly during the warm-up. Then "step" is the papers' schedule: 1, and 0.1 after
    the fraction `drop_at` of the training (400 of 500 epochs, 40 of 50). "cosine" goes down to 0
    along half a wave.

    Raises:
        ValueError: for a schedule of another name.
    """
    if step < warmup_steps:
        return (step + 1) / (warmup_steps + 1)
    if schedule == "step":
        return 1.0 if step < round(drop_at * total_steps) else 0.1
    if schedule == "cosine":
        progress = (step - warmup_steps) / max(total_steps - warmup_steps, 1)
        return (1 + math.cos(math.pi * min(progress, 1))) / 2
    raise ValueError(f"schedule is {schedule!r}; give 'step' or 'cosine'.")


def _share(
    images: np.ndarray, batch_size: int, num_processes: int, process_index: int
) -> list[MicroBatch]:
    """What one process does in a step, in as many micro-batches as the process with most needs."""
    largest = -(-len(images) // num_processes)
    own = np.array_split(images[process_index::num_processes], -(-largest // batch_size))
    return [
        MicroBatch(part.tolist()) if len(part) else MicroBatch(images[:1].tolist(), counts=False)
        for part in own
    ]
