"""Show what hf_detr finds on this machine, for users and for bug reports.

These are versions, devices, whether the compiled operator works and why not, folders and settings.
Without the compiled operator everything works, but slower, so that isn't a problem.
"""

import argparse
import json
import os
import platform
import sys
from importlib import metadata
from pathlib import Path
from typing import Any

from huggingface_hub import constants
from packaging.requirements import Requirement

from .options import add_json_option

PACKAGE = "hf_detr"
# Reported if the package isn't installed, so its requirements are unknown
MAIN_REQUIREMENTS = ("torch", "torchvision", "transformers", "timm", "huggingface-hub")


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the command's options."""
    add_json_option(parser)


def run(parsed: argparse.Namespace) -> int:
    """Print the diagnosis; return the exit status."""
    diagnosis = diagnose()
    problems = [f"PROBLEM: {problem}" for problem in diagnosis["problems"]]
    if parsed.json:
        print(json.dumps(diagnosis))
        print(*problems, sep="\n", end="\n" if problems else "", file=sys.stderr)
        return 1 if problems else 0
    for title, content in diagnosis.items():
        if title != "problems":
            print(title.replace("_", " "))
            print(*(f"  {name}: {value}" for name, value in content.items()), sep="\n")
    print(*problems or ["No problems found."], sep="\n")
    return 1 if problems else 0


def diagnose() -> dict[str, Any]:
    """Check packages, devices, the compiled operator, caches and registration.

    Builds the compiled operator if that is possible and not done yet.

    Returns:
        Sections, each a dictionary of texts, and `problems`, a list of what prevents hf_detr from
        working correctly.
    """
    from transformers import AutoConfig

    from ..data.result_cache import cache_folder as result_folder
    from ..models.variants import VARIANTS
    from ..ops.kernel_loader import PACKAGE_FOLDER, describe_kernels
    from ..ops.kernel_loader import cache_folder as kernel_cache_folder

    problems: list[str] = []
    needed = {PACKAGE: _version(PACKAGE) or "not installed"}
    optional: dict[str, str] = {}
    for requirement in _requirements():
        is_optional = "extra ==" in str(requirement.marker)
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
    variables = {k: v for k, v in sorted(os.environ.items()) if k.startswith("HF_DETR_")}
    if not is_registered and variables.get("HF_DETR_REGISTER") != "0":
        problems.append("the Auto classes of transformers don't give hf_detr's classes.")
    return {
        "system": {"python": platform.python_version(), "platform": platform.platform()},
        "packages": needed,
        "optional_packages": optional,
        "devices": _devices(),
        "operator": describe_kernels(),
        "folders": {
            "package": str(PACKAGE_FOLDER),
            "Hub cache": _folder(Path(constants.HF_HUB_CACHE)),
            "compiled operators": _folder(kernel_cache_folder()),
            "results of data checks": _folder(result_folder("checks")),
            "tables of annotations": _folder(result_folder("tables")),
        },
        "settings": {
            "offline": "yes, nothing is downloaded" if constants.HF_HUB_OFFLINE else "no",
            "Auto classes return": "hf_detr's classes" if is_registered else "other classes",
            **variables,
        },
        "problems": problems,
    }


def _requirements() -> list[Requirement]:
    """Return each requirement of hf_detr once: the required one if it is in an extra, too."""
    texts = (metadata.requires(PACKAGE) or []) if _version(PACKAGE) else MAIN_REQUIREMENTS
    first = {one.name: one for one in map(Requirement, reversed(texts))}
    return list(first.values())[::-1]


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
