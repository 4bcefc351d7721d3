"""Plots of trainings: the loss of every step, the AP of every evaluation."""

import csv
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from .figures import BLUE, FONT_SIZE, ORANGE, Figure, color_of, make_chart, name_values

POINTS = 100  # the running mean covers this fraction of all steps


def draw_training_curves(
    losses: str | os.PathLike[str], history: Sequence[Mapping[str, Any]] = ()
) -> Figure:
    """Loss of every step with its running mean, and AP and AP50 of every evaluation.

    Args:
        losses: a file with the columns `step` and `loss`, as `hf-detr train` writes it; steps
            without a loss are skipped.
        history: metrics of every evaluation, with `step`, `AP` and `AP50`.

    Raises:
        ValueError: if the file has other columns or no losses.
    """
    steps, values = read_losses(losses)
    figure, left = make_chart("step", "loss")
    left.plot(steps, values, color=BLUE, alpha=0.25, linewidth=0.5)
    width = max(len(values) // POINTS, 1)
    smooth = torch.tensor(values).unfold(0, width, 1).mean(-1)
    label = f"loss, mean of {width} steps" if width > 1 else "loss"
    lines = left.plot(steps[width - 1 :], smooth, color=BLUE, label=label)
    left.set_ylim(0)
    if history:
        right = left.twinx()
        for name, style in (("AP", "o-"), ("AP50", "s--")):
            points = [entry[name] for entry in history]
            at = [entry["step"] for entry in history]
            lines += right.plot(at, points, style, color=ORANGE, markersize=3, label=name)
        name_values(right, "AP, AP50")
        right.set_ylim(0, 1)
        right.spines["top"].set_visible(False)
    left.legend(handles=lines, loc="upper center", ncols=len(lines), fontsize=FONT_SIZE)
    return figure


def draw_comparison(curves: Mapping[str, Sequence[tuple[int, float]]]) -> Figure:
    """AP after every epoch of several trainings.

    Args:
        curves: for each training's name its epochs, with the AP after each.
    """
    figure, axis = make_chart("epoch", "AP")
    for index, (name, points) in enumerate(curves.items()):
        axis.plot(*zip(*points, strict=True), "o-", color=color_of(index), markersize=3, label=name)
    axis.set_ylim(0)
    axis.legend(fontsize=FONT_SIZE)
    return figure


def read_losses(path: str | os.PathLike[str]) -> tuple[list[int], list[float]]:
    """Steps and losses of a training."""
    with open(path, newline="", encoding="utf-8") as lines:
        reader = csv.DictReader(lines)
        if not {"step", "loss"} <= set(reader.fieldnames or ()):
            raise ValueError(
                f"{path} has the columns {reader.fieldnames}; it needs 'step' and 'loss', as "
                "losses.csv of `hf-detr train` has."
            )
        rows = [(int(row["step"]), float(row["loss"])) for row in reader if row["loss"]]
    if not rows:
        raise ValueError(f"{path} has no losses yet.")
    steps, values = zip(*rows, strict=True)
    return list(steps), list(values)


def read_history(folder: str | os.PathLike[str]) -> list[dict[str, Any]]:
    """Metrics of all evaluations of a training, from its newest checkpoint; may be empty.

    Args:
        folder: the output folder of `hf-detr train`.
    """
    states = sorted(Path(folder).glob("checkpoints/checkpoint-*/state.json"))
    return json.loads(states[-1].read_text(encoding="utf-8"))["history"] if states else []
