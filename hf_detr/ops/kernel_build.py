"""Compile the operator's sources into one shared library per device type.

The C++ sources use libtorch's stable ABI and the CUDA ones no torch header at all, so a build
takes seconds and needs neither Python's headers nor ninja.
"""

import hashlib
import json
import os
import platform
import shlex
import shutil
import signal
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers.utils import logging

FOLDERS = {"cpu": "deformable_attention_cpu", "cuda": "deformable_attention_cuda"}
SUFFIXES = {".cpp", ".cu", ".h", ".cuh"}
LIBRARY, CHECKSUM = "operator.so", "operator.sha256"
TIMEOUT = 600.0  # seconds

CXX_FLAGS = (
    *("-std=c++17", "-O3", "-fPIC", "-fvisibility=hidden"),
    *("-fno-math-errno", "-fno-trapping-math", "-DTORCH_TARGET_VERSION=0x020b000000000000"),
)
NVCC_FLAGS = ("-std=c++17", "-O3", "-Xcompiler", "-fPIC")
LINK_FLAGS = ("-shared", "-Wl,--no-as-needed", "-ltorch_cpu", "-ltorch")
CUDA_LINK_FLAGS = ("-ltorch_cuda", "-lcudart")


class KernelError(Exception):
    """The compiled operator is unavailable; the text is the reason, in one clause."""


def digest_of(content: bytes) -> str:
    """The SHA-256 in hexadecimal."""
    return hashlib.sha256(content).hexdigest()


@dataclass(frozen=True)
class Recipe:
    """What is built: everything but the compiler that determines whether a finished build fits.

    Args:
        device_type: "cpu" or "cuda".
        sources: the folder `kernels/`, or the wheel's copy of it.
        namespace: the operators' name in `torch.ops`.
        architectures: CUDA compute capabilities, such as "9.0", lowest first.
    """

    device_type: str
    sources: Path
    namespace: str
    architectures: tuple[str, ...] = ()

    def units(self) -> list[Path]:
        """Files to compile."""
        files = list((self.sources / FOLDERS[self.device_type]).iterdir())
        if self.device_type == "cpu":
            files.append(self.sources / "torch-ext" / "torch_binding.cpp")
        return sorted(file for file in files if file.suffix in (".cpp", ".cu"))

    def entry_name(self, compiler: str | None) -> str:
        """Name of a finished build by the given compiler; a pattern for any if it is None."""
        return f"{self.name()}-{digest_of(compiler.encode())[:8] if compiler else '?' * 8}"

    def name(self) -> str:
        """Name of a finished build, without the part that identifies the compiler."""
        folders = (self.sources / "torch-ext", self.sources / FOLDERS[self.device_type])
        paths = sorted(p for folder in folders for p in folder.iterdir() if p.suffix in SUFFIXES)
        parts = [
            *((path.name, digest_of(path.read_bytes())) for path in paths),
            *(self.namespace, self.architectures, CXX_FLAGS, LINK_FLAGS),
            *(platform.system(), platform.machine(), str(torch.__version__)),
        ]
        if self.device_type == "cuda":
            parts += [NVCC_FLAGS, CUDA_LINK_FLAGS, torch.version.cuda]
        return f"{self.device_type}-{digest_of(json.dumps(parts).encode())[:32]}"


def find_compiler() -> list[str] | None:
    """Command of the C++ compiler: `CXX`, else c++, g++ or clang++."""
    named = shlex.split(os.environ.get("CXX", ""))
    for command in [named] if named else [["c++"], ["g++"], ["clang++"]]:
        if path := shutil.which(command[0]):
            return [path, *command[1:]]
    return None


def find_cuda_home() -> Path | None:
    """Folder of a CUDA toolkit with nvcc: `CUDA_HOME`, the one of nvcc, or /usr/local/cuda."""
    if named := os.environ.get("CUDA_HOME"):
        homes = [Path(named)]
    else:
        # The nvcc on the path may be a script outside its toolkit.
        nvcc = shutil.which("nvcc")
        homes = [*([Path(nvcc).resolve().parents[1]] if nvcc else []), Path("/usr/local/cuda")]
    for home in homes:
        headers = home / "include" / "cuda_runtime.h"
        if headers.is_file() and shutil.which("nvcc", path=str(home / "bin")):
            return home
    return None


def compiler_identity(device_type: str) -> str | None:
    """Versions that the compilers print, or None if one is missing or fails."""
    compiler, cuda_home = find_compiler(), find_cuda_home()
    if compiler is None or (device_type == "cuda" and cuda_home is None):
        return None
    lines = [_version_line(compiler)]
    if device_type == "cuda":
        lines.append(_version_line([str(cuda_home / "bin" / "nvcc")], "release"))
    return None if None in lines else "; ".join(lines)


