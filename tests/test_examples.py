"""The example scripts run as the README says."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from hf_detr.compiled_attention import find_operators

from .some_data import entry, write_coco

REPOSITORY = Path(__file__).parents[1]


def run(*arguments: str | Path, **environment: str) -> subprocess.CompletedProcess:
    command = [sys.executable, *map(str, arguments)]
    return subprocess.run(
        command,
        cwd=REPOSITORY,
        env={**os.environ, "HF_HUB_OFFLINE": "1", **environment},
        capture_output=True,
        text=True,
    )


def test_detect_writes_a_picture(tmp_path: Path) -> None:
    """The README's main job: an image in, a picture of the same size with boxes out."""
    output = tmp_path / "sub" / "detections.png"
    result = run("examples/detect.py", "--output", output)
    assert result.returncode == 0, result.stderr
    assert "coat" in result.stdout and "6 detections drawn" in result.stdout
    photo = Image.open(REPOSITORY / "examples" / "images" / "garments.jpg")
    picture = Image.open(output)
    assert picture.size == photo.size
    assert picture.convert("RGB").tobytes() != photo.tobytes()


def test_detect_refuses_what_is_no_image(tmp_path: Path) -> None:
    """A text file ends the script with a sentence, not a traceback."""
    path = tmp_path / "note.txt"
    path.write_text("no image")
    result = run("examples/detect.py", "--image", path)
    assert result.returncode != 0
    assert "can't be read as an image" in result.stderr and "Traceback" not in result.stderr


def test_evaluate_is_the_command(tmp_path: Path) -> None:
    """The evaluation script hands arguments and exit status on, without a traceback."""
    file, _ = write_coco(tmp_path, [entry(1)])
    result = run("examples/evaluate.py", "--coco", file)
    assert result.returncode == 2
    assert "--images" in result.stderr and "Traceback" not in result.stderr


def test_draw_plots_writes_pictures(tmp_path: Path) -> None:
    """One command gives every picture of the model that comes along."""
    result = run("examples/draw_plots.py", "--output", tmp_path / "sub", "--colors", "64")
    assert result.returncode == 0, result.stderr
    names = ("detections", "sampling_overview", "sampling_encoder", "sampling_decoder")
    for name in names:
        with Image.open(tmp_path / "sub" / f"{name}.png") as picture:
            assert picture.width > 300


@pytest.mark.slow
def test_benchmark_runs() -> None:
    """The benchmark compares both sides and prints ratios, in its quickest setting."""
    result = run("examples/benchmark.py", "--quick")
    assert result.returncode == 0, result.stderr
    for part in ("loss + matcher", "image processor", "DeformableDetr resnet18, end", "ceiling"):
        assert part in result.stdout


@pytest.mark.slow
def test_export_benchmark_runs() -> None:
    """Protects the table of ONNX files: each is exported, checked and run beside torch."""
    pytest.importorskip("onnxruntime")
    result = run("examples/benchmark_export.py", "--quick", "--rounds", "1")
    assert result.returncode == 0, result.stderr
    for name in ("DETR", "Conditional DETR", "Deformable DETR"):
        assert f"| {name} |" in result.stdout


@pytest.mark.slow
def test_precision_benchmark_runs() -> None:
    """Protects the table of precisions: bfloat16 gives what float32 does, and both are timed."""
    result = run("examples/benchmark_precision.py", "--quick", "--rounds", "1")
    assert result.returncode == 0, result.stderr
    for name in ("Detr", "ConditionalDetr", "DeformableDetr"):
        assert f"| {name} |" in result.stdout


@pytest.mark.slow
def test_segmentation_benchmark_runs() -> None:
    """Post-processing and loss agree with transformers', and both are measured."""
    result = run("examples/benchmark_segmentation.py", "--quick")
    assert result.returncode == 0, result.stderr
    for part in ("panoptic, 30", "instance, 30", "semantic, 30", "MiB, resnet18"):
        assert part in result.stdout


@pytest.mark.slow
def test_operator_benchmark_runs() -> None:
    """All sides of the operator's benchmark agree, and it says who is how fast."""
    namespace, reason = find_operators("cpu")
    if namespace is None:
        pytest.skip(f"there is no compiled operator: {reason}")
    options = ("--quick", "--threads", "1", "--batch-sizes", "1")
    result = run("examples/benchmark_operator.py", *options)
    assert result.returncode == 0, result.stderr
    for part in ("encoder forward + backward", "decoder forward", "transformers", "peak memory"):
        assert part in result.stdout
