"""Shared parts of the benchmarks: arguments, times, memory and equal proposals."""

import argparse
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import torch
import transformers
from torch import Tensor
from torch.overrides import TorchFunctionMode

Result = TypeVar("Result")


def parse_arguments(parser: argparse.ArgumentParser, unit: str = "CPU ms") -> argparse.Namespace:
    """Add --quick, --rounds and --threads, apply them and print the versions and the unit."""
    parser.add_argument("--quick", action="store_true", help="two rounds, small inputs")
    parser.add_argument("--rounds", type=int, default=11)
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    if arguments.rounds < 1 or arguments.threads < 1:
        parser.error("--rounds and --threads must be at least 1")
    if arguments.quick:
        arguments.rounds = 2
    torch.set_num_threads(arguments.threads)
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    print(
        f"torch {torch.__version__}, transformers {transformers.__version__}, "
        f"{arguments.threads} thread(s), medians of {arguments.rounds} interleaved rounds, {unit}"
    )
    return arguments


def medians(
    *functions: Callable[[], object], rounds: int, clock: Callable[[], float] = time.process_time
) -> list[float]:
    """Return the median CPU seconds of each function; they run alternately after a warm-up."""
    times: list[list[float]] = [[] for _ in functions]
    for index in range(rounds + 1):
        for function, seconds in zip(functions, times, strict=True):
            start = clock()
            function()
            if index > 0:
                seconds.append(clock() - start)
        progress(f"  round {index} of {rounds}")
    progress("")
    return [statistics.median(seconds) for seconds in times]


def progress(text: str) -> None:
    """Replace the current line on a terminal."""
    if sys.stderr.isatty():
        print(f"\r{text:40}\r", end="", file=sys.stderr)


class SameProposals(TorchFunctionMode):
    """Give all models within it the proposals of the first, which rounding can reorder."""

    chosen: Any = None  # of `topk`

    def __torch_function__(
        self, function: Callable, types: Any, args: tuple = (), kwargs: dict | None = None
    ) -> Any:
        if function not in (torch.topk, Tensor.topk):
            return function(*args, **(kwargs or {}))
        self.chosen = self.chosen or function(*args, **(kwargs or {}))
        return self.chosen


def peak_memory(function: Callable[[], Result]) -> tuple[Result, float]:
    """Call a function; return its result and the MiB by which memory increased at most (Linux)."""
    Path("/proc/self/clear_refs").write_text("5")  # resets the peak
    before = _resident("VmRSS")
    result = function()
    return result, _resident("VmHWM") - before


def _resident(field: str) -> float:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(field)) / 1024
