"""Waits for events of other processes, however busy the machine is."""

import subprocess
import time
from collections.abc import Callable

# Far beyond what any event needs: only a test that would hang forever reaches it.
NEVER = 1800.0  # seconds


def wait_until(
    condition: Callable[[], bool], *processes: subprocess.Popen, interval: float = 0.01
) -> None:
    """Return as soon as the condition holds.

    Raises:
        AssertionError: if one of the processes ends before.
    """
    start = time.monotonic()
    while not condition():
        assert all(process.poll() is None for process in processes), "a process ended too early"
        assert time.monotonic() - start < NEVER, "the test hangs"
        time.sleep(interval)
