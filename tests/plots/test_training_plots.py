"""Curves of a training's log."""

import io
import json
from pathlib import Path

import numpy as np
import pytest

from hf_detr import plots

HISTORY = [{"epoch": 1, "step": 100, "AP": 0.1, "AP50": 0.3}, {"step": 200, "AP": 0.2, "AP50": 0.4}]


def test_curves_hold_the_log(tmp_path: Path) -> None:
    """Loss of every step that has one, its running mean, and AP where it was evaluated."""
    rows = [f"{step},{'' if step == 7 else 200 - step},1e-4" for step in range(1, 202)]
    path = tmp_path / "losses.csv"
    path.write_text("\n".join(["step,loss,lr", *rows]))
    figure = plots.draw_training_curves(path, HISTORY)
    left, right = figure.axes
    every, mean = left.lines
    assert len(every.get_xdata()) == 200 and 7 not in every.get_xdata()
    np.testing.assert_allclose(mean.get_ydata()[0], (199 + 198) / 2)
    assert mean.get_xdata()[-1] == 201
    assert [list(line.get_ydata()) for line in right.lines] == [[0.1, 0.2], [0.3, 0.4]]
    assert [text.get_text() for text in left.get_legend().get_texts()] == [
        "loss, mean of 2 steps",
        "AP",
        "AP50",
    ]
    figure.savefig(io.BytesIO())
    assert len(plots.draw_training_curves(path).axes) == 1


def test_trainings_are_compared() -> None:
    """A curve per training, in colours of their own, from zero up to its best AP."""
    curves = {"DETR": [(1, 0.0), (2, 0.1)], "Deformable DETR": [(1, 0.2), (2, 0.3)]}
    figure = plots.draw_comparison(curves)
    [axis] = figure.axes
    drawn = {line.get_label(): list(zip(*line.get_data(), strict=True)) for line in axis.lines}
    assert drawn == curves
    assert len({line.get_color() for line in axis.lines}) == 2
    low, high = axis.get_ylim()
    assert low == 0 and 0.3 <= high < 0.4
    figure.savefig(io.BytesIO())


def test_what_is_no_log_is_refused(tmp_path: Path) -> None:
    """Other columns, and no losses yet, are said."""
    path = tmp_path / "losses.csv"
    path.write_text("epoch,value\n1,2\n")
    with pytest.raises(ValueError, match="needs 'step' and 'loss'"):
        plots.draw_training_curves(path)
    path.write_text("step,loss,lr\n1,,0.1\n")
    with pytest.raises(ValueError, match="no losses yet"):
        plots.draw_training_curves(path)


def test_history_is_the_newest_checkpoints(tmp_path: Path) -> None:
    """Later checkpoints hold all evaluations of earlier ones."""
    assert plots.read_history(tmp_path) == []
    for step, history in ((100, HISTORY[:1]), (200, HISTORY)):
        folder = tmp_path / "checkpoints" / f"checkpoint-{step:08d}"
        folder.mkdir(parents=True)
        (folder / "state.json").write_text(json.dumps({"history": history}))
    assert plots.read_history(tmp_path) == HISTORY
