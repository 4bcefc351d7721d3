"""The loader: once, lazily, safe with several processes, and a reason for each failure."""

import fcntl
import functools
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import types
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

from hf_detr.ops import kernel_loader
from hf_detr.ops.kernel_build import CHECKSUM, LIBRARY, Recipe, find_compiler
from hf_detr.ops.kernel_loader import find_or_build, load_kernel

from ..waiting import wait_until
from .test_kernel_build import needs_compiler, paused_compiler, write_script, write_sources

REPOSITORY = Path(__file__).parents[2]
NAMESPACE = "hf_detr_test_loader"

# Without the package's __init__, whose imports take longer than these tests.
LOAD = """
import json, sys, types
from pathlib import Path
package = types.ModuleType("hf_detr")
package.__path__ = [sys.argv[1]]
sys.modules["hf_detr"] = package
import torch
from hf_detr.ops.kernel_loader import load_kernel
status = load_kernel("cpu", (Path(sys.argv[2]),), sys.argv[3])
operators = getattr(torch.ops, sys.argv[3])
answer = operators.answer(torch.zeros(2)).tolist() if status.namespace else None
print(json.dumps([status.source, answer]))
"""


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_sources(tmp_path_factory.mktemp("sources"))


@pytest.fixture(scope="module")
def filled(sources: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cache folder with a finished build; tests copy it."""
    cache = tmp_path_factory.mktemp("filled") / "cache"
    assert find_or_build(Recipe("cpu", sources, NAMESPACE), cache)[0] == "built"
    return cache


@pytest.fixture
def recipe(sources: Path) -> Recipe:
    return Recipe("cpu", sources, NAMESPACE)


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache folder instead of the user's."""
    monkeypatch.setenv("HF_DETR_KERNEL_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    monkeypatch.delenv("HF_DETR_HUB_KERNEL", raising=False)
    return tmp_path / "cache"


@pytest.fixture
def copied(filled: Path, cache: Path) -> Path:
    """A copy of the filled cache."""
    return Path(shutil.copytree(filled, cache))


class Process:
    """Another process that loads the stand-in operator and prints what it got."""

    def __init__(self, sources: Path, folder: Path, **environment: str) -> None:
        command = [sys.executable, "-c", LOAD, str(REPOSITORY / "hf_detr"), str(sources), NAMESPACE]
        self.output, self.errors = folder / "output", folder / "errors"
        with open(self.output, "w") as output, open(self.errors, "w") as errors:
            self.popen = subprocess.Popen(
                command, env={**os.environ, **environment}, stdout=output, stderr=errors
            )

    def result(self) -> list:
        assert self.popen.wait() == 0, self.errors.read_text()
        return json.loads(self.output.read_text())


@pytest.fixture
def start(sources: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable]:
    """Starts such processes, and ends those that a failed test leaves."""
    processes: list[Process] = []

    def start(**environment: str) -> Process:
        processes.append(Process(sources, tmp_path_factory.mktemp("process"), **environment))
        return processes[-1]

    yield start
    for process in processes:
        process.popen.kill()
        process.popen.wait()


def entries(cache: Path) -> list[Path]:
    return sorted(path for path in cache.iterdir() if path.name != ".lock")


@needs_compiler
def test_built_once_then_found_without_a_compiler(start: Callable, cache: Path) -> None:
    """The first process builds; the second needs neither compiler nor PATH."""
    assert start().result() == ["built", [42, 42]]
    second = start(PATH="", CXX="no-such-compiler")
    assert second.result() == ["cache", [42, 42]] and second.errors.read_text() == ""
    assert len(entries(cache)) == 1


@needs_compiler
def test_processes_at_once_build_once(start: Callable, tmp_path: Path) -> None:
    """Four processes on an empty cache: one compiles, the others wait, say so, and use it."""
    with paused_compiler(tmp_path) as compiler:
        processes = [start(CXX=str(compiler)) for _ in range(4)]

        def are_waiting() -> bool:
            errors = [process.errors.read_text() for process in processes]
            return sum("waiting for another process" in text for text in errors) == 3

        wait_until(are_waiting, *(process.popen for process in processes))
        (tmp_path / "paused").unlink()
        results = sorted(process.result() for process in processes)
        assert results == [["built", [42, 42]], *[["cache", [42, 42]]] * 3]
        assert len((tmp_path / "calls").read_text().split()) == 3  # two sources and the link


@needs_compiler
def test_killed_build_does_not_block_others(
    start: Callable, recipe: Recipe, cache: Path, tmp_path: Path
) -> None:
    """A killed build leaves no lock, and the next one removes its unfinished folder."""
    with paused_compiler(tmp_path) as compiler:
        process = start(CXX=str(compiler)).popen
        wait_until(lambda: (tmp_path / "calls").read_text() != "", process)
        process.send_signal(signal.SIGKILL)
        process.wait()
        assert list(cache.glob("*.tmp-*"))
        assert find_or_build(recipe, cache)[0] == "built"
    assert not list(cache.glob("*.tmp-*"))


@needs_compiler
def test_interrupted_build_leaves_a_clean_cache(
    recipe: Recipe, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ctrl-C goes through, and nothing unfinished stays."""

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(kernel_loader, "build_library", interrupt)
    with pytest.raises(KeyboardInterrupt):
        find_or_build(recipe, cache)
    assert entries(cache) == []


@needs_compiler
def test_lock_that_is_never_released(
    recipe: Recipe, cache: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A process that waited too long, such as for a stopped one, builds for itself."""
    cache.mkdir()
    monkeypatch.setattr(kernel_loader, "TIMEOUT", 0.1)
    with open(cache / ".lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        source, library = find_or_build(recipe, cache)
    assert source == "built" and not library.is_relative_to(cache)
    assert "builds the compiled operator for itself" in caplog.text


@needs_compiler
@pytest.mark.parametrize("damage", ["truncated", "no checksum", "other checksum"])
def test_damaged_build_is_made_again(
    recipe: Recipe, copied: Path, damage: str, caplog: pytest.LogCaptureFixture
) -> None:
    """A build that doesn't match its checksum is built again, with one message."""
    (entry,) = entries(copied)
    library, checksum = entry / LIBRARY, entry / CHECKSUM
    if damage == "truncated":
        library.write_bytes(library.read_bytes()[:1000])
    elif damage == "no checksum":
        checksum.unlink()
    else:
        checksum.write_text("0" * 64)
    assert find_or_build(recipe, copied) == ("built", library)
    assert caplog.text.count("will be built again") == 1
    assert find_or_build(recipe, copied) == ("cache", library)


@needs_compiler
def test_build_of_another_compiler_is_not_used(
    recipe: Recipe, copied: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A changed compiler builds again, next to the build of the other one."""
    script = f'[ "$1" = --version ] && exec echo other 1.0\nexec {find_compiler()[0]} "$@"'
    monkeypatch.setenv("CXX", str(write_script(copied.parent / "other-c++", script)))
    assert find_or_build(recipe, copied)[0] == "built"
    assert len(entries(copied)) == 2


@needs_compiler
@pytest.mark.parametrize("writable", ["folder", "entry", "library"])
def test_what_others_may_write_is_not_loaded(
    recipe: Recipe, copied: Path, writable: str, caplog: pytest.LogCaptureFixture
) -> None:
    """A library is code: one that other users could have written is not used."""
    (entry,) = entries(copied)
    path = {"folder": copied, "entry": entry, "library": entry / LIBRARY}[writable]
    path.chmod(path.stat().st_mode | 0o022)
    source, library = find_or_build(recipe, copied)
    assert source == "built" and "other users may write" in caplog.text
    assert library.is_relative_to(copied) == (writable != "folder")


@needs_compiler
def test_what_belongs_to_another_user_is_not_loaded(
    recipe: Recipe, copied: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The same for the cache folder of another user than root."""
    if os.getuid() == 0:
        os.chown(copied, 54321, -1)
    else:
        monkeypatch.setattr(os, "getuid", lambda: 54321)
    source, library = find_or_build(recipe, copied)
    assert source == "built" and not library.is_relative_to(copied)
    assert "belongs to another user" in caplog.text


@needs_compiler
def test_unwritable_cache_means_a_private_build(
    recipe: Recipe, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Without a writable cache the process still gets its operator, and one message."""
    (tmp_path / "file").touch()
    source, library = find_or_build(recipe, tmp_path / "file" / "cache")
    assert source == "built" and library.is_file()
    assert caplog.text.count("builds the compiled operator for itself") == 1


def test_failure_is_remembered(
    sources: Path, cache: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A failure is logged once, not tried again in this process, and not stored."""
    places = ((sources,), "hf_detr_test_failure")
    monkeypatch.setenv("CXX", "no-such-compiler")
    first = load_kernel("cpu", *places)
    monkeypatch.delenv("CXX")
    assert load_kernel("cpu", *places) is first
    assert first.namespace is None and first.source == "none"
    assert "no C++ compiler was found" in first.reason
    assert caplog.text.count(first.reason) == 1
    assert entries(cache) == []


@needs_compiler
def test_threads_load_once(sources: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Threads that load at the same time get one build, and its operator works."""
    places = ((sources,), "hf_detr_test_threads")
    found = []
    threads = [
        threading.Thread(target=lambda: found.append(load_kernel("cpu", *places))) for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 4 and all(status is found[0] for status in found)
    assert found[0].source == "built"
    assert torch.ops.hf_detr_test_threads.answer(torch.zeros(1)).item() == 42


def test_missing_sources(tmp_path: Path) -> None:
    """An installation without sources gives that as the reason."""
    status = load_kernel("cpu", (tmp_path,), "hf_detr_test_none")
    assert status.reason == "its sources are missing"
    assert "mps" in load_kernel("mps", (tmp_path,), "x").reason


def test_hub_kernel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The kernel that HF_DETR_HUB_KERNEL names comes before any build, under its own name."""
    asked = []

    def get_kernel(name: str, version: int, **options: bool) -> types.SimpleNamespace:
        asked.append((name, version))
        return types.SimpleNamespace(ops=torch.ops.some_hub_namespace)

    monkeypatch.setitem(sys.modules, "kernels", types.SimpleNamespace(get_kernel=get_kernel))
    monkeypatch.setenv("HF_DETR_HUB_KERNEL", "owner/attention@2")
    status = load_kernel("cpu", (tmp_path,), "hf_detr_test_hub")
    assert asked == [("owner/attention", 2)]
    assert (status.source, status.namespace, status.path) == ("hub", "some_hub_namespace", None)


def test_hub_kernel_that_fails(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Without the `kernels` package, or the network, the search goes on."""
    monkeypatch.setitem(sys.modules, "kernels", None)
    monkeypatch.setenv("HF_DETR_HUB_KERNEL", "owner/attention")
    status = load_kernel("cpu", (tmp_path,), "hf_detr_test_hub_fails")
    assert status.reason == "its sources are missing"
    assert "HF_DETR_HUB_KERNEL=owner/attention can't be used" in caplog.text


def test_cuda_reasons(sources: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Torch without CUDA, no GPU, and no CPU library have different reasons."""

    def reason(namespace: str) -> str:
        status = load_kernel("cuda", (sources,), namespace)
        assert status.namespace is None
        return status.reason

    monkeypatch.setattr(torch.version, "cuda", None)
    assert "without CUDA" in reason("hf_detr_test_cuda_1")
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert "sees no GPU" in reason("hf_detr_test_cuda_2")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    monkeypatch.setenv("CXX", "no-such-compiler")
    assert "needs the CPU library" in reason("hf_detr_test_cuda_3")


def test_import_builds_and_loads_nothing(cache: Path) -> None:
    """Importing the package touches no cache and loads no library."""
    code = (
        "import hf_detr, hf_detr.ops.kernel_loader, torch; "
        "assert not any('operator.so' in name for name in torch.ops.loaded_libraries); "
        "assert hf_detr.ops.kernel_loader._load_once.cache_info().misses == 0"
    )
    subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY, check=True)
    assert not cache.exists()


def test_report(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The report names both devices, the compilers and the cache folder."""
    load = functools.partial(load_kernel, sources=(tmp_path,), namespace="hf_detr_test_report")
    monkeypatch.setattr(kernel_loader, "load_kernel", load)
    monkeypatch.setenv("CXX", "no-such-compiler")
    report = kernel_loader.kernel_status()
    assert "cpu: unavailable, torch's operators are used: its sources are missing" in report
    assert "cuda: unavailable" in report and "C++ compiler: none found" in report
    assert str(tmp_path / "cache") in report


def test_cache_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The named folder, else the user's cache folder."""
    assert kernel_loader.cache_folder() == tmp_path / "cache"
    monkeypatch.delenv("HF_DETR_KERNEL_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert kernel_loader.cache_folder() == tmp_path / "xdg" / "hf_detr" / "kernels"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert kernel_loader.cache_folder() == tmp_path / ".cache" / "hf_detr" / "kernels"
