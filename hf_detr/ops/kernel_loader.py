"""Find or build the compiled operator once, lazily, and give the reason where it is unavailable.

Order: a kernel of the Hub if `HF_DETR_HUB_KERNEL` names one, an earlier build in the cache folder,
a new build. `hf-detr doctor` shows the result.
"""

import atexit
import functools
import importlib
import os
import platform
import shutil
import sys
import tempfile
import threading
from contextlib import AbstractContextManager, suppress
from dataclasses import dataclass
from pathlib import Path

import torch
from filelock import FileLock, Timeout
from transformers.utils import logging

from .kernel_build import (
    CHECKSUM,
    FOLDERS,
    LIBRARY,
    TIMEOUT,
    KernelError,
    Recipe,
    build_library,
    compiler_identity,
    digest_of,
)

logger = logging.get_logger(__name__)

NAMESPACE = "hf_detr_compiled"  # of the operators in torch.ops
PACKAGE_FOLDER = Path(sys.modules[__name__.partition(".")[0]].__path__[0])
# In a wheel, and in the repository
SOURCES = (PACKAGE_FOLDER / "_kernel_sources", PACKAGE_FOLDER.parent / "kernels")
_LOCK = threading.RLock()


@dataclass(frozen=True)
class KernelStatus:
    """What was found for a device type, or why nothing was."""

    namespace: str | None  # of the device's operators in torch.ops; None if unavailable
    source: str = "none"  # "hub", "cache", "built" or "none"
    path: Path | None = None  # of the library; None for "hub" and "none"
    reason: str = ""  # why it is unavailable

    def __str__(self) -> str:
        """One line for reports."""
        if self.namespace is None:
            return f"unavailable, torch's operators are used: {self.reason}"
        return f"works ({self.source}, {self.path or 'no file of hf_detr'})"


def load_kernel(
    device_type: str, sources: tuple[Path, ...] = SOURCES, namespace: str = NAMESPACE
) -> KernelStatus:
    """Find or build the compiled operator; once per process, failures are remembered too.

    Args:
        device_type: "cpu" or "cuda".
        sources: folders laid out like `kernels/`, of which the first that exists is used.
        namespace: name of the operators in `torch.ops`.

    Returns:
        What is used from now on, or why nothing can be; the reason is also logged, once.
    """
    with _LOCK:
        return _load_once(device_type, sources, namespace)


def describe_kernels() -> dict[str, str]:
    """Which operator is used on CPU and CUDA and why, and the compilers; builds what is missing."""
    lines = {device_type: str(load_kernel(device_type)) for device_type in FOLDERS}
    lines["C++ compiler"] = compiler_identity("cpu") or "none found"
    lines["CUDA compilers"] = compiler_identity("cuda") or "none found"
    return lines


def kernel_status() -> str:
    """The same as text, with the cache folder."""
    lines = {**describe_kernels(), "cache": str(cache_folder())}
    return "\n".join(f"{name}: {text}" for name, text in lines.items())


def cache_folder() -> Path:
    """`HF_DETR_KERNEL_CACHE`, or `hf_detr/kernels` in the user's cache folder."""
    if named := os.environ.get("HF_DETR_KERNEL_CACHE"):
        return Path(named).expanduser().absolute()
    caches = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser().absolute()
    return caches / "hf_detr" / "kernels"


def find_or_build(recipe: Recipe, cache: Path) -> tuple[str, Path]:
    """The library of a recipe, from the cache folder or built into it.

    Where the cache folder isn't safe or writable, this process builds for itself.

    Returns:
        "cache" or "built", and the library's path.

    Raises:
        KernelError: if it can't be built.
    """
    if platform.system() != "Linux":
        raise KernelError(f"it is compiled on Linux only, not on {platform.system()}")
    compiler = compiler_identity(recipe.device_type)
    with suppress(OSError):
        _check_owner(cache)
        if library := _find_entry(cache, recipe, compiler):
            return "cache", library
    try:
        with _locked(cache):
            # Another process may have built it while this one waited.
            if library := _find_entry(cache, recipe, compiler):
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
def _load_once(device_type: str, sources: tuple[Path, ...], namespace: str) -> KernelStatus:
    try:
        status = _load(device_type, sources, namespace)
    except (KernelError, OSError, RuntimeError) as error:
        status = KernelStatus(None, reason=" ".join(str(error).split()))
    # Without a GPU nothing becomes slower, so only the report mentions it.
    is_slower = device_type != "cuda" or torch.cuda.is_available()
    log = logger.warning if status.namespace is None and is_slower else logger.info
    log(f"hf_detr: compiled operator for {device_type}: {status}")
    return status


