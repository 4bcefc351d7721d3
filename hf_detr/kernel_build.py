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
HEADERS = {".h", ".hpp", ".cuh"}
LIBRARY, MANIFEST = "operator.so", "manifest.json"
TIMEOUT = 600.0  # seconds

CXX_FLAGS = (
    *("-std=c++17", "-O3", "-fPIC", "-fvisibility=hidden"),
    *("-fno-math-errno", "-fno-trapping-math", "-DTORCH_TARGET_VERSION=0x020b000000000000"),
)
LINK_FLAGS = ("-shared", "-Wl,--no-as-needed")
NVCC_FLAGS = ("-std=c++17", "-O3", "-Xcompiler", "-fPIC")
FLAGS = {
    "cpu": (*CXX_FLAGS, *LINK_FLAGS, "-ltorch_cpu", "-ltorch"),
    "cuda": (*CXX_FLAGS, "-DUSE_CUDA", *NVCC_FLAGS, *LINK_FLAGS, "-ltorch_cuda", "-lcudart"),
}


class KernelError(Exception):
    """The compiled operator can't be had; the text is the reason, in one clause."""


def digest_of(content: bytes) -> str:
    """The SHA-256 in hexadecimal."""
    return hashlib.sha256(content).hexdigest()


@dataclass(frozen=True)
class Recipe:
    """What is to be built, and all that decides whether a finished build fits.

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
        """Files to compile, the largest first, for they take longest."""
        units = list((self.sources / FOLDERS[self.device_type]).glob("*.cpp"))
        if self.device_type == "cpu":
            units.append(self.sources / "torch-ext" / "torch_binding.cpp")
        else:
            units.extend((self.sources / FOLDERS[self.device_type]).glob("*.cu"))
        return sorted(units, key=lambda unit: (-unit.stat().st_size, unit.name))

    def key_parts(self) -> dict[str, Any]:
        """All that a build depends on but the compiler, which a finished build doesn't need."""
        return {
            "sources": self._sources_digest(),
            "namespace": self.namespace,
            "torch": str(torch.__version__),  # torch compares its own type as versions
            "cuda": torch.version.cuda if self.device_type == "cuda" else None,
            "architectures": list(self.architectures),
            "machine": f"{platform.system()} {platform.machine()}",
            "flags": list(FLAGS[self.device_type]),
        }

    def name(self) -> str:
        """Name of a finished build, without the part that tells the compiler."""
        text = json.dumps(self.key_parts(), sort_keys=True)
        return f"{self.device_type}-{digest_of(text.encode())[:32]}"

    def entry_name(self, compiler: str | None) -> str:
        """Name of a finished build by the given compiler; a pattern for any if it is None."""
        return f"{self.name()}-{digest_of(compiler.encode())[:8] if compiler else '?' * 8}"

    def _sources_digest(self) -> str:
        folders = [self.sources / name for name in ("torch-ext", *FOLDERS.values())]
        headers = [p for f in folders for p in f.glob("*") if p.suffix in HEADERS]
        digest = hashlib.sha256()
        for path in sorted([*headers, *self.units()]):
            content = digest_of(path.read_bytes())
            digest.update(f"{path.relative_to(self.sources).as_posix()} {content}\n".encode())
        return digest.hexdigest()


def has_sources(folder: Path, device_type: str) -> bool:
    """Whether a folder is laid out like `kernels/`, with sources for the device type."""
    binding = folder / "torch-ext" / "torch_binding.cpp"
    return binding.is_file() and (folder / FOLDERS[device_type]).is_dir()


def find_compiler() -> list[str] | None:
    """Command of the C++ compiler: what `CXX` says, else c++, g++ or clang++."""
    named = shlex.split(os.environ.get("CXX", ""))
    for command in [named] if named else [["c++"], ["g++"], ["clang++"]]:
        if path := shutil.which(command[0]):
            return [path, *command[1:]]
    return None


