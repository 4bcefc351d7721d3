"""`hf-detr doctor`: show what hf_detr finds on this machine, for users and for bug reports."""

import argparse
import json
import os
import platform
import sys
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path

from huggingface_hub import constants
from packaging.requirements import Requirement

PACKAGE = "hf_detr"
# Reported if the package isn't installed, so its requirements are unknown
MAIN_REQUIREMENTS = ("torch", "torchvision", "transformers", "timm", "huggingface-hub")


@dataclass(frozen=True)
class Diagnosis:
    """The result of `diagnose`."""

    system: dict[str, str]
    packages: dict[str, str]
    optional_packages: dict[str, str]
    devices: dict[str, str]
    operator: dict[str, str]  # per device type: its source, or why it isn't used; compilers
    folders: dict[str, str]
    settings: dict[str, str]
    problems: tuple[str, ...]  # these prevent hf_detr from working correctly

    def text(self) -> str:
        """Return the diagnosis as text."""
        lines = []
        for title, content in asdict(self).items():
            if title != "problems":
                lines.append(title.replace("_", " "))
                lines += [f"  {name}: {value}" for name, value in content.items()]
        lines += [f"PROBLEM: {problem}" for problem in self.problems] or ["No problems found."]
        return "\n".join(lines)


def diagnose() -> Diagnosis:
    """Check packages, devices, the compiled operator, caches and registration.

    Builds the compiled operator if that is possible and not done yet. Without it everything works,
    but slower, so that isn't a problem.
    """
    from transformers import AutoConfig

    from ..data.check import cache_folder as check_cache_folder
    from ..models.variants import VARIANTS
    from ..ops.kernel_loader import PACKAGE_FOLDER, describe_kernels
    from ..ops.kernel_loader import cache_folder as kernel_cache_folder

    problems: list[str] = []
    needed: dict[str, str] = {}
    optional: dict[str, str] = {}
    for requirement, is_optional in _requirements():
        version = _version(requirement.name)
        wanted = f"{requirement.name}{requirement.specifier}"
        if version is None:
            text = "not installed"
        elif not requirement.specifier.contains(version, prereleases=True):
            text = f"{version}, but {wanted} is required"
        else:
            text = version
        (optional if is_optional else needed)[requirement.name] = text
        if text != version and not (is_optional and version is None):
            problems.append(f"{requirement.name}: {text}; pip install '{wanted}'.")
    is_registered = all(
        isinstance(AutoConfig.for_model(name), variant.config) for name, variant in VARIANTS.items()
    )
    registration = os.environ.get("HF_DETR_REGISTER", "1")
    if not is_registered and registration != "0":
        problems.append("the Auto classes of transformers don't give hf_detr's classes.")
    return Diagnosis(
        system={"python": platform.python_version(), "platform": platform.platform()},
        packages={PACKAGE: _version(PACKAGE) or "not installed", **needed},
        optional_packages=optional,
        devices=_devices(),
        operator=describe_kernels(),
        folders={
            "package": str(PACKAGE_FOLDER),
            "Hub cache": _folder(Path(constants.HF_HUB_CACHE)),
            "compiled operators": _folder(kernel_cache_folder()),
            "results of data checks": _folder(check_cache_folder()),
        },
        settings={
            "offline": "yes, nothing is downloaded" if constants.HF_HUB_OFFLINE else "no",
            "Auto classes return": "hf_detr's classes" if is_registered else "other classes",
            **{
                name: value
                for name, value in sorted(os.environ.items())
                if name.startswith("HF_DETR_")
            },
        },
        problems=tuple(problems),
    )


def _requirements() -> Iterator[tuple[Requirement, bool]]:
    """Give each requirement of hf_detr once, and whether it is optional."""
    try:
        texts = metadata.requires(PACKAGE) or []
    except metadata.PackageNotFoundError:
        texts = MAIN_REQUIREMENTS
    seen = set()
    for requirement in map(Requirement, texts):
        if requirement.name not in seen:
            seen.add(requirement.name)
            marker = str(requirement.marker or "")
            yield requirement, "extra ==" in marker


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _devices() -> dict[str, str]:
    import torch

    devices = {"cpu": f"{os.cpu_count()} cores, {torch.get_num_threads()} thread(s) of torch"}
    if not torch.cuda.is_available():
        devices["cuda"] = f"not found; torch was built for CUDA {torch.version.cuda or 'none'}"
    for index in range(torch.cuda.device_count()):
        properties = torch.cuda.get_device_properties(index)
        memory = properties.total_memory / 2**30
        devices[f"cuda:{index}"] = f"{properties.name}, {memory:.0f} GiB"
    if torch.backends.mps.is_available():
        devices["mps"] = "available"
    return devices


def _folder(path: Path) -> str:
    """Return a path, and whether it can't be written."""
    existing = next(folder for folder in (path, *path.parents) if folder.exists())
    return str(path) if os.access(existing, os.W_OK) else f"{path} (not writable)"


def parse(arguments: list[str], prog: str | None = None) -> argparse.Namespace:
    """Parse the arguments."""
    parser = argparse.ArgumentParser(
        prog=prog,
        description="Show versions, devices, whether the compiled operator works and why not, "
        "folders and settings.",
        epilog="exit status: 0 if hf_detr works; 1 if there are problems; 2 if the arguments are "
        "wrong. Without the compiled operator everything works, but slower.",
    )
    parser.add_argument(
        "--json",
        action="store_true",
        help="print the diagnosis as JSON, and nothing else on stdout",
    )
    return parser.parse_args(arguments)


def run(parsed: argparse.Namespace) -> int:
    """Print the diagnosis; return the exit status."""
    diagnosis = diagnose()
    print(json.dumps(asdict(diagnosis)) if parsed.json else diagnosis.text())
    if parsed.json:
        for problem in diagnosis.problems:
            print(f"PROBLEM: {problem}", file=sys.stderr)
    return 1 if diagnosis.problems else 0
