"""The installed package: a wheel has all that the code looks for beside itself."""

import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

import hf_detr

from .hub_server import Hub, client_environment
from .some_data import entry, write_coco
from .tiny import tiny_config
from .waiting import wait_until

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
from hf_detr.plots.report import TEMPLATE

assert installed in TEMPLATE.parents and TEMPLATE.is_file()
assert installed in EXAMPLE.parents and EXAMPLE.is_file()
folder = hf_detr.embedded_model_folder()
assert installed in folder.parents
model = hf_detr.DeformableDetrForObjectDetection.from_pretrained(folder)
model.config.kernel = "torch"
assert model(torch.zeros(1, 3, 64, 64)).logits.isfinite().all()
folder = hf_detr.embedded_model_folder(attention=True)
assert installed in folder.parents
hf_detr.ConditionalDetrForObjectDetection.from_pretrained(folder)
"""

IN_TRANSFORMERS = """
import sys
import torch, transformers
from safetensors.torch import load_file

name, file = sys.argv[1:]
model = transformers.DeformableDetrForObjectDetection.from_pretrained(name)
processor = transformers.AutoImageProcessor.from_pretrained(name)
assert "hf_detr" not in sys.modules and model.config.id2label == {0: "car", 1: "dog"}
expected = load_file(file)
with torch.no_grad():
    output = model(torch.linspace(-1, 1, 3 * 96 * 96).reshape(1, 3, 96, 96))
torch.testing.assert_close(output.logits, expected["logits"], atol=1e-4, rtol=1e-4)
"""

TWO_COMMANDS = """
import sys
from hf_detr_command_line import main

model = "--model", sys.argv[1]
assert main(["evaluate", "--data", "data", *model]) == 0
assert main(["export", "model.onnx", *model, "--size", "96x96"]) == 0
"""

IN_HF_DETR = """
import sys
import hf_detr, torch
from safetensors.torch import save_file

model = hf_detr.DeformableDetrForObjectDetection.from_pretrained(sys.argv[1])
with torch.no_grad():
    output = model(torch.linspace(-1, 1, 3 * 96 * 96).reshape(1, 3, 96, 96))
save_file({"logits": output.logits}, sys.argv[2])
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
    """Kernel sources, the embedded models and the table of checkpoints are in the wheel."""
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


@pytest.mark.slow
def test_all_commands_of_a_wheel(installed: Path, tmp_path: Path) -> None:
    """What the README promises works in an empty folder, from a photo to a published model."""
    pytest.importorskip("onnxruntime")
    photo = shutil.copy(REPOSITORY / "examples" / "images" / "garments.jpg", tmp_path)
    entries = [entry(number, number) for number in range(1, 9)]
    for seed, split in enumerate(("train", "val")):
        write_coco(tmp_path / "data" / split, entries, num_images=8, seed=100 * seed)
    # Not the detector of the package: transformers drops the activations of its backbone.
    stages = {"two_stage": True, "with_box_refine": True, "two_stage_num_proposals": 20}
    config = tiny_config("deformable_detr", encoder_layers=1, decoder_layers=2, **stages)
    hf_detr.DeformableDetrForObjectDetection(config).save_pretrained(tmp_path / "start")
    processor = hf_detr.DeformableDetrImageProcessor(size={"shortest_edge": 96, "longest_edge": 96})
    processor.save_pretrained(tmp_path / "start")
    server = Hub()
    environment = client_environment(server.url, tmp_path / "home")
    environment |= {"PYTHONPATH": str(installed), "HF_TOKEN": "hf_owner", "OMP_NUM_THREADS": "1"}
    settings = {"env": environment, "cwd": tmp_path}

    def run(*arguments: str) -> str:
        command = [sys.executable, *arguments]
        result = subprocess.run(command, **settings, capture_output=True, text=True)
        assert result.returncode == 0, result.stdout + result.stderr
        return result.stdout

    command = "-m", "hf_detr"
    assert "coat" in run(*command, "predict", str(photo))
    assert "Training may start." in run(*command, "check", "--data", "data")
    training = [*command, "train", "--data", "data", "--small-data", "--epochs", "10"]
    training += ["--batch-size", "4", "--save-every", "1", "--evaluate-every", "5"]
    training += ["--model", "start", "--push-to", "garage"]
    with subprocess.Popen([sys.executable, *training], **settings) as process:
        saved = tmp_path / "trained" / "checkpoints" / "checkpoint-00000007"
        wait_until(saved.exists, process)
        process.kill()
    assert not (tmp_path / "trained" / "model").exists()
    run(*training, "--resume")
    losses = (tmp_path / "trained" / "losses.csv").read_text().split()
    assert [line.split(",")[0] for line in losses[1:]] == [str(step) for step in range(1, 21)]
    model = "trained/model"
    assert "AP50" in run("-c", TWO_COMMANDS, model)
    assert (tmp_path / "model.onnx").is_file()
    assert {"README.md", "model.safetensors", "curve.png"} <= {
        path.name for path in (tmp_path / model).iterdir()
    }
    run("-c", IN_HF_DETR, "tester/garage", "expected.safetensors")
    run("-c", IN_TRANSFORMERS, "tester/garage", "expected.safetensors")
