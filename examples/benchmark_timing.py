"""Time functions that take turns, so that whatever else the machine does slows both."""

import statistics
import sys
import time
from collections.abc import Callable


def medians(*functions: Callable[[], object], rounds: int) -> list[float]:
    """Median CPU seconds of each, run in turn after one warm-up of each."""
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
    """Show a line that the next one replaces, where someone looks."""
    if sys.stderr.isatty():
        print(f"\r{text:40}\r", end="", file=sys.stderr)
