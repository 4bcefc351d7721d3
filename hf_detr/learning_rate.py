"""The learning rate as a function of the step, so that a resumed training needs only its step."""

import math
from typing import Literal

Schedule = Literal["step", "cosine"]


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
