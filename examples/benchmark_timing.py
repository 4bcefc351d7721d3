"""Measure times and memory for the benchmarks."""

import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

Result = TypeVar("Result")


def medians(*functions: Callable[[], object], rounds: int) -> list[float]:
    """Return the median CPU seconds of each function; they run alternately after a warm-up."""
    times: list[list[float]] = [[] for _ in functions]
    for index in range(rounds + 1):
        for function, seconds in zip(functions, times, strict=True):
            start = time.process_time()
            function()
            if index > 0:
                seconds.append(time.process_time() - start)
        progress(f"  round {index} of {rounds}")
    progress("")
    return [statistics.median(seconds) for seconds in times]


def progress(text: str) -> None:
    """Replace the current line on a terminal."""
    if sys.stderr.isatty():
        print(f"\r{text:40}\r", end="", file=sys.stderr)


def peak_memory(function: Callable[[], Result]) -> tuple[Result, float]:
    """Call a function; return its result and the MiB by which memory increased at most (Linux)."""
    Path("/proc/self/clear_refs").write_text("5")  # resets the peak
    before = _resident("VmRSS")
    result = function()
    return result, _resident("VmHWM") - before


def _resident(field: str) -> float:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(field)) / 1024