def find_cuda_home() -> Path | None:
    """Folder of a CUDA toolkit with nvcc and headers: `CUDA_HOME`, nvcc's own, the usual one."""
    if named := os.environ.get("CUDA_HOME"):
        homes = [Path(named)]
    else:
        # The nvcc on the path may be a script that lies far from its toolkit.
        nvcc = shutil.which("nvcc")
        homes = [*([Path(nvcc).resolve().parents[1]] if nvcc else []), Path("/usr/local/cuda")]
    for home in homes:
        headers = home / "include" / "cuda_runtime.h"
        if headers.is_file() and shutil.which("nvcc", path=str(home / "bin")):
            return home
    return None


def compiler_identity(device_type: str) -> str | None:
    """What the compilers say of themselves, or None if one is missing."""
    compiler, cuda_home = find_compiler(), find_cuda_home()
    if compiler is None or (device_type == "cuda" and cuda_home is None):
        return None
    lines = [_version_line(compiler)]
    if device_type == "cuda":
        lines.append(_version_line([str(cuda_home / "bin" / "nvcc")], "release"))
    return None if None in lines else "; ".join(lines)


def build_library(recipe: Recipe, folder: Path, log: Path) -> Path:
    """Compile into an empty folder, and add the manifest that says what from.

    Args:
        recipe: what to build.
        folder: where the library and `manifest.json` go, and for a while the objects.
        log: where all that a failing compiler says is kept.

    Returns:
        The path of the library.

    Raises:
        KernelError: if there is no compiler, it fails, or it takes longer than ten minutes.
    """
    start = time.monotonic()
    compile_commands, link_command = _commands(recipe, folder)
    total, title = len(compile_commands) + 1, "hf_detr: building the compiled operator (once)"
    with logging.tqdm(total=total, desc=title, unit="file") as bar:
        _run_commands(compile_commands, folder, log, start + TIMEOUT, bar)
        _run_commands({"link": link_command}, folder, log, start + TIMEOUT, bar)
    for path in [*folder.glob("*.o"), *folder.glob("*.log")]:
        path.unlink()
    library, manifest = folder / LIBRARY, folder / MANIFEST
    record = {
        "sha256": digest_of(library.read_bytes()),
        "key_parts": recipe.key_parts(),
        "compiler": compiler_identity(recipe.device_type),
        "seconds": round(time.monotonic() - start, 2),
    }
    manifest.write_text(json.dumps(record, indent=2) + "\n")
    # Whatever the umask: a library that others could change would not be loaded.
    for path in (library, manifest, folder):
        path.chmod(0o644 if path == manifest else 0o755)
    log.unlink(missing_ok=True)
    return library


def read_build(folder: Path, recipe: Recipe) -> Path:
    """Library of a finished build; raises OSError, ValueError, … unless all of it fits."""
    manifest = json.loads((folder / MANIFEST).read_text())
    if manifest["key_parts"] != recipe.key_parts():
        raise ValueError("its manifest is of another build")
    if manifest["sha256"] != digest_of((folder / LIBRARY).read_bytes()):
        raise ValueError("the library is not the one of its manifest")
    return folder / LIBRARY