def build_library(recipe: Recipe, folder: Path, log: Path) -> Path:
    """Compile into an empty folder, and add the library's checksum; return the library's path.

    The log gets the whole output of a compiler that fails.

    Raises:
        KernelError: if there is no compiler, it fails, or it takes longer than ten minutes.
    """
    deadline = time.monotonic() + TIMEOUT
    compile_commands, link_command = _commands(recipe, folder)
    total, title = len(compile_commands) + 1, "hf_detr: building the compiled operator (once)"
    with logging.tqdm(total=total, desc=title, unit="file") as bar:
        for commands in (compile_commands, {"link": link_command}):
            _run_commands(commands, folder, log, deadline, bar)
    for path in [*folder.glob("*.o"), *folder.glob("*.log")]:
        path.unlink()
    library = folder / LIBRARY
    (folder / CHECKSUM).write_text(digest_of(library.read_bytes()), encoding="utf-8")
    # A library that other users may write is not loaded, so the umask must not allow it.
    for path in (library, folder):
        path.chmod(0o755)
    log.unlink(missing_ok=True)
    return library


def _version_line(command: list[str], word: str = "") -> str | None:
    """First line of the output of `--version` that contains the word."""
    try:
        found = subprocess.run(
            [*command, "--version"], capture_output=True, text=True, timeout=TIMEOUT, check=True
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return next((line for line in found.stdout.splitlines() if word in line), None)


def _commands(recipe: Recipe, folder: Path) -> tuple[dict[str, list[str]], list[str]]:
    """Commands that compile, by the name of the source file, and the one that links."""
    compiler = find_compiler()
    if compiler is None:
        where = "CXX names a missing one" if os.environ.get("CXX") else "no c++, g++ or clang++"
        raise KernelError(f"no C++ compiler was found ({where})")
    torch_folder = Path(torch.__path__[0])
    includes = [f"-I{recipe.sources / 'torch-ext'}", f"-I{recipe.sources}"]
    headers = torch_folder / "include"
    cxx = [*compiler, *CXX_FLAGS, f"-DTORCH_EXTENSION_NAME={recipe.namespace}", *includes]
    cxx += ["-isystem", str(headers), "-isystem", str(headers / "torch/csrc/api/include")]
    libraries = [*LINK_FLAGS, f"-L{torch_folder / 'lib'}"]
    nvcc: list[str] = []
    if recipe.device_type == "cuda":
        cuda_home = _matching_cuda_home()
        nvcc = [str(cuda_home / "bin" / "nvcc"), *NVCC_FLAGS, *includes]
        numbers = [architecture.replace(".", "") for architecture in recipe.architectures]
        nvcc += [f"-gencode=arch=compute_{number},code=sm_{number}" for number in numbers]
        # PTX of the highest, for later GPUs
        nvcc += [f"-gencode=arch=compute_{numbers[-1]},code=compute_{numbers[-1]}"]
        nvcc += ["-ccbin", compiler[0]] if len(compiler) == 1 else []
        cxx += ["-DUSE_CUDA", "-isystem", str(cuda_home / "include")]
        libraries += [*CUDA_LINK_FLAGS, f"-L{cuda_home / 'lib64'}", f"-L{cuda_home / 'lib'}"]
    outputs = {unit: str(folder / f"{unit.name}.o") for unit in recipe.units()}
    commands = {
        unit.name: [*(nvcc if unit.suffix == ".cu" else cxx), "-c", str(unit), "-o", output]
        for unit, output in outputs.items()
    }
    return commands, [*compiler, *outputs.values(), "-o", str(folder / LIBRARY), *libraries]


def _matching_cuda_home() -> Path:
    """Folder of a CUDA toolkit of the same major version as torch's."""
    home = find_cuda_home()
    if home is None:
        where = "in the folder that CUDA_HOME names" if os.environ.get("CUDA_HOME") else "here"
        raise KernelError(f"no CUDA toolkit with nvcc was found {where}")
    line = _version_line([str(home / "bin" / "nvcc")], "release")
    release = (line or "").partition("release ")[2].partition(",")[0]
    if release.split(".")[0] != torch.version.cuda.split(".")[0]:
        raise KernelError(
            f"nvcc in {home} has CUDA {release or 'unknown'}, torch has CUDA {torch.version.cuda}"
        )
    return home


def _run_commands(
    commands: dict[str, list[str]], folder: Path, log: Path, deadline: float, bar: Any
) -> None:
    """Run all commands at once; whatever happens, leave none running."""
    running: dict[str, subprocess.Popen] = {}
    try:
        for name, command in commands.items():
            with open(folder / f"{name}.log", "w", encoding="utf-8") as output:
                # In its own session, which ends the compiler's children with it.
                running[name] = subprocess.Popen(
                    command,
                    stdin=subprocess.DEVNULL,
                    stdout=output,
                    stderr=subprocess.STDOUT,
                    start_new_session=True,
                )
        for name, process in running.items():
            if process.wait(max(0, deadline - time.monotonic())) != 0:
                raise KernelError(_failure(name, commands[name], folder, log))
            bar.update()
    except subprocess.TimeoutExpired:
        raise KernelError(f"the build took longer than {TIMEOUT / 60:.0f} minutes") from None
    finally:
        for process in running.values():
            if process.poll() is None:  # a finished one has no group any more
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()


def _failure(name: str, command: list[str], folder: Path, log: Path) -> str:
    """The reason of a failure, with the compiler's last lines; keeps the rest in the log."""
    output = (folder / f"{name}.log").read_text(encoding="utf-8", errors="replace")
    log.write_text(f"$ {shlex.join(command)}\n{output}", encoding="utf-8")
    last = " | ".join(line.strip() for line in output.splitlines()[-3:]) or "it printed nothing"
    return f"{command[0]} failed on {name}: {last} (full log: {log})"