def _load(device_type: str, sources: tuple[Path, ...], namespace: str) -> KernelStatus:
    if device_type not in FOLDERS:
        raise KernelError(f"there is none for {device_type}")
    architectures = _cuda_architectures() if device_type == "cuda" else ()
    hub = os.environ.get("HF_DETR_HUB_KERNEL")
    if hub and (hub_namespace := _hub_namespace(hub)):
        return KernelStatus(hub_namespace, "hub")
    folder = next((folder for folder in sources if (folder / FOLDERS[device_type]).is_dir()), None)
    if folder is None:
        raise KernelError("its sources are missing")
    if device_type == "cuda":  # the CPU library defines the operators that the CUDA one implements
        cpu = load_kernel("cpu", sources, namespace)
        if cpu.namespace != namespace:
            raise KernelError(f"it needs the CPU library, which isn't used ({cpu.reason or 'Hub'})")
    recipe = Recipe(device_type, folder, namespace, architectures)
    source, library = find_or_build(recipe, cache_folder())
    torch.ops.load_library(library)
    return KernelStatus(namespace, source, library)


def _cuda_architectures() -> tuple[str, ...]:
    """Compute capabilities of the visible GPUs, lowest first."""
    if torch.version.cuda is None:
        raise KernelError(f"torch {torch.__version__} was built without CUDA")
    if not torch.cuda.is_available():
        raise KernelError("torch sees no GPU")
    devices = range(torch.cuda.device_count())
    found = {torch.cuda.get_device_capability(device) for device in devices}
    return tuple(f"{major}.{minor}" for major, minor in sorted(found))


def _hub_namespace(asked: str) -> str | None:
    """Name in `torch.ops` of a Hub kernel, "owner/name@version", from the package `kernels`.

    Setting the environment variable is the consent to run the kernel's code.
    """
    name, _, version = asked.partition("@")
    try:
        get_kernel = importlib.import_module("kernels").get_kernel
        return get_kernel(name, version=int(version or 0), trust_remote_code=True).ops.name
    except Exception as error:  # any error of the network, the Hub or the kernel's own code
        problem = f"{type(error).__name__}: {error}"
        logger.warning(f"hf_detr: HF_DETR_HUB_KERNEL={asked} can't be used: {problem}")
        return None


def _find_entry(folder: Path, recipe: Recipe, compiler: str | None) -> Path | None:
    """Library of a finished build by the given compiler, or by any if there is none here."""
    for entry in sorted(folder.glob(recipe.entry_name(compiler))):
        library = entry / LIBRARY
        try:
            _check_owner(entry)
            _check_owner(library)
            if (entry / CHECKSUM).read_text(encoding="utf-8") != digest_of(library.read_bytes()):
                raise OSError(f"{library} does not match its checksum")
            return library
        except OSError as error:
            logger.warning_once(f"hf_detr: {entry} is not used and will be built again: {error}")
    return None


def _check_owner(path: Path) -> None:
    """Refuse files that other users could have written: a library is code that will run."""
    info = path.stat()
    if info.st_uid not in (os.getuid(), 0):
        raise PermissionError(f"{path} belongs to another user")
    if info.st_mode & 0o022:
        raise PermissionError(f"other users may write to {path}")


def _build_entry(folder: Path, recipe: Recipe, compiler: str | None) -> Path:
    """Build in a temporary folder and rename it: a folder with the final name is complete."""
    for unfinished in folder.glob("*.tmp-*"):  # of killed builds, as this process holds the lock
        shutil.rmtree(unfinished)
    entry = folder / recipe.entry_name(compiler or "unknown")
    unfinished = Path(tempfile.mkdtemp(prefix=f"{recipe.name()}.tmp-", dir=folder))
    try:
        build_library(recipe, unfinished, folder / f"{recipe.name()}.log")
        shutil.rmtree(entry, ignore_errors=True)
        unfinished.rename(entry)
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)
    return entry / LIBRARY


def _locked(cache: Path) -> AbstractContextManager[FileLock]:
    """Be the only process that builds in the folder; the system frees locks of killed processes."""
    cache.mkdir(mode=0o755, parents=True, exist_ok=True)
    _check_owner(cache)
    lock = FileLock(cache / ".lock")
    try:
        return lock.acquire(timeout=0)
    except Timeout:
        logger.warning("hf_detr: waiting for another process's build of the operator")
        return lock.acquire(timeout=TIMEOUT)
