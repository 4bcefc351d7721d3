"""The compiler's side: what is found, what a build depends on, why one fails."""

import os
import shutil
import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch

from hf_detr.ops import kernel_build
from hf_detr.ops.kernel_build import KernelError, Recipe, build_library, find_compiler

from ..waiting import wait_until

needs_compiler = pytest.mark.skipif(find_compiler() is None, reason="no C++ compiler here")

BINDING = """
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#define LIBRARY(name, m) STABLE_TORCH_LIBRARY(name, m)
#define IMPLEMENTATION(name, key, m) STABLE_TORCH_LIBRARY_IMPL(name, key, m)
using torch::stable::Tensor;
Tensor answer(const Tensor x);
LIBRARY(TORCH_EXTENSION_NAME, m) { m.def("answer(Tensor x) -> Tensor"); }
IMPLEMENTATION(TORCH_EXTENSION_NAME, CPU, m) { m.impl("answer", TORCH_BOX(&answer)); }
"""
ANSWER = """
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include "number.h"
using torch::stable::Tensor;
Tensor answer(const Tensor x) {
  return torch::stable::fill_(torch::stable::empty_like(x), NUMBER);
}
"""
GLUE = """
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/tensor.h>
#include <cuda_runtime.h>
#define IMPLEMENTATION(name, key, m) STABLE_TORCH_LIBRARY_IMPL(name, key, m)
using torch::stable::Tensor;
void launch();
Tensor answer_cuda(const Tensor x) { launch(); return x; }
IMPLEMENTATION(TORCH_EXTENSION_NAME, CUDA, m) { m.impl("answer", TORCH_BOX(&answer_cuda)); }
"""
DEVICE = "__global__ void nothing() {}\nvoid launch() { nothing<<<1, 1>>>(); }\n"


def write_sources(folder: Path) -> Path:
    """A tree laid out like kernels/, with one operator that fills a tensor with 42."""
    files = {
        "torch-ext/torch_binding.cpp": BINDING,
        "deformable_attention_cpu/answer.cpp": ANSWER,
        "deformable_attention_cpu/number.h": "#define NUMBER 42\n",
        "deformable_attention_cuda/glue.cpp": GLUE,
        "deformable_attention_cuda/nothing.cu": DEVICE,
    }
    for name, content in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(content)
    return folder


def write_script(path: Path, body: str) -> Path:
    """An executable shell script."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"#!/bin/sh\n{body}\n")
    path.chmod(0o755)
    return path


@contextmanager
def paused_compiler(folder: Path) -> Iterator[Path]:
    """A compiler that waits while the file `paused` exists, and lists its processes in `calls`.

    It also ends when the test or this process ends.
    """
    calls, paused = folder / "calls", folder / "paused"
    body = f"""
[ "$1" = --version ] && exec {find_compiler()[0]} --version
echo $$ >> {calls}
while [ -e {paused} ] && kill -0 {os.getpid()}; do sleep 0.1; done
[ -e {calls} ] && exec {find_compiler()[0]} "$@"
"""
    calls.touch()
    paused.touch()
    try:
        yield write_script(folder / "paused-c++", body)
    finally:
        calls.unlink()
        paused.unlink(missing_ok=True)


@pytest.fixture
def recipe(tmp_path: Path) -> Recipe:
    return Recipe("cpu", write_sources(tmp_path / "sources"), "hf_detr_test_build")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "build").mkdir()
    return tmp_path / "build"


def reason_of(recipe: Recipe, folder: Path) -> str:
    with pytest.raises(KernelError) as caught:
        build_library(recipe, folder, folder.parent / "failed.log")
    return str(caught.value)


@pytest.mark.parametrize(
    "name", ["torch-ext/torch_binding.cpp", "deformable_attention_cpu/number.h"]
)
def test_editing_a_source_changes_the_key(recipe: Recipe, name: str) -> None:
    """A build of the former sources is not used once a source or header is edited."""
    before = recipe.name()
    with open(recipe.sources / name, "a") as source:
        source.write("// edited\n")
    assert recipe.name() != before


def test_everything_that_matters_is_in_the_key(
    recipe: Recipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    """This build is not used for another namespace, torch, machine or GPU."""
    sources = recipe.sources
    names = {recipe.name(), Recipe("cpu", sources, "other").name()}
    names |= {Recipe("cuda", sources, "x", gpus).name() for gpus in (("9.0",), ("8.0", "9.0"))}
    monkeypatch.setattr("platform.machine", lambda: "abacus")
    names.add(recipe.name())
    monkeypatch.setattr(torch, "__version__", "9.9")
    names.add(recipe.name())
    assert len(names) == 6


def test_no_compiler(recipe: Recipe, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The reason names the missing compiler, whether CXX or the path lacks it."""
    monkeypatch.setenv("CXX", "no-such-compiler")
    assert "CXX names a missing one" in reason_of(recipe, folder)
    monkeypatch.delenv("CXX")
    monkeypatch.setenv("PATH", str(folder))
    assert "no c++, g++ or clang++" in reason_of(recipe, folder)


