"""Processes that don't import torch and hf_detr again, which takes each of them seconds.

They are forked from one process that has imported both and has done nothing else. A test of a new
interpreter, of imports or of settings that are read when a package is imported, needs a real one.
"""

import multiprocessing
import os
import runpy
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch

multiprocessing.set_forkserver_preload(["hf_detr"])
FORKED = multiprocessing.get_context("forkserver")


def run_processes(function: Callable[..., None], *arguments: Any, number: int = 2) -> None:
    """Call a function with the rank and arguments in each of some processes."""
    torch.multiprocessing.start_processes(
        function, args=arguments, nprocs=number, start_method="forkserver"
    )


def start_python(
    *arguments: Any, folder: Path, environment: Mapping[str, str], output: Path, errors: Path
) -> multiprocessing.process.BaseProcess:
    """Start `python ARGUMENTS`, a script or `-m` and a module, in a folder.

    Args:
        environment: all of its variables.
        output, errors: files that get its stdout and stderr.
    """
    command = list(map(str, arguments))
    files = str(output), str(errors)
    process = FORKED.Process(target=_run_python, args=(command, folder, dict(environment), files))
    process.start()
    return process


def run_python(
    *arguments: Any, folder: Path, environment: Mapping[str, str]
) -> subprocess.CompletedProcess[str]:
    """Run `python ARGUMENTS` as `subprocess.run` does, with captured texts."""
    with tempfile.TemporaryDirectory() as place:
        files = Path(place, "stdout"), Path(place, "stderr")
        given = {"folder": folder, "environment": environment}
        process = start_python(*arguments, **given, output=files[0], errors=files[1])
        process.join()
        texts = [file.read_text() for file in files]
    return subprocess.CompletedProcess(arguments, process.exitcode, *texts)


def _run_python(
    command: list[str], folder: Path, environment: dict[str, str], files: tuple[str, str]
) -> None:
    for number, file in enumerate(files, start=1):
        os.dup2(os.open(file, os.O_WRONLY | os.O_CREAT | os.O_APPEND), number)
    os.environ.clear()
    os.environ.update(environment)
    if "OMP_NUM_THREADS" in environment:  # which torch has read before
        torch.set_num_threads(int(environment["OMP_NUM_THREADS"]))
    os.chdir(folder)
    if command[0] == "-m":
        sys.argv = command[1:]
        runpy.run_module(command[1], run_name="__main__", alter_sys=True)
        return
    sys.argv = command
    sys.path.insert(0, str(Path(command[0]).parent))
    runpy.run_path(command[0], run_name="__main__")
