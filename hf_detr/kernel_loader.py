"""Find or build the compiled operator once, lazily, and say why where it can't be used.

Order: a library in the package, a kernel of the Hub if `HF_DETR_HUB_KERNEL` names one, an earlier
build in the cache folder, a new build. `python -m hf_detr.kernel_loader` tells what came of it.
"""

import argparse
import atexit
import functools
import importlib
import os
import platform
import re
import shutil
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import torch
from transformers.utils import logging

from .kernel_build import (
    FOLDERS,
    LIBRARY,
    TIMEOUT,
    KernelError,
    Recipe,
    build_library,
    compiler_identity,
    has_sources,
    read_build,
)

logger = logging.get_logger(__name__)

# <device>-<key>-<compiler>, and what a build keeps beside it: its unfinished folder, its log.
ENTRY = re.compile(r"(cpu|cuda)-[0-9a-f]{32}(-[0-9a-f]{8}|\.tmp-\w+|\.log)")
_LOCK = threading.RLock()


@dataclass(frozen=True)
class KernelPlaces:
    """Where sources and libraries lie, and the operators' name; tests bring their own."""

    sources: tuple[Path, ...] = (  # laid out like kernels/; the first that has them counts
        Path(__file__).parent / "_kernel_sources",
        Path(__file__).parents[1] / "kernels",
    )
    prebuilt: Path = Path(__file__).parent / "_prebuilt"
    namespace: str = "hf_detr_compiled"  # in torch.ops


@dataclass(frozen=True)
class KernelStatus:
    """What was found for a device type, or why nothing was."""

    device_type: str
    available: bool  # whether torch.ops.<namespace> has implementations for the device
    namespace: str | None
    source: str  # "prebuilt", "hub", "cache", "built" or "none"
    path: Path | None  # of the library; None for "hub" and "none"
    reason: str  # why it is not available, else empty
    seconds: float  # of finding, building and loading


PLACES = KernelPlaces()


def load_kernel(device_type: str, places: KernelPlaces = PLACES) -> KernelStatus:
    """Find, or else build, the compiled operator; once per process, failures remembered too.

    Returns:
        What can be used from now on, or why nothing can; the reason is also logged, once.
    """
    with _LOCK:
        return _load_once(device_type, places)


def kernel_status() -> str:
    """Report what is used on CPU and CUDA and why; loads or builds what wasn't yet."""
    lines = ["Compiled operator of hf_detr"]
    for device_type in FOLDERS:
        status = load_kernel(device_type)
        found = f"{status.source}, torch.ops.{status.namespace}, {status.path or 'no file of ours'}"
        text = found if status.available else f"torch is used instead: {status.reason}"
        lines.append(f"  {device_type}: {text} ({status.seconds:.2f} s)")
    lines.append(f"  torch: {torch.__version__}, CUDA {torch.version.cuda or 'none'}")
    for name, device_type in (("compiler", "cpu"), ("compilers for CUDA", "cuda")):
        lines.append(f"  {name}: {compiler_identity(device_type) or 'none found'}")
    lines.append(f"  cache: {cache_folder()}")
    return "\n".join(lines)


def cache_folder() -> Path:
    """`HF_DETR_KERNEL_CACHE`, or `hf_detr/kernels` in the user's cache folder."""
    if named := os.environ.get("HF_DETR_KERNEL_CACHE"):
        return Path(named).expanduser().absolute()
    caches = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser().absolute()
    return caches / "hf_detr" / "kernels"


def clear_cache() -> int:
    """Remove what this module wrote into the cache folder, and nothing else; returns how many."""
    cache = cache_folder()
    if not cache.is_dir():
        return 0
    with _locked(cache):
        found = [path for path in cache.iterdir() if ENTRY.fullmatch(path.name)]
        for path in found:
            _remove(path)
    return len(found)


def find_or_build(recipe: Recipe, cache: Path) -> tuple[str, Path]:
    """The library of a recipe, from the cache folder or built into it.

    Where the cache folder can't be trusted or written, the build is this process's own.

    Returns:
        "cache" or "built", and the library's path.
    """
    if platform.system() != "Linux":
        raise KernelError(f"it is compiled on Linux only, and this is {platform.system()}")
    compiler = compiler_identity(recipe.device_type)
    with suppress(OSError):
        _check_owner(cache)
        if library := _find_entry(cache, recipe, compiler):
            return "cache", library
    try:
        with _locked(cache):
            # Another process may have built it while this one waited.
            if library := _find_entry(cache, recipe, compiler, quiet=False):
                return "cache", library
            return "built", _build_entry(cache, recipe, compiler)
    except OSError as error:
        logger.warning(
            f"hf_detr: the cache folder {cache} can't be used ({error}), so this process builds "
            "the compiled operator for itself; HF_DETR_KERNEL_CACHE names another folder."
        )
    private = Path(tempfile.mkdtemp(prefix="hf_detr-"))
    library = _build_entry(private, recipe, compiler)
    atexit.register(shutil.rmtree, private, ignore_errors=True)
    return "built", library


@functools.cache
def _load_once(device_type: str, places: KernelPlaces) -> KernelStatus:
    start = time.perf_counter()
    try:
        source, namespace, path = _load(device_type, places)
    except (KernelError, OSError, RuntimeError) as error:
        reason = " ".join(str(error).split())
        # Without a GPU nothing degrades: only the report asks.
        degrades = device_type != "cuda" or torch.cuda.is_available()
        log = logger.warning if degrades else logger.info
        log(f"hf_detr: the compiled operator isn't used on {device_type}: {reason}")
        seconds = time.perf_counter() - start
        return KernelStatus(device_type, False, None, "none", None, reason, seconds)
    seconds = time.perf_counter() - start
    logger.info(f"hf_detr: compiled operator for {device_type} ready ({source}, {seconds:.1f} s)")
    return KernelStatus(device_type, True, namespace, source, path, "", seconds)


