"""Tests publishing and loading with the Hub's real client and a local server."""

import os
import socket
import subprocess
import sys
from pathlib import Path

from ..waiting import NEVER

REPOSITORY = Path(__file__).parents[2]


def test_with_a_local_hub(tmp_path: Path) -> None:
    """Runs hub_checks.py in a process that has the server's address in its environment."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    kept = {name: value for name, value in os.environ.items() if not name.startswith("HF_")}
    environment = {
        **kept,
        **{"HF_ENDPOINT": f"http://127.0.0.1:{port}", "HF_HUB_DISABLE_XET": "1"},
        **{"HF_HUB_OFFLINE": "0", "HF_HOME": str(tmp_path), "NO_PROXY": "127.0.0.1"},
        # The server is as slow as this machine is busy.
        **{"HF_HUB_DOWNLOAD_TIMEOUT": str(int(NEVER)), "HF_HUB_ETAG_TIMEOUT": str(int(NEVER))},
    }
    result = subprocess.run(
        [
            sys.executable,
            "-m",
            "pytest",
            "-q",
            "-n",
            "0",
            "-p",
            "no:cacheprovider",
            "tests/hub_checks.py",
        ],
        **{"cwd": REPOSITORY, "env": environment, "capture_output": True, "text": True},
    )
    assert result.returncode == 0, result.stdout[-8000:]
