"""Tests. What must be so before torch is imported is here, since pytest imports this first."""

import os

_workers = os.environ.get("PYTEST_XDIST_WORKER_COUNT")
if _workers is not None:  # they share the cores, and so do the processes that they start
    _threads = (os.cpu_count() or 1) // int(_workers)
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, _threads)))