def _load(device_type: str, places: KernelPlaces) -> tuple[str, str, Path | None]:
    """Source, namespace and path of what was loaded."""
    if device_type not in FOLDERS:
        raise KernelError(f"there is none for {device_type}")
    architectures = _cuda_architectures() if device_type == "cuda" else ()
    sources = next((folder for folder in places.sources if has_sources(folder, device_type)), None)
    recipe = sources and Recipe(device_type, sources, places.namespace, architectures)
    library = recipe and _find_entry(places.prebuilt, recipe, None, trusted=True)
    hub = os.environ.get("HF_DETR_HUB_KERNEL")
    if not library and hub and (namespace := _hub_namespace(hub)):
        return "hub", namespace, None
    if recipe is None:
        raise KernelError("its sources are not there")
    if device_type == "cuda":
        _require_schemas(places)
    source, library = ("prebuilt", library) if library else find_or_build(recipe, cache_folder())
    torch.ops.load_library(library)
    return source, places.namespace, library


def _cuda_architectures() -> tuple[str, ...]:
    """Compute capabilities of the visible GPUs, lowest first."""
    if torch.version.cuda is None:
        raise KernelError(f"torch {torch.__version__} was built without CUDA")
    if not torch.cuda.is_available():
        raise KernelError("torch sees no GPU")
    devices = range(torch.cuda.device_count())
    found = {torch.cuda.get_device_capability(device) for device in devices}
    return tuple(f"{major}.{minor}" for major, minor in sorted(found))


def _require_schemas(places: KernelPlaces) -> None:
    """Load the CPU library, which defines the operators that the CUDA one implements."""
    cpu = load_kernel("cpu", places)
    if cpu.namespace != places.namespace:
        raise KernelError(f"the CPU library, which it needs, isn't used ({cpu.reason or 'Hub'})")


def _hub_namespace(asked: str) -> str | None:
    """Name in `torch.ops` of a Hub kernel, "owner/name@version", from the package `kernels`.

    Whoever names it in the environment has decided to run its code.
    """
    name, _, version = asked.partition("@")
    try:
        get_kernel = importlib.import_module("kernels").get_kernel
        return get_kernel(name, version=int(version or 0), trust_remote_code=True).ops.name
    except Exception as error:  # whatever the network, the Hub or the kernel's own code raise
        problem = f"{type(error).__name__}: {error}"
        logger.warning(f"hf_detr: HF_DETR_HUB_KERNEL={asked} can't be used: {problem}")
        return None


def _find_entry(
    folder: Path, recipe: Recipe, compiler: str | None, trusted: bool = False, quiet: bool = True
) -> Path | None:
    """Library of a finished build by the given compiler, or by any if there is none here."""
    for entry in sorted(folder.glob(recipe.entry_name(compiler))):
        try:
            # Who could change a library in the package could change the package's Python too.
            for path in () if trusted else (entry, entry / LIBRARY):
                _check_owner(path)
            return read_build(entry, recipe)
        except (OSError, ValueError, KeyError, TypeError) as error:
            if not quiet:
                logger.warning(f"hf_detr: {entry} is not used and will be built again: {error!r}")
    return None


def _check_owner(path: Path) -> None:
    """Refuse what other users could have written, for a library is code that will run."""
    info = path.stat()
    if info.st_uid not in (os.getuid(), 0):
        raise PermissionError(f"{path} belongs to another user")
    if info.st_mode & 0o022:
        raise PermissionError(f"other users may write to {path}")


def _build_entry(folder: Path, recipe: Recipe, compiler: str | None) -> Path:
    """Build beside the final place and rename: what has its final name is complete."""
    for leftover in folder.glob("*.tmp-*"):  # of builds that died: who builds holds the lock
        _remove(leftover)
    entry = folder / recipe.entry_name(compiler or "unknown")
    unfinished = Path(tempfile.mkdtemp(prefix=f"{recipe.name()}.tmp-", dir=folder))
    try:
        build_library(recipe, unfinished, folder / f"{recipe.name()}.log")
        _remove(entry)
        unfinished.rename(entry)
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)
    return entry / LIBRARY


@contextmanager
def _locked(cache: Path) -> Iterator[None]:
    """Be the only process that builds in the folder; the system frees the lock of the dead."""
    import fcntl  # not on Windows

    cache.mkdir(mode=0o755, parents=True, exist_ok=True)
    _check_owner(cache)
    with open(cache / ".lock", "w") as lock:
        deadline, said = time.monotonic() + TIMEOUT, False
        while True:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() > deadline:
                    raise KernelError(f"another process held {lock.name} for too long") from None
                if not said:
                    logger.warning("hf_detr: waiting for another process's build of the operator")
                said = True
            time.sleep(0.05)
        try:
            yield
        finally:
            fcntl.flock(lock, fcntl.LOCK_UN)  # closing wouldn't, if a forked child has it too


def _remove(path: Path) -> None:
    shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)


def main(arguments: list[str] | None = None) -> int:
    """Print the report, or empty the cache folder; returns the exit status."""
    parser = argparse.ArgumentParser(description="Report on the compiled operator of hf_detr.")
    parser.add_argument("--clear", action="store_true", help="empty the cache folder instead")
    if parser.parse_args(arguments).clear:
        print(f"Removed {clear_cache()} entries from {cache_folder()}")
        return 0
    print(kernel_status())
    return 0 if load_kernel("cpu").available else 1


if __name__ == "__main__":
    sys.exit(main())
