"""What a training shows and writes down: a progress bar, a table, losses and trackers."""

import re
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from accelerate import Accelerator
from tqdm.auto import tqdm

from ..atomic_saving import atomic_file

LOSS_LINE = re.compile(r"\d+,[^,]*,[^,]+")  # of losses.csv
# Columns of the table that aren't metrics, with their widths
COLUMNS = {"epoch": 5, "step": 7, "loss": 8}
NO_METRICS = ("per_class", "epoch", "step")
ONLY_TRACKED = ("AR_1", "AR_10", "AR_small", "AR_medium", "AR_large")


class TrainingLog:
    """The log of a training; all processes have one, and the main process writes.

    Args:
        accelerator: of the training; its trackers get all numbers.
        losses: file of the losses.
    """

    def __init__(self, accelerator: Accelerator, losses: Path) -> None:
        self.accelerator = accelerator
        self.writes = accelerator.is_main_process
        self.losses = LossFile(losses)
        self._bar: tqdm | None = None
        self._sum, self._count, self._start = 0.0, 0, time.monotonic()
        self._has_header = False

    def begin(self, step: int, total_steps: int) -> None:
        """Show the bar, and keep the losses of the steps that are done."""
        if self.writes:
            self.losses.begin(step)
            self._bar = tqdm(total=total_steps, initial=step, unit="step")
        self._start = time.monotonic()

    def end(self) -> None:
        """Remove the bar."""
        if self._bar is not None:
            self._bar.close()

    def say(self, *lines: str, indent: str = "") -> None:
        """Print lines without breaking the bar."""
        if self.writes:
            tqdm.write("\n".join(indent + line for line in lines), file=sys.stderr)

    def add_step(self, step: int, loss: float | None, lr: float) -> None:
        """Log the loss of a step; None if it was skipped."""
        self.accelerator.log({"lr": lr} if loss is None else {"lr": lr, "loss": loss}, step=step)
        if loss is not None:
            self._sum, self._count = self._sum + loss, self._count + 1
        if self._bar is not None:
            self.losses.add(step, loss, lr)
            shown = {"loss": "skipped" if loss is None else f"{loss:.3f}"}
            self._bar.set_postfix(shown, refresh=False)
            self._bar.update()

    def add_evaluation(self, entry: Mapping[str, Any]) -> None:
        """Log the metrics of an evaluation, with `epoch` and `step`, as a row of the table."""
        numbers = {name: value for name, value in entry.items() if name not in NO_METRICS}
        known = {name: value for name, value in numbers.items() if value >= 0}
        self.accelerator.log(known, step=entry["step"])
        loss = f"{self._sum / self._count:.3f}" if self._count else "-"
        seconds = round(time.monotonic() - self._start)
        time_text = f"{seconds // 3600}:{seconds // 60 % 60:02}:{seconds % 60:02}"
        cells = dict(zip(COLUMNS, (str(entry["epoch"]), str(entry["step"]), loss), strict=True))
        for name, value in numbers.items():
            if name not in ONLY_TRACKED:  # a metric without objects is -1
                cells[name] = "-" if value < 0 else f"{100 * value:.1f}"
        cells["time"] = time_text
        widths = {name: max(COLUMNS.get(name, 5), len(name)) for name in cells} | {"time": 8}
        if not self._has_header:
            self.say("  ".join(name.rjust(width) for name, width in widths.items()))
            self._has_header = True
        self.say("  ".join(cells[name].rjust(width) for name, width in widths.items()))
        self._sum, self._count = 0.0, 0


class LossFile:
    """`losses.csv`: the loss of every step, empty for skipped steps."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def add(self, step: int, loss: float | None, lr: float) -> None:
        """Append a line."""
        with self.path.open("a", encoding="utf-8") as file:
            written = "" if loss is None else repr(loss)
            file.write(f"{step},{written},{lr!r}\n")

    def begin(self, step: int) -> None:
        """Start the file, or keep the lines of finished steps of a resumed training."""
        text = ""
        if self.path.exists():
            text = self.path.read_text(encoding="utf-8", errors="replace")
        whole = filter(LOSS_LINE.fullmatch, text.split("\n")[:-1])  # the last one may be torn
        kept = [line for line in whole if int(line.split(",")[0]) <= step]
        if len(kept) < step:
            print(f"{self.path} lacks {step - len(kept)} of {step} steps.", file=sys.stderr)
        with atomic_file(self.path) as unfinished:
            lines = "".join(f"{line}\n" for line in ["step,loss,lr", *kept])
            unfinished.write_text(lines, encoding="utf-8")
