"""The installed package: a wheel has all that the code looks for beside itself."""

import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[1]
PARTS = ("hf_detr", "kernels", "hf_detr_command_line.py", "setup.cfg", "pyproject.toml")

USE = """
import sys, torch
from pathlib import Path
import hf_detr
from hf_detr.checkpoints.published_checkpoints import published_checkpoints
from hf_detr.layers.folded_backbone import KNOWN_PACKAGES
from hf_detr.ops.kernel_loader import SOURCES

installed = Path(sys.argv[1])
assert installed in Path(hf_detr.__file__).parents, hf_detr.__file__
sources = next(place for place in SOURCES if place.is_dir())
assert installed in sources.parents and list(sources.rglob("*.cu")), sources
assert hf_detr.__name__ in KNOWN_PACKAGES
assert published_checkpoints()
from hf_detr.plots.demo_page import EXAMPLE

assert installed in EXAMPLE.parents and EXAMPLE.is_file()
folder = hf_detr.embedded_model_folder()
assert installed in folder.parents
model = hf_detr.DeformableDetrForObjectDetection.from_pretrained(folder)
model.config.kernel = "torch"
assert model(torch.zeros(1, 3, 64, 64)).logits.isfinite().all()
"""


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What a wheel of the repository installs, in a folder of its own."""
    folder = tmp_path_factory.mktemp("wheel")
    source = folder / "source"  # setuptools leaves a build folder beside what it packs
    source.mkdir()
    ignored = shutil.ignore_patterns("__pycache__", "*.egg-info")
    for name in (*PARTS, "README.md", "LICENSE"):
        path = REPOSITORY / name
        if path.is_dir():
            shutil.copytree(path, source / name, ignore=ignored)
        else:
            shutil.copy(path, source)
    command = [sys.executable, "-m", "pip", "wheel", "--no-deps", "--no-build-isolation"]
    command += ["--no-index", "--wheel-dir", str(folder), str(source)]
    result = subprocess.run(command, capture_output=True, text=True)
    assert result.returncode == 0, result.stdout + result.stderr
    (wheel,) = folder.glob("*.whl")
    zipfile.ZipFile(wheel).extractall(folder / "installed")
    return folder / "installed"


def test_wheel_finds_its_data(installed: Path, tmp_path: Path) -> None:
    """Kernel sources, the embedded model and the table of checkpoints are in the wheel."""
    result = subprocess.run(
        [sys.executable, "-c", USE, str(installed)],
        env={**os.environ, "PYTHONPATH": str(installed)},
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert result.returncode == 0, result.stderr


def test_wheel_has_every_module(installed: Path) -> None:
    """setup.cfg lists packages by name; none is forgotten."""
    expected = {path.relative_to(REPOSITORY) for path in REPOSITORY.glob("hf_detr/**/*.py")}
    found = {path.relative_to(installed) for path in installed.glob("hf_detr/**/*.py")}
    assert expected <= found, expected - found
