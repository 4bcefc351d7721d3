"""Tests publishing and loading with the Hub's real client and a local server."""

import socket
import subprocess
import sys
from pathlib import Path

from ..hub_server import client_environment

REPOSITORY = Path(__file__).parents[2]


def test_with_a_local_hub(tmp_path: Path) -> None:
    """Runs hub_checks.py in a process that has the server's address in its environment."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    environment = client_environment(f"http://127.0.0.1:{port}", tmp_path)
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
