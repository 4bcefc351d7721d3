"""Curves of a training: the loss of every step and the AP of every evaluation."""

import csv
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from .figures import BLUE, FONT_SIZE, ORANGE, Figure
from .training_checkpoint import STATE

POINTS = 100  # a running mean over this part of all steps shows where the loss goes


def draw_training_curves(
    losses: str | os.PathLike[str], history: Sequence[Mapping[str, Any]] = ()
) -> Figure:
    """Loss of every step with its running mean, and AP and AP50 of every evaluation.

    Args:
        losses: a file with the columns `step` and `loss`, as `examples/train_detection.py` writes
            it; steps without a loss are left out.
        history: metrics of every evaluation, with `step`, `AP` and `AP50`.

    Raises:
        ValueError: if the file has other columns or no losses.
    """
    steps, values = read_losses(losses)
    figure = Figure(figsize=(7, 4), layout="constrained")
    left = figure.subplots()
    left.plot(steps, values, color=BLUE, alpha=0.25, linewidth=0.5)
    width = max(len(values) // POINTS, 1)
    smooth = torch.tensor(values).unfold(0, width, 1).mean(-1)
    label = f"loss, mean of {width} steps" if width > 1 else "loss"
    lines = left.plot(steps[width - 1 :], smooth, color=BLUE, label=label)
    left.set(xlabel="step", ylabel="loss", ylim=(0, None))
    if history:
        right = left.twinx()
        for name, style in (("AP", "o-"), ("AP50", "s--")):
            points = [entry[name] for entry in history]
            at = [entry["step"] for entry in history]
            lines += right.plot(at, points, style, color=ORANGE, markersize=3, label=name)
        right.set(ylabel="AP, AP50", ylim=(0, 1))
    left.legend(handles=lines, loc="upper center", ncols=len(lines), fontsize=FONT_SIZE)
    return figure


def read_losses(path: str | os.PathLike[str]) -> tuple[list[int], list[float]]:
    """Steps and losses of a training.

    Raises:
        ValueError: if the file has other columns or no losses.
    """
    with open(path, newline="") as lines:
        reader = csv.DictReader(lines)
        if not {"step", "loss"} <= set(reader.fieldnames or ()):
            raise ValueError(
                f"{path} has the columns {reader.fieldnames}; it needs 'step' and 'loss', as "
                "losses.csv of examples/train_detection.py has."
            )
        rows = [(int(row["step"]), float(row["loss"])) for row in reader if row["loss"]]
    if not rows:
        raise ValueError(f"{path} has no losses yet.")
    steps, values = zip(*rows, strict=True)
    return list(steps), list(values)


def read_history(folder: str | os.PathLike[str]) -> list[dict[str, Any]]:
    """Metrics of a training's evaluations so far, from its newest checkpoint; none: an empty list.

    Args:
        folder: what `examples/train_detection.py` calls its output.
    """
    states = sorted(Path(folder).glob(f"checkpoints/checkpoint-*/{STATE}"))
    return json.loads(states[-1].read_text())["history"] if states else []
