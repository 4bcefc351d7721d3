"""Tests what a training shows and writes down."""

import re
from pathlib import Path

import pytest
from accelerate import Accelerator

from hf_detr.training.log import LossFile, TrainingLog


@pytest.mark.parametrize("torn", ["4,0.25", "4", "4,0.5,1e-", "\0\0\0", ""])
def test_torn_losses(tmp_path: Path, torn: str, capsys: pytest.CaptureFixture) -> None:
    """A last line that a power cut left incomplete is dropped, and missing steps are counted."""
    losses = LossFile(tmp_path / "losses.csv")
    losses.begin(0)
    for step in (1, 2, 3):
        losses.add(step, None if step == 2 else 0.5, 1e-4)
    whole = losses.path.read_text()
    losses.path.write_text(whole + torn)
    losses.begin(3)
    assert losses.path.read_text() == whole and capsys.readouterr().err == ""
    losses.path.write_text(whole.replace("2,", "\0,") + torn)
    losses.begin(3)
    assert losses.path.read_text() == whole.replace("2,,0.0001\n", "")
    assert "losses.csv lacks 1 of 3 steps" in capsys.readouterr().err


def test_table(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    """One row per evaluation under one header; a metric without objects isn't a number."""
    log = TrainingLog(Accelerator(cpu=True), tmp_path / "losses.csv")
    log.begin(0, 4)
    for step in range(1, 5):
        log.add_step(step, None if step == 2 else float(step), 1e-4)
        if step % 2 == 0:
            metrics = {"AP": step / 10, "AP_small": -1.0, "per_class": {}}
            log.add_evaluation({"epoch": step // 2, "step": step, **metrics})
    log.end()
    written = re.split("[\r\n]", capsys.readouterr().err)
    rows = [line.split() for line in written if line.strip() and "%" not in line]
    assert rows[0] == ["epoch", "step", "loss", "AP", "AP_small", "time"]
    assert [row[:-1] for row in rows[1:]] == [
        ["1", "2", "1.000", "20.0", "-"],
        ["2", "4", "3.500", "40.0", "-"],
    ]