@needs_compiler
def test_failing_compiler(recipe: Recipe, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The reason has the compiler's last lines and the path of its whole output."""
    (recipe.sources / "deformable_attention_cpu" / "number.h").write_text("#error broken\n")
    reason = reason_of(recipe, folder)
    assert "answer.cpp" in reason and str(folder.parent / "failed.log") in reason
    assert "#error broken" in (folder.parent / "failed.log").read_text()
    monkeypatch.setenv("CXX", shutil.which("false") or "/bin/false")
    assert "it printed nothing" in reason_of(recipe, folder)


@needs_compiler
@pytest.mark.parametrize("error", [subprocess.TimeoutExpired("c++", 600.0), KeyboardInterrupt()])
def test_timeout_or_interrupt_ends_the_compilers(
    recipe: Recipe, folder: Path, monkeypatch: pytest.MonkeyPatch, error: BaseException
) -> None:
    """No compiler is left running; a timeout is named as the reason."""
    wait, calls = subprocess.Popen.wait, folder.parent / "calls"

    def fail_first(process: subprocess.Popen, timeout: float | None = None) -> int:
        if timeout is None:  # after the compiler was killed
            return wait(process)
        wait_until(lambda: len(calls.read_text().split()) == len(recipe.units()), process)
        raise error

    with paused_compiler(folder.parent) as compiler:
        monkeypatch.setenv("CXX", str(compiler))
        monkeypatch.setattr(subprocess.Popen, "wait", fail_first)
        with pytest.raises((KernelError, KeyboardInterrupt)) as caught:
            build_library(recipe, folder, folder.parent / "failed.log")
        for pid in calls.read_text().split():
            with pytest.raises(ProcessLookupError):
                os.kill(int(pid), signal.SIGCONT)
    assert caught.type is KeyboardInterrupt or "longer than 10 minutes" in str(caught.value)


@needs_compiler
def test_cuda_toolkit_missing_or_of_another_release(
    recipe: Recipe, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The reason is a missing nvcc, or the versions of nvcc and torch that don't match."""
    cuda = Recipe("cuda", recipe.sources, recipe.namespace, ("9.0",))
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    home = folder.parent / "toolkit"
    monkeypatch.setenv("CUDA_HOME", str(home))
    assert "no CUDA toolkit with nvcc" in reason_of(cuda, folder)
    write_script(home / "bin" / "nvcc", "echo 'Cuda tools, release 12.1, V12.1.0'")
    (home / "include").mkdir()
    (home / "include" / "cuda_runtime.h").touch()
    reason = reason_of(cuda, folder)
    assert "CUDA 12.1" in reason and "CUDA 13.0" in reason


@needs_compiler
@pytest.mark.skipif(torch.version.cuda is None, reason="torch was built without CUDA")
@pytest.mark.skipif(kernel_build.find_cuda_home() is None, reason="no CUDA toolkit here")
def test_cuda_library_compiles_without_a_gpu(recipe: Recipe, folder: Path) -> None:
    """Named architectures are enough to compile; the library registers with the CPU's schemas."""
    (folder / "cpu").mkdir()
    (folder / "cuda").mkdir()
    cuda = Recipe("cuda", recipe.sources, recipe.namespace, ("9.0",))
    for one in (recipe, cuda):
        log = folder / "failed.log"
        torch.ops.load_library(build_library(one, folder / one.device_type, log))
    registered = torch._C._dispatch_has_kernel_for_dispatch_key
    assert registered(f"{recipe.namespace}::answer", "CUDA")


def test_broken_compiler_has_no_identity(monkeypatch: pytest.MonkeyPatch) -> None:
    """A compiler that fails counts as none: an earlier build may still be used."""
    monkeypatch.setenv("CXX", shutil.which("false") or "/bin/false")
    assert kernel_build.compiler_identity("cpu") is None
