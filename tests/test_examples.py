"""Tests that the example scripts run."""

import importlib.util
import os
import subprocess
from pathlib import Path

import datasets
import numpy as np
import pytest
from PIL import Image
from transformers import AutoConfig, AutoModelForObjectDetection, pipeline

from hf_detr import embedded_model_folder

from .processes import run_python
from .some_data import entry, write_coco

REPOSITORY = Path(__file__).parents[1]


def run(script: str, *arguments: str | Path) -> subprocess.CompletedProcess[str]:
    """Run a script of the repository."""
    environment = {**os.environ, "HF_HUB_OFFLINE": "1"}
    return run_python(REPOSITORY / script, *arguments, folder=REPOSITORY, environment=environment)


def test_detect_draws_detections(tmp_path: Path) -> None:
    """The script writes an image of the same size with boxes."""
    output = tmp_path / "sub" / "detections.png"
    result = run("examples/detect.py", "--output", output)
    assert result.returncode == 0, result.stderr
    assert "coat" in result.stdout and "6 detections drawn" in result.stdout
    photo = Image.open(REPOSITORY / "examples" / "images" / "garments.jpg")
    drawn = Image.open(output)
    assert drawn.size == photo.size
    assert drawn.convert("RGB").tobytes() != photo.tobytes()


def test_detect_rejects_other_files(tmp_path: Path) -> None:
    """A text file gives an error message without a traceback."""
    path = tmp_path / "note.txt"
    path.write_text("not an image")
    result = run("examples/detect.py", "--image", path)
    assert result.returncode != 0
    assert "can't be read as an image" in result.stderr and "Traceback" not in result.stderr
    nowhere = "http://127.0.0.1:9/none.png"  # a port that nobody listens to
    result = run("examples/detect.py", "--image", nowhere)
    assert f"({nowhere!r}) can't be opened" in result.stderr and "Traceback" not in result.stderr


def test_fine_tune(tmp_path: Path) -> None:
    """Protects the one-file example: from a data set of `datasets` to a model for `pipeline`."""
    image = REPOSITORY / "examples" / "images" / "garments.jpg"
    found = pipeline("object-detection", model=str(embedded_model_folder()))(str(image))
    names = list(AutoConfig.from_pretrained(embedded_model_folder()).id2label.values())
    boxes = [list(map(float, one["box"].values())) for one in found]  # xmin, ymin, xmax, ymax
    objects = {"bbox": boxes, "category": [one["label"] for one in found]}
    features = datasets.Features(
        image=datasets.Image(),
        objects={
            "bbox": datasets.List(datasets.List(datasets.Value("float32"), 4)),
            "category": datasets.List(datasets.ClassLabel(names=names)),
        },
    )
    rows = {"image": [str(image)] * 4, "objects": [objects] * 4}
    split = datasets.Dataset.from_dict(rows, features=features)
    datasets.DatasetDict(train=split, test=split).save_to_disk(tmp_path / "data")
    options = ["--data", tmp_path / "data", "--box-format", "xyxy", "--epochs", "1", "--lr", "1e-6"]
    options += ["--model", embedded_model_folder(), "--output", tmp_path / "out"]
    options += ["--shortest-edge", "192", "--batch-size", "2", "--workers", "0"]
    result = run("examples/fine_tune.py", *options)
    assert result.returncode == 0, result.stderr
    # Its own detections at a learning rate of nearly 0 stay where they are.
    assert float(result.stdout.split("AP ")[1].split(",")[0]) > 0.5
    detect = pipeline("object-detection", model=str(tmp_path / "out"))
    assert {one["label"] for one in detect(str(image))} == {one["label"] for one in found}


@pytest.mark.slow
def test_train_with_trainer(tmp_path: Path) -> None:
    """transformers' Trainer gives COCO's metrics and a model that loads."""
    for seed, split in enumerate(("train", "val")):
        entries = [entry(1), entry(2, image_id=2)]
        write_coco(tmp_path / "data" / split, entries, seed=100 * seed)
    result = run(
        *("examples/train_with_trainer.py", "--data", tmp_path / "data", "--image_size", "64"),
        *("--output_dir", tmp_path / "trained", "--num_train_epochs", "1"),
        *("--per_device_train_batch_size", "1", "--gradient_accumulation_steps", "2"),
    )
    assert result.returncode == 0 and "'eval_AP50'" in result.stdout, result.stderr
    model = AutoModelForObjectDetection.from_pretrained(tmp_path / "trained")
    assert model.config.id2label == {0: "car", 1: "dog"} and not model.config.auxiliary_loss


def test_ray_actors_find_objects() -> None:
    """Protects the class for Ray's `map_batches`: rows in their order, failures in words."""
    path = REPOSITORY / "examples" / "predict_with_ray.py"
    spec = importlib.util.spec_from_file_location("predict_with_ray", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    image = (REPOSITORY / "examples" / "images" / "garments.jpg").read_bytes()
    batch = {
        "bytes": np.array([b"no image", image], dtype=object),
        "path": np.array(["a.txt", "b.jpg"], dtype=object),
    }
    rows = module.FindObjects(threshold=0.5)(batch)
    assert rows["file"] == ["a.txt", "b.jpg"] and rows["scores"][0] == []
    assert len(rows["scores"][1]) == len(rows["labels"][1]) == len(rows["boxes"][1]) == 6
    assert "cannot identify image" in rows["error"][0] and rows["error"][1] == ""


def test_draw_plots(tmp_path: Path) -> None:
    """The script writes all plots of the package's two models."""
    result = run("examples/draw_plots.py", "--output", tmp_path / "sub", "--colors", "64")
    assert result.returncode == 0, result.stderr
    names = ["detections", "sampling_overview", "sampling_encoder", "sampling_decoder"]
    names += ["attention_encoder", "attention_decoder", "attention_heads"]
    for name in names:
        with Image.open(tmp_path / "sub" / f"{name}.png") as plot:
            assert plot.width > 300