def _version_line(command: list[str], word: str = "") -> str | None:
    """First line with the word of what `--version` prints, if it prints anything."""
    try:
        found = subprocess.run(
            [*command, "--version"], capture_output=True, text=True, timeout=20, check=True
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return next((line for line in found.stdout.splitlines() if word in line), None)


def _commands(recipe: Recipe, folder: Path) -> tuple[dict[str, list[str]], list[str]]:
    """Commands that compile, by the name of the unit, and the one that links."""
    compiler = find_compiler()
    if compiler is None:
        where = "CXX names none that exists" if os.environ.get("CXX") else "no c++, g++ or clang++"
        raise KernelError(f"no C++ compiler was found ({where})")
    torch_folder = Path(torch.__path__[0])
    includes = [f"-I{recipe.sources / 'torch-ext'}", f"-I{recipe.sources}"]
    headers = torch_folder / "include"
    cxx = [*compiler, *CXX_FLAGS, f"-DTORCH_EXTENSION_NAME={recipe.namespace}", *includes]
    cxx += ["-isystem", str(headers), "-isystem", str(headers / "torch/csrc/api/include")]
    libraries = [f"-L{torch_folder / 'lib'}"]
    nvcc: list[str] = []
    if recipe.device_type == "cuda":
        cuda_home = _matching_cuda_home()
        nvcc = [str(cuda_home / "bin" / "nvcc"), *NVCC_FLAGS, *_gencode(recipe), *includes]
        nvcc += ["-ccbin", compiler[0]] if len(compiler) == 1 else []
        cxx += ["-DUSE_CUDA", "-isystem", str(cuda_home / "include")]
        lib64 = cuda_home / "lib64"
        libraries += [f"-L{lib64 if lib64.is_dir() else cuda_home / 'lib'}"]
        libraries += ["-ltorch_cuda", "-lcudart"]
    libraries += ["-ltorch_cpu", "-ltorch"]
    outputs = {unit: str(folder / f"{unit.name}.o") for unit in recipe.units()}
    commands = {
        unit.name: [*(nvcc if unit.suffix == ".cu" else cxx), "-c", str(unit), "-o", output]
        for unit, output in outputs.items()
    }
    link = [*compiler, *outputs.values(), "-o", str(folder / LIBRARY), *LINK_FLAGS, *libraries]
    return commands, link


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
            f"nvcc in {home} is of CUDA {release or 'unknown'}, torch of CUDA {torch.version.cuda}"
        )
    return home


def _gencode(recipe: Recipe) -> list[str]:
    """Machine code for each architecture, and PTX of the highest for whatever comes later."""
    if not recipe.architectures:
        raise KernelError("no CUDA architecture was named and no GPU is visible")
    numbers = [architecture.replace(".", "") for architecture in recipe.architectures]
    codes = [(number, f"sm_{number}") for number in numbers]
    codes.append((numbers[-1], f"compute_{numbers[-1]}"))
    return [f"-gencode=arch=compute_{number},code={code}" for number, code in codes]


def _run_commands(
    commands: dict[str, list[str]], folder: Path, log: Path, deadline: float, bar: Any
) -> None:
    """Run all, as many at once as there are cores; whatever happens, leave none running."""
    waiting, running = list(commands), {}
    try:
        while waiting or running:
            while waiting and len(running) < (os.cpu_count() or 1):
                name = waiting.pop(0)
                with open(folder / f"{name}.log", "w") as output:
                    # A session of its own, so that the compiler's own children can be ended too.
                    running[name] = subprocess.Popen(
                        commands[name],
                        stdin=subprocess.DEVNULL,
                        stdout=output,
                        stderr=subprocess.STDOUT,
                        start_new_session=True,
                    )
            for name in [name for name, process in running.items() if process.poll() is not None]:
                if running.pop(name).returncode != 0:
                    raise KernelError(_failure(name, commands[name], folder, log))
                bar.update()
            if time.monotonic() > deadline:
                raise KernelError(f"the build took longer than {TIMEOUT / 60:.0f} minutes")
            time.sleep(0.01)
    finally:
        for process in running.values():
            if process.poll() is None:  # one that has ended has no group any more
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()


def _failure(name: str, command: list[str], folder: Path, log: Path) -> str:
    """The reason of a failure, with the compiler's last lines; keeps the rest in the log."""
    output = (folder / f"{name}.log").read_text(errors="replace")
    log.write_text(f"$ {shlex.join(command)}\n{output}")
    last = " | ".join(line.strip() for line in output.splitlines()[-3:]) or "it said nothing"
    return f"{command[0]} failed on {name}: {last} (full log: {log})"
