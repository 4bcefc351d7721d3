"""The loader: once, lazily, safe among processes, and a reason wherever it gives up."""

import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
import types
from pathlib import Path

import pytest
import torch

from hf_detr import kernel_build, kernel_loader
from hf_detr.kernel_build import LIBRARY, MANIFEST, Recipe, find_compiler
from hf_detr.kernel_loader import KernelPlaces, find_or_build, load_kernel

from .test_kernel_build import needs_compiler, sleeping_compiler, write_script, write_sources

REPOSITORY = Path(__file__).parents[1]
NAMESPACE = "hf_detr_test_loader"

# The package's __init__ imports every model, which takes longer than all that is tested here.
LOAD = """
import json, sys, types
from pathlib import Path
package = types.ModuleType("hf_detr")
package.__path__ = [sys.argv[1]]
sys.modules["hf_detr"] = package
import torch
from hf_detr.kernel_loader import KernelPlaces, load_kernel
status = load_kernel("cpu", KernelPlaces((Path(sys.argv[2]),), Path("nowhere"), sys.argv[3]))
operators = getattr(torch.ops, sys.argv[3])
answer = operators.answer(torch.zeros(2)).tolist() if status.available else None
print(json.dumps([status.source, answer, status.seconds]))
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
    """An empty cache folder, never the user's."""
    monkeypatch.setenv("HF_DETR_KERNEL_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    monkeypatch.delenv("HF_DETR_HUB_KERNEL", raising=False)
    return tmp_path / "cache"


@pytest.fixture
def copied(filled: Path, cache: Path) -> Path:
    """A copy of the filled cache in the place of the empty one."""
    return Path(shutil.copytree(filled, cache))


def start_process(sources: Path, **environment: str) -> subprocess.Popen:
    """Another process that loads the stand-in operator and prints what it got."""
    package = str(REPOSITORY / "hf_detr")
    arguments = [sys.executable, "-c", LOAD, package, str(sources), NAMESPACE]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen(arguments, env={**os.environ, **environment}, **pipes)


def result_of(process: subprocess.Popen) -> tuple[list, str]:
    output, errors = process.communicate(timeout=60)
    assert process.returncode == 0, errors
    return json.loads(output), errors


def entries(cache: Path) -> list[Path]:
    return sorted(path for path in cache.iterdir() if path.name != ".lock")


@needs_compiler
def test_built_once_then_found_without_a_compiler(sources: Path, cache: Path) -> None:
    """The first process builds; the second needs neither compiler nor path, nor a second."""
    assert result_of(start_process(sources))[0][:2] == ["built", [42, 42]]
    found, errors = result_of(start_process(sources, PATH="", CXX="no-such-compiler"))
    assert found[:2] == ["cache", [42, 42]] and errors == ""
    assert found[2] < 1
    assert len(entries(cache)) == 1


@needs_compiler
def test_processes_at_once_build_once(sources: Path, cache: Path) -> None:
    """Four processes on an empty cache: one compiles, the others wait, say so, and use it."""
    compiler = write_script(
        cache.parent / "counting-c++",
        f'[ "$1" = --version ] || (echo "$$" >> {cache.parent}/calls; sleep 1)\n'
        f'exec {find_compiler()[0]} "$@"',
    )
    processes = [start_process(sources, CXX=str(compiler)) for _ in range(4)]
    results = [result_of(process) for process in processes]
    assert sorted(found[0] for found, _ in results) == ["built", "cache", "cache", "cache"]
    assert all(found[1] == [42, 42] for found, _ in results)
    assert len((cache.parent / "calls").read_text().split()) == 3  # two sources and the link
    assert max(errors.count("waiting for another process") for _, errors in results) == 1


@needs_compiler
def test_killed_build_hinders_nobody(recipe: Recipe, cache: Path, tmp_path: Path) -> None:
    """A build killed half-way leaves no lock, and the next one removes what it left."""
    process = start_process(recipe.sources, CXX=str(sleeping_compiler(tmp_path)))
    limit = time.monotonic() + 30
    while not (tmp_path / "pid").is_file() or not (tmp_path / "pid").read_text().strip():
        assert time.monotonic() < limit and process.poll() is None
        time.sleep(0.05)
    process.send_signal(signal.SIGKILL)
    process.communicate(timeout=10)
    try:
        assert list(cache.glob("*.tmp-*"))
        start = time.monotonic()
        assert find_or_build(recipe, cache)[0] == "built"
        assert time.monotonic() - start < 20
    finally:
        os.kill(int((tmp_path / "pid").read_text()), signal.SIGKILL)
    assert not list(cache.glob("*.tmp-*"))


@needs_compiler
def test_interrupted_build_leaves_a_clean_cache(
    recipe: Recipe, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ctrl-C goes through, and nothing unfinished stays."""

    def interrupt(*_: float) -> None:
        raise KeyboardInterrupt

    clock = types.SimpleNamespace(monotonic=time.monotonic, sleep=interrupt)
    monkeypatch.setattr(kernel_build, "time", clock)
    with pytest.raises(KeyboardInterrupt):
        find_or_build(recipe, cache)
    assert entries(cache) == []


@needs_compiler
@pytest.mark.parametrize("damage", ["truncated", "no manifest", "no JSON", "other hash", "list"])
def test_damaged_build_is_made_again(
    recipe: Recipe, copied: Path, damage: str, caplog: pytest.LogCaptureFixture
) -> None:
    """What doesn't match its manifest is never loaded but built again, with a line that says so."""
    (entry,) = entries(copied)
    library, manifest = entry / LIBRARY, entry / MANIFEST
    if damage == "truncated":
        library.write_bytes(library.read_bytes()[:1000])
    elif damage == "no manifest":
        manifest.unlink()
    elif damage == "other hash":
        manifest.write_text(json.dumps({**json.loads(manifest.read_text()), "sha256": "0" * 64}))
    else:
        manifest.write_text("{" if damage == "no JSON" else "[]")
    assert find_or_build(recipe, copied) == ("built", library)
    assert caplog.text.count("will be built again") == 1
    assert find_or_build(recipe, copied) == ("cache", library)


@needs_compiler
def test_build_of_another_compiler_is_not_used(
    recipe: Recipe, copied: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A changed compiler builds anew, beside what the other one built."""
    script = f'[ "$1" = --version ] && exec echo other 1.0\nexec {find_compiler()[0]} "$@"'
    monkeypatch.setenv("CXX", str(write_script(copied.parent / "other-c++", script)))
    assert find_or_build(recipe, copied)[0] == "built"
    assert len(entries(copied)) == 2


@needs_compiler
@pytest.mark.parametrize("writable", ["folder", "entry", "library"])
def test_what_others_may_write_is_not_loaded(
    recipe: Recipe, copied: Path, writable: str, caplog: pytest.LogCaptureFixture
) -> None:
    """A library is code: one that others could have planted is not used."""
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
    """The same for a cache folder of somebody else's; root's is trusted, it can do all anyway."""
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
    """Where nothing can be written, the process still gets its operator, and one line."""
    (tmp_path / "file").touch()
    source, library = find_or_build(recipe, tmp_path / "file" / "cache")
    assert source == "built" and library.is_file()
    assert caplog.text.count("builds the compiled operator for itself") == 1


def test_failure_is_remembered(
    sources: Path, cache: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A failure is told once, not tried again in this process, and not written down."""
    places = KernelPlaces((sources,), cache / "none", "hf_detr_test_failure")
    monkeypatch.setenv("CXX", "no-such-compiler")
    first = load_kernel("cpu", places)
    monkeypatch.delenv("CXX")
    assert load_kernel("cpu", places) is first
    assert not first.available and first.namespace is None and first.source == "none"
    assert "no C++ compiler was found" in first.reason
    assert caplog.text.count(first.reason) == 1
    assert entries(cache) == []


@needs_compiler
def test_threads_load_once(sources: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Threads that ask at once get one build, and its operator works."""
    places = KernelPlaces((sources,), cache / "none", "hf_detr_test_threads")
    found = []
    threads = [
        threading.Thread(target=lambda: found.append(load_kernel("cpu", places))) for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 4 and all(status is found[0] for status in found)
    assert found[0].available and found[0].source == "built" and found[0].seconds > 0
    assert torch.ops.hf_detr_test_threads.answer(torch.zeros(1)).item() == 42


@needs_compiler
def test_prebuilt_library_comes_first(sources: Path, cache: Path, tmp_path: Path) -> None:
    """A fitting library in the package needs no cache; it counts whoever owns the package."""
    recipe = Recipe("cpu", sources, "hf_detr_test_prebuilt")
    find_or_build(recipe, tmp_path / "prebuilt")
    (tmp_path / "prebuilt").chmod(0o777)
    status = load_kernel("cpu", KernelPlaces((sources,), tmp_path / "prebuilt", recipe.namespace))
    assert status.available and status.source == "prebuilt"
    assert not cache.exists()


def test_sources_not_there(tmp_path: Path) -> None:
    """An installation without sources says so."""
    status = load_kernel("cpu", KernelPlaces((tmp_path,), tmp_path, "hf_detr_test_none"))
    assert status.reason == "its sources are not there"
    assert "mps" in load_kernel("mps", KernelPlaces((tmp_path,), tmp_path, "x")).reason


def test_hub_kernel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The kernel that HF_DETR_HUB_KERNEL names comes before any build, under its own name."""
    asked = []

    def get_kernel(name: str, version: int, **options: bool) -> types.SimpleNamespace:
        asked.append((name, version))
        return types.SimpleNamespace(ops=torch.ops.some_hub_namespace)

    monkeypatch.setitem(sys.modules, "kernels", types.SimpleNamespace(get_kernel=get_kernel))
    monkeypatch.setenv("HF_DETR_HUB_KERNEL", "owner/attention@2")
    status = load_kernel("cpu", KernelPlaces((tmp_path,), tmp_path, "hf_detr_test_hub"))
    assert asked == [("owner/attention", 2)] and status.available
    assert (status.source, status.namespace, status.path) == ("hub", "some_hub_namespace", None)


def test_hub_kernel_that_fails(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Without the `kernels` package, or the network, the search goes on."""
    monkeypatch.setitem(sys.modules, "kernels", None)
    monkeypatch.setenv("HF_DETR_HUB_KERNEL", "owner/attention")
    status = load_kernel("cpu", KernelPlaces((tmp_path,), tmp_path, "hf_detr_test_hub_fails"))
    assert status.reason == "its sources are not there"
    assert "HF_DETR_HUB_KERNEL=owner/attention can't be used" in caplog.text


def test_cuda_reasons(sources: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Torch without CUDA, no GPU, and no CPU library are told apart."""

    def reason(namespace: str) -> str:
        status = load_kernel("cuda", KernelPlaces((sources,), cache / "none", namespace))
        assert not status.available
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
    assert "the CPU library, which it needs" in reason("hf_detr_test_cuda_3")


def test_import_builds_and_loads_nothing(cache: Path) -> None:
    """Importing the package touches no cache and loads no library."""
    code = (
        "import hf_detr, hf_detr.kernel_loader, torch; "
        "assert not any('operator.so' in name for name in torch.ops.loaded_libraries); "
        "assert hf_detr.kernel_loader._load_once.cache_info().misses == 0"
    )
    subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY, check=True, timeout=120)
    assert not cache.exists()


def test_report_and_clear(cache: Path) -> None:
    """`python -m hf_detr.kernel_loader` reports, by its exit status too; --clear removes ours."""
    command = [sys.executable, "-m", "hf_detr.kernel_loader"]
    options = {"cwd": REPOSITORY, "capture_output": True, "text": True, "timeout": 120}
    environment = {**os.environ, "CXX": "no-such-compiler", "CUDA_VISIBLE_DEVICES": ""}
    report = subprocess.run(command, env=environment, **options)
    assert report.returncode == 1
    for word in ("cpu: torch is used instead", "cuda: torch", torch.__version__, str(cache)):
        assert word in report.stdout
    name = f"cpu-{'0' * 32}"
    for path in (f"{name}-{'1' * 8}", f"{name}.tmp-abc", "mine"):
        (cache / path).mkdir(parents=True)
    (cache / f"{name}.log").touch()
    assert kernel_loader.main(["--clear"]) == 0
    assert [path.name for path in entries(cache)] == ["mine"]


def test_cache_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The named folder, else the user's cache folder."""
    assert kernel_loader.cache_folder() == tmp_path / "cache"
    monkeypatch.delenv("HF_DETR_KERNEL_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert kernel_loader.cache_folder() == tmp_path / "xdg" / "hf_detr" / "kernels"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert kernel_loader.cache_folder() == tmp_path / ".cache" / "hf_detr" / "kernels"
