"""Tests `hf-detr train`: resuming, several processes and nodes, accumulation and results."""

import csv
import json
import os
import re
import shutil
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
import transformers
from datasets import IterableDataset
from huggingface_hub import ModelCard
from PIL import Image
from safetensors.torch import load_file, save_file
from torch.testing import assert_close
from transformers import AutoModelForObjectDetection, pipeline

import hf_detr
from hf_detr.data.formats import DataArguments
from hf_detr.models.variants import VARIANTS
from hf_detr.training.card import base_model
from hf_detr.training.checkpoint import load_newest_checkpoint, save_checkpoint
from hf_detr.training.options import TrainingOptions
from hf_detr.training.plan import MicroBatch, plan_epoch
from hf_detr.training.train import make_accelerator
from hf_detr.training.trainer import Training
from hf_detr.training.validation import validate
from hf_detr_command_line import main

from ..checkpoints.test_model_card import check_metadata, code_blocks, run_block
from ..processes import run_python, start_python
from ..tiny import NO_DROPOUT, tiny_config
from ..waiting import wait_until

REPOSITORY = Path(__file__).parents[2]
ARCHITECTURE = {
    "model_type": "conditional_detr",
    "backbone": "test_resnet",
    "d_model": 32,
    "encoder_layers": 1,
    "decoder_layers": 2,
    "encoder_attention_heads": 2,
    "decoder_attention_heads": 2,
    "encoder_ffn_dim": 32,
    "decoder_ffn_dim": 32,
    "num_queries": 6,
    "preprocessing": {"size": {"shortest_edge": 64, "longest_edge": 107}},
}
NAMES = {0: "red", 1: "green"}
# The last of three steps has one image, so one of two processes has none.
NUM_IMAGES = 9


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Data with colored rectangles, every third image without any, and two architectures."""
    folder = tmp_path_factory.mktemp("example")
    rng = np.random.default_rng(0)
    for split in ("train", "val"):
        (folder / "data" / split / "images").mkdir(parents=True)
        images, annotations = [], []
        for number in range(NUM_IMAGES):
            pixels = rng.integers(0, 60, (64, 64, 3), dtype=np.uint8)
            for _ in range(number % 3):
                x, y, w, h = (int(v) for v in rng.integers(12, 28, 4))
                kind = int(rng.integers(2))
                pixels[y : y + h, x : x + w, kind] = 220
                entry = {"id": len(annotations) + 1, "image_id": number, "category_id": kind}
                annotations.append({**entry, "bbox": [x, y, w, h], "area": w * h, "iscrowd": 0})
            name = f"{number}.png"
            Image.fromarray(pixels).save(folder / "data" / split / "images" / name)
            images.append({"id": number, "file_name": name, "width": 64, "height": 64})
        categories = [{"id": 0, "name": "red"}, {"id": 1, "name": "green"}]
        content = {"images": images, "annotations": annotations, "categories": categories}
        (folder / "data" / split / "annotations.json").write_text(json.dumps(content))
    (folder / "model.json").write_text(json.dumps(ARCHITECTURE))
    (folder / "exact.json").write_text(json.dumps({**ARCHITECTURE, **NO_DROPOUT}))
    return folder


def command(folder: Path, output: str, *options: str, model: str = "model.json") -> list[str]:
    """Arguments of a training with steps of four images."""
    arguments = {
        "data": folder / "data",
        "model": folder / model,
        "output": folder / output,
        "batch_size": 4,
        "epochs": 2,
        "workers": 0,
        "lr": 1e-3,
    }
    given = [text for name, value in arguments.items() for text in (f"--{name}", str(value))]
    return ["-m", "hf_detr", "train", *given, *options]


def environment() -> dict[str, str]:
    """Settings of the subprocesses: this checkout, offline, one thread."""
    paths = os.pathsep.join([str(REPOSITORY), os.environ.get("PYTHONPATH", "")])
    return {**os.environ, "PYTHONPATH": paths, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}


def run(*arguments: str) -> str:
    """Run Python and return its output."""
    result = run_python(*arguments, folder=REPOSITORY, environment=environment())
    assert result.returncode == 0, result.stderr[-3000:]
    return result.stdout + result.stderr


def train_here(*arguments: str) -> int:
    """Run the same arguments in this process; return the exit status."""
    assert arguments[:2] == ("-m", "hf_detr")
    try:
        return main(list(arguments[2:]))
    except SystemExit as ended:  # of wrong arguments
        return ended.code


def losses(output: Path) -> list[tuple[int, float]]:
    """Steps and losses of a training."""
    with (output / "losses.csv").open() as lines:
        return [(int(row["step"]), float(row["loss"])) for row in csv.DictReader(lines)]


@pytest.fixture
def small(folder: Path, tmp_path: Path) -> dict[str, Any]:
    """Arguments of `hf_detr.train` that fine-tune a small model, from the images in two objects."""
    config = tiny_config("deformable_detr", num_labels=2, num_queries=6, id2label=NAMES)
    hf_detr.DeformableDetrForObjectDetection(config).save_pretrained(tmp_path / "start")
    size = {"shortest_edge": 64, "longest_edge": 64}
    hf_detr.DeformableDetrImageProcessor(size=size).save_pretrained(tmp_path / "start")
    data = hf_detr.read_splits(folder / "data")
    given = {"model": tmp_path / "start", "data": data, "output": tmp_path / "trained"}
    return {**given, "batch_size": 4, "workers": 0, "epochs": 4, "lr": 1e-12}


def test_training_in_python(
    small: dict[str, Any], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    """A loaded model trains with dropout, says how few steps it has, and stops when it stalls."""
    modes = []
    take_step = Training.take_step

    def watched(self: Training, *arguments: Any) -> float | None:
        modes.append(self.model.training)
        return take_step(self, *arguments)

    monkeypatch.setattr(Training, "take_step", watched)
    result = hf_detr.train(**small, patience=2, metric="AR_100")
    assert modes == [True] * 9  # three evaluations, after three steps each
    assert [entry["epoch"] for entry in result.history] == [1, 2, 3]
    assert result.metrics == result.history[0] and result.folder == small["output"] / "model"
    AutoModelForObjectDetection.from_pretrained(result.folder)
    shown = capsys.readouterr().err
    assert "12 steps: 4 epochs of 3, with 9 images in batches of 4, evaluated on 9 image" in shown
    assert "These are few steps: fine-tuning usually needs at least" in shown
    assert "Stopped after 9 of 12 steps: AR_100 wasn't better in 2 evaluations." in shown
    assert "class  objects" in shown and "-1.0" not in shown
    assert "own data, 9 images" in (result.folder / "README.md").read_text()
    assert [data.transform for data in small["data"]] == [None, None]
    with pytest.raises(ValueError, match="contains a training"):
        hf_detr.train(**small)


def stream_of(data: hf_detr.DetectionDataset) -> IterableDataset:
    """The rows of a data set in two shards."""
    truth = data.ground_truth()

    def rows(shards: list[list[int]]) -> Iterator[dict[str, Any]]:
        for image in (truth["images"][number] for shard in shards for number in shard):
            own = [one for one in truth["annotations"] if one["image_id"] == image["id"]]
            objects = [{"bbox": one["bbox"], "category": one["category_id"]} for one in own]
            yield {"image": Path(image["file_name"]).read_bytes(), "objects": objects}

    numbers = list(range(NUM_IMAGES))
    return IterableDataset.from_generator(rows, gen_kwargs={"shards": [numbers[:4], numbers[4:]]})


def test_options_of_data(
    small: dict[str, Any], folder: Path, capsys: pytest.CaptureFixture
) -> None:
    """`val_fraction` and the other options of data can be given as those of the training."""
    data = hf_detr.read_data(folder / "data")
    hf_detr.train(**{**small, "data": data, "epochs": 1}, val_fraction=0.25)
    number = round(0.25 * len(data))
    said = capsys.readouterr().err
    assert f"with {len(data) - number} images" in said and f"evaluated on {number} images" in said


def test_checked_data_stay_the_same_object(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What `check` found is kept: looking for it again lists folders of many images."""
    data = DataArguments(str(folder / "data"))
    seen = []

    def prepare(model: Any, arguments: DataArguments, *others: Any) -> None:
        seen.append(arguments)
        raise KeyboardInterrupt

    monkeypatch.setattr("hf_detr.training.train.prepare", prepare)
    with pytest.raises(KeyboardInterrupt):
        hf_detr.train(None, data)
    assert seen[0] is data


def test_number_of_queries(small: dict[str, Any]) -> None:
    """More objects than queries are learned with more queries, which the saved model keeps."""
    result = hf_detr.train(**{**small, "epochs": 1}, num_queries=9)
    model = hf_detr.DeformableDetrForObjectDetection.from_pretrained(result.folder)
    assert model.config.num_queries == len(model.model.query_position_embeddings.weight) == 9


@pytest.mark.parametrize("workers", [0, 1])
def test_training_on_a_stream(
    small: dict[str, Any],
    workers: int,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture,
) -> None:
    """A stream is trained on and resumed exactly, in the middle of an epoch."""
    train, val = map(stream_of, small["data"])
    data = DataArguments((train, val), names=NAMES, box_format="coco_xywh")
    given = {**small, "data": data, "epochs": 2, "lr": 1e-3, "workers": workers, "save_every": 1}
    whole = hf_detr.train(**given)
    assert "6 steps: 2 epochs of 3, with 9 images in batches of 4" in capsys.readouterr().err
    take_step = Training.take_step

    def interrupted(self: Training, *arguments: Any) -> float | None:
        if self.step == 5:
            raise KeyboardInterrupt
        return take_step(self, *arguments)

    output = small["output"].with_name("interrupted")
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(Training, "take_step", interrupted)
        hf_detr.train(**{**given, "output": output})
    options = load_newest_checkpoint(output / "checkpoints").state["options"]
    assert (options["processes"], options["images"]) == (1, 9)
    result = hf_detr.train(**{**given, "output": output}, resume=True)
    assert "Resuming from" in capsys.readouterr().err and losses(output) == losses(small["output"])
    assert result.history == whole.history
    name = "model.safetensors"
    assert (result.folder / name).read_bytes() == (whole.folder / name).read_bytes()


def test_tiles_of_large_images(
    small: dict[str, Any], folder: Path, capsys: pytest.CaptureFixture
) -> None:
    """Tiles are the examples, evaluations join theirs, and a training is resumed exactly."""
    given = {**small, "batch_size": 12, "epochs": 2, "lr": 1e-3, "tiles": 40, "overlap": 0.25}
    whole = hf_detr.train(**given)
    shown = capsys.readouterr().err
    assert "6 steps: 2 epochs of 3, with 36 images in batches of 12, evaluated on 9 image" in shown
    model = AutoModelForObjectDetection.from_pretrained(whole.folder)
    processor = hf_detr.DeformableDetrImageProcessor.from_pretrained(whole.folder)
    val_data = small["data"][1]
    expected = hf_detr.evaluate(model, processor, val_data, 2, tiles=40, overlap=0.25)
    found = {name: value for name, value in whole.metrics.items() if name not in ("epoch", "step")}
    assert found == expected
    output = small["output"].with_name("again")
    shutil.copytree(small["output"] / "checkpoints", output / "checkpoints")
    shutil.rmtree(output / "checkpoints" / "checkpoint-00000006")
    with pytest.raises(ValueError, match="tiles was 40, is 48"):
        hf_detr.train(**{**given, "output": output, "tiles": 48}, resume=True)
    result = hf_detr.train(**{**given, "output": output}, resume=True)
    assert result.history == whole.history
    with pytest.raises(ValueError, match="A stream can't be cut into --tiles"):
        streams = tuple(map(stream_of, small["data"]))
        data = DataArguments(streams, names=NAMES, box_format="coco_xywh")
        hf_detr.train(**{**given, "output": output / "other", "data": data})
    options = "--tiles", "40", "--overlap", "0.25", "--epochs", "1", "--overfit", "8"
    assert train_here(*command(folder, "tiles", *options)) == 1
    shown = capsys.readouterr().err
    assert "with 8 images in batches of 4" in shown and "NOT healthy: after 2 steps" in shown


def test_health_check_on_a_stream(small: dict[str, Any], folder: Path) -> None:
    """Overfitting takes the first rows, and small data need the numbers of their objects."""
    train, val = map(stream_of, small["data"])
    data = DataArguments((train, val), names=NAMES, box_format="coco_xywh")
    given = {**small, "data": data, "epochs": 1, "model": folder / "model.json"}
    with pytest.raises(ValueError, match="NOT healthy: after 1 steps"):
        hf_detr.train(**given, overfit=2, small_data=True)


@pytest.mark.parametrize("more", [{"lora": 2}, {"freeze": ["backbone", "decoder"]}])
def test_parts_of_a_model_are_trained(small: dict[str, Any], more: dict[str, Any]) -> None:
    """With LoRA or frozen parts the other weights change, and the model has its usual names."""
    before = load_file(small["model"] / "model.safetensors")
    result = hf_detr.train(**{**small, "epochs": 1, "lr": 1e-3}, **more)
    after = load_file(result.folder / "model.safetensors")
    assert before.keys() == after.keys()
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed and not any("backbone" in name for name in changed)
    layers = any(".decoder.layers." in name for name in changed)
    assert layers == ("lora" in more)


def test_table_transformer_is_fine_tuned(small: dict[str, Any]) -> None:
    """From files as of version 1.1 to files that plain transformers runs with its own processor."""
    start = small["model"]
    shutil.rmtree(start)
    config = tiny_config("table-transformer", id2label={0: "table", 1: "red"})
    hf_detr.TableTransformerForObjectDetection(config).save_pretrained(start)
    theirs = transformers.DetrImageProcessor
    theirs(size={"longest_edge": 64}).save_pretrained(start)
    result = hf_detr.train(**{**small, "epochs": 1, "lr": 1e-3}, small_data=True)
    ours = AutoModelForObjectDetection.from_pretrained(result.folder).eval()
    assert type(ours) is hf_detr.TableTransformerForObjectDetection
    assert ours.config.id2label == NAMES
    peer = transformers.TableTransformerForObjectDetection.from_pretrained(result.folder)
    inputs = theirs.from_pretrained(result.folder)(
        Image.new("RGB", (48, 32), "red"), return_tensors="pt"
    )
    assert inputs["pixel_values"].shape[-1] == 64
    with torch.no_grad():
        assert_close(ours(**inputs).logits, peer(**inputs).logits, atol=1e-4, rtol=0)


def test_dino_is_fine_tuned(small: dict[str, Any], capsys: pytest.CaptureFixture) -> None:
    """Known classes keep the embeddings that denoising starts from, in files with all weights."""
    start = small["model"]
    shutil.rmtree(start)
    names = {0: "table", 1: "red", 2: "car"}
    config = tiny_config("dino_detr", num_labels=3, id2label=names)
    model = hf_detr.DinoDetrForObjectDetection(config)
    model.save_pretrained(start)
    size = {"shortest_edge": 64, "longest_edge": 64}
    hf_detr.DinoDetrImageProcessor(size=size).save_pretrained(start)
    result = hf_detr.train(**{**small, "epochs": 1})
    assert "denois" not in capsys.readouterr().err  # no weight is missing or new
    tuned, info = hf_detr.DinoDetrForObjectDetection.from_pretrained(
        result.folder, output_loading_info=True
    )
    assert not any(info.values()), info
    assert tuned.config.id2label == NAMES and tuned.config.num_denoising_queries == 4
    red = [label for label, name in NAMES.items() if name == "red"]
    before = model.model.denoising.label_embeddings.weight[1:2]
    assert_close(tuned.model.denoising.label_embeddings.weight[red], before, atol=1e-6, rtol=0)


def test_given_model(small: dict[str, Any]) -> None:
    """A model that is an object is trained itself; its classes have to be those of the data."""
    model = AutoModelForObjectDetection.from_pretrained(small.pop("model"))
    processor = hf_detr.DeformableDetrImageProcessor(size={"height": 64, "width": 64})
    weights = small["output"].with_name("weights.pth")
    weights.touch()
    for wrong, more, error, message in (
        (model, {}, TypeError, "give its image processor too"),
        (small["data"][0], {}, TypeError, "The model is a DetectionDataset; expected a name"),
        (torch.nn.Linear(1, 1), {}, TypeError, "a Linear of torch.* expected a detector of hf_"),
        (model, {"backbone_weights": weights}, ValueError, "is for a new model by its type"),
        (model, {"processor": processor}, ValueError, "distorts images; set its shortest_edge"),
    ):
        with pytest.raises(error, match=message):
            hf_detr.train(wrong, **small, **more)
    processor = hf_detr.DeformableDetrImageProcessor(size={"shortest_edge": 64})
    model.config.id2label = {0: "blue", 1: "green"}
    with pytest.raises(ValueError, match="The model's classes are {0: 'blue'"):
        hf_detr.train(model, **small, processor=processor)
    model.config.id2label = NAMES
    result = hf_detr.train(model, **{**small, "epochs": 1}, processor=processor)
    assert result.metrics["step"] == 3


def test_repeated_images_are_not_reported(
    small: dict[str, Any], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    """The report's loss leaves out the image that a process without one repeats."""

    def reported(output: str) -> list[str]:
        hf_detr.train(**{**small, "epochs": 1, "output": small["output"].with_name(output)})
        return re.findall(r"Loss .*summed over layers", capsys.readouterr().err)

    def with_repeated(*given: Any, **more: Any) -> list[list[MicroBatch]]:
        return [[*parts, MicroBatch([2], counts=False)] for parts in plan_epoch(*given, **more)]

    expected = reported("usual")
    monkeypatch.setattr("hf_detr.training.trainer.plan_epoch", with_repeated)
    assert len(expected) == 1 and reported("repeated") == expected


def test_gradients_that_are_not_clipped(
    small: dict[str, Any], capsys: pytest.CaptureFixture
) -> None:
    """An infinite norm trains, and both options and report can be written."""
    hf_detr.train(**{**small, "epochs": 1, "lr": 1e-4}, max_grad_norm=float("inf"))
    assert "Clipped at inf in 0% of 3 steps" in capsys.readouterr().err
    hf_detr.train(**{**small, "epochs": 1, "lr": 1e-4}, max_grad_norm=float("inf"), resume=True)
    before = load_file(small["model"] / "model.safetensors")
    after = load_file(small["output"] / "model" / "model.safetensors")
    assert all(value.isfinite().all() for value in after.values())
    assert any(not torch.equal(before[name], after[name]) for name in before)


@pytest.mark.parametrize("names", [NAMES, {0: "Red", 1: "blue"}])
def test_new_classes(
    small: dict[str, Any], names: dict[int, str], capsys: pytest.CaptureFixture
) -> None:
    """Names say which classes are new; with small data their heads then learn ten times faster."""
    config = json.loads((small["model"] / "config.json").read_text())
    config |= {"id2label": names, "label2id": {name: label for label, name in names.items()}}
    (small["model"] / "config.json").write_text(json.dumps(config))
    result = hf_detr.train(**{**small, "epochs": 1}, small_data=True)
    is_new = names != NAMES
    assert ("new to the model: green." in capsys.readouterr().err) == is_new
    options = load_newest_checkpoint(small["output"] / "checkpoints").state["options"]
    assert options["class_factor"] == (10 if is_new else 1)
    assert AutoModelForObjectDetection.from_pretrained(result.folder).config.id2label == NAMES


def test_own_transform(small: dict[str, Any]) -> None:
    """A transform that was set on the training data is used instead of the usual augmentation."""
    sizes = []

    def own(image: Any, target: Any) -> Any:
        sizes.append(tuple(image.shape[1:]))
        return hf_detr.make_evaluation_transform(64)(image, target)

    small["data"][0].set_transform(own)
    with pytest.raises(ValueError, match="a transform of their own; omit it or no_augmentation"):
        hf_detr.train(**{**small, "no_augmentation": True})
    with pytest.raises(ValueError, match="a transform of their own; omit it or crop"):
        hf_detr.train(**{**small, "crop": 0.0})
    hf_detr.train(**{**small, "epochs": 1})
    assert sizes == [(64, 64)] * 9


def test_metric_without_objects(small: dict[str, Any], capsys: pytest.CaptureFixture) -> None:
    """The last weights are kept if the metric can't be computed, and a message says so."""
    given = {**small, "epochs": 2, "metric": "AP_large", "image_size": 32, "patience": 1}
    result = hf_detr.train(**given)
    assert result.metrics == result.history[1] and result.metrics["AP_large"] == -1
    message = "The validation data have no objects for AP_large"
    assert capsys.readouterr().err.count(message) == 1


def test_training_of_an_earlier_version_is_resumed(
    small: dict[str, Any], capsys: pytest.CaptureFixture
) -> None:
    """Options that its checkpoint doesn't know count as neutral, other values are refused."""
    given = {**small, "epochs": 1, "class_factor": 1.0}
    hf_detr.train(**given)
    newest = load_newest_checkpoint(small["output"] / "checkpoints")
    state = newest.state
    for name in ("class_factor", "patience", "classes", "val_images"):
        del state["options"][name]
    save_checkpoint(small["output"] / "checkpoints", newest.step, newest.tensors, state)
    with pytest.raises(ValueError, match=r"class_factor was 1.0, is 10.0\. Use the old values"):
        hf_detr.train(**{**given, "class_factor": 10.0}, resume=True)
    hf_detr.train(**given, resume=True)
    assert f"Resuming from {newest.folder}." in capsys.readouterr().err


def test_other_data_are_not_resumed_with(small: dict[str, Any], folder: Path) -> None:
    """Other names of as many classes, or other images for validation, give another result."""
    given = {**small, "epochs": 1}
    hf_detr.train(**given)
    options = load_newest_checkpoint(small["output"] / "checkpoints").state["options"]
    assert (options["classes"], options["val_images"]) == (["red", "green"], NUM_IMAGES)
    assert "| classes |" not in (small["output"] / "model" / "README.md").read_text()
    train, val = small["data"]
    with pytest.raises(ValueError, match="resume: val_images was 9, is 5"):
        hf_detr.train(**{**given, "data": (train, val.first(5))}, resume=True)
    renamed = shutil.copytree(folder / "data", small["output"].with_name("renamed"))
    for file in renamed.rglob("annotations.json"):
        file.write_text(file.read_text().replace('"red"', '"blue"'))
    with pytest.raises(ValueError, match="resume: class 0 was 'red', is 'blue'"):
        hf_detr.train(**{**given, "data": renamed}, resume=True)


def test_best_checkpoint_is_lost(
    small: dict[str, Any], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    """The model, the card and the result are of the next best one; a warning says why."""
    values = iter([0.5, 0.3, 0.4])
    monkeypatch.setattr(
        "hf_detr.training.trainer.validate",
        lambda *given: {**validate(*given), "AP": next(values)},
    )
    take_step, lost = Training.take_step, small["output"] / "checkpoints" / "checkpoint-00000003"

    def without_best(self: Training, *arguments: Any) -> float | None:
        shutil.rmtree(lost, ignore_errors=True)
        return take_step(self, *arguments)

    monkeypatch.setattr(Training, "take_step", without_best)
    monkeypatch.setattr("hf_detr.training.train.needs_hf_detr", lambda model: "it is new.")
    with pytest.warns(UserWarning, match=f"skipped: the checkpoint {lost} is corrupted: .*read"):
        result = hf_detr.train(**{**small, "epochs": 3})
    assert (result.metrics["step"], result.metrics["AP"]) == (9, 0.4)
    expected = f"Saved the best model (step 9) in {result.folder}. Load it with hf_detr: it is new."
    assert expected in capsys.readouterr().out
    assert "after 3 epochs (9 steps)" in (result.folder / "README.md").read_text()


def test_second_training_in_a_process(tmp_path: Path) -> None:
    """Another precision takes effect, which Accelerate would keep or refuse to change."""
    for precision in ("no", "bf16", "no"):
        made = make_accelerator(TrainingOptions(precision=precision), tmp_path)
        assert made.mixed_precision == precision


@pytest.mark.parametrize("name", ["embedded", "detr", "/tmp/no/folder", "DetrForObjectDetection"])
def test_base_model_of_card(name: str) -> None:
    """Only names on the Hub are a card's base model."""
    assert base_model(name) is None and base_model("facebook/detr") == "facebook/detr"


@pytest.fixture(scope="module")
def whole(folder: Path) -> Path:
    """An uninterrupted training with dropout, averages, augmentation and a query group."""
    run(*command(folder, "whole", "--ema", "0.9", "--query_groups", "1"))
    return folder / "whole"


@pytest.mark.slow
def test_result_is_complete(whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The output has a model that loads, a card with curve and samples, and losses."""
    assert [step for step, _ in losses(whole)] == [1, 2, 3, 4, 5, 6]
    model = AutoModelForObjectDetection.from_pretrained(whole / "model")
    assert model.config.id2label == {0: "red", 1: "green"} and not model.config.auxiliary_loss
    detector = pipeline("object-detection", model=str(whole / "model"))
    assert isinstance(detector(str(REPOSITORY / "examples" / "images" / "coffee.jpg")), list)
    card = ModelCard.load(whole / "model" / "README.md")
    check_metadata(card)
    assert {result.metric_name for result in card.data.eval_results} >= {"AP", "AP50"}
    for part in ("| AP50 |", "| green |", "curve.png", "samples.png", "| lr |"):
        assert part in card.text
    shutil.copy(REPOSITORY / "examples" / "images" / "coffee.jpg", tmp_path / "image.jpg")
    monkeypatch.chdir(tmp_path)
    for block in code_blocks(card)[0]:
        run_block(block)
    for image in ("curve.png", "samples.png"):
        with Image.open(whole / "model" / image) as opened:
            assert opened.size[0] > 300
    checkpoints = sorted((whole / "checkpoints").iterdir())
    assert not list((whole / "checkpoints").rglob("*.p*kl*")) and len(checkpoints) >= 2
    AutoModelForObjectDetection.from_pretrained(checkpoints[-1])


def kill_when(arguments: list[str], condition: Callable[[], bool]) -> None:
    """Start a training and kill it with SIGKILL when the condition is true."""
    nowhere = {"output": Path(os.devnull), "errors": Path(os.devnull)}
    process = start_python(*arguments, folder=REPOSITORY, environment=environment(), **nowhere)
    try:
        wait_until(lambda: condition() or not process.is_alive(), interval=0.0005)
        assert process.is_alive(), "the training ended too early"
    finally:
        process.kill()
        process.join()


@pytest.mark.slow
def test_killed_training_is_resumed_exactly(folder: Path, whole: Path) -> None:
    """After kills in a step, an evaluation and a checkpoint, the result is the same bit for bit.

    The tests of checkpoints kill at more points.
    """
    output = folder / "killed"
    options = command(folder, "killed", "--ema", "0.9", "--query_groups", "1", "--save_every", "1")
    log, checkpoints = output / "losses.csv", output / "checkpoints"
    # The first kill is in a step, after the previous step was saved.
    kill_when(options, lambda: (checkpoints / "checkpoint-00000002").exists())
    assert losses(output) == losses(whole)[: len(losses(output))]

    def is_saving() -> bool:
        later = log.read_text().count("\n") >= 5
        return later and any(checkpoints.glob(".unfinished-*/*"))

    # The second kill is in the first epoch's evaluation, which must be repeated.
    kill_when([*options, "--resume"], lambda: log.read_text().count("\n") >= 4)
    kill_when([*options, "--resume"], is_saving)
    assert not (checkpoints / "checkpoint-00000006").exists()
    run(*options, "--resume")
    assert losses(output) == losses(whole)
    ends = [load_newest_checkpoint(one / "checkpoints") for one in (output, whole)]
    assert (
        ends[0].state["history"] == ends[1].state["history"] and len(ends[0].state["history"]) == 2
    )
    for name in ("model.safetensors", "config.json", "preprocessor_config.json"):
        assert (output / "model" / name).read_bytes() == (whole / "model" / name).read_bytes()


@pytest.mark.slow
def test_other_options_are_rejected(
    folder: Path, whole: Path, capsys: pytest.CaptureFixture
) -> None:
    """Other options to resume, a training to overwrite, impossible batches: one line each."""
    for options, message in (
        (("--resume", "--ema", "0.8"), "ema was 0.9, is 0.8"),
        (("--ema", "0.9"), "contains a training; use --resume"),
        (("--output", str(folder / "no"), "--panoptic"), "has no panoptic data"),
    ):
        assert train_here(*command(folder, "whole", *options)) in (1, 2)
        shown = capsys.readouterr().err
        assert message in shown and "Traceback" not in shown


@pytest.fixture(scope="module")
def on_one_process(folder: Path) -> Path:
    """A training without dropout, with one image per forward pass."""
    exact = command(folder, "one", "--micro_batch_size", "1", "--epochs", "1", model="exact.json")
    assert train_here(*exact) == 0
    return folder / "one"


def assert_same_training(output: Path, other: Path) -> None:
    """Check equal losses (relative 1e-4) and weights (1e-4, with learning rates up to 1e-3)."""
    (steps, got), (_, expected) = (zip(*losses(o), strict=True) for o in (output, other))
    assert steps == (1, 2, 3)
    assert_close(torch.tensor(got), torch.tensor(expected), atol=0, rtol=1e-4)
    name = "model/model.safetensors"
    assert_close(load_file(output / name), load_file(other / name), atol=1e-4, rtol=1e-3)


@pytest.mark.slow
def test_two_processes_train_as_one(folder: Path, on_one_process: Path) -> None:
    """Two processes give the same weights as one, also after resuming.

    Some images have no objects, and one process has no image in the last step.
    """
    given = ("--micro_batch_size", "1", "--epochs", "1", "--save_every", "1")
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    options = [*launcher, *command(folder, "two", *given, model="exact.json")]
    run(*options)
    assert_same_training(folder / "two", on_one_process)
    shutil.rmtree(folder / "two" / "checkpoints" / "checkpoint-00000003")
    shown = run(*options, "--resume")
    assert "Resuming from" in shown and "00000002" in shown
    assert_same_training(folder / "two", on_one_process)


@pytest.mark.slow
def test_two_nodes_train_as_one(folder: Path, on_one_process: Path) -> None:
    """The SLURM script, with commands of SLURM that start both nodes here, gives the same weights.

    Two processes on each node, one image each; in the last step three of them have none.
    """
    commands = {
        "scontrol": "echo localhost",
        "srun": '[ "$1" = --kill-on-bad-exit ] && shift; '
        'pids=(); for node in 0 1; do "$@" & pids+=($!); done; wait "${pids[@]}"',
    }
    (folder / "slurm").mkdir()
    for name, script in commands.items():
        (folder / "slurm" / name).write_text(f"#!/bin/bash\n{script}\n")
        (folder / "slurm" / name).chmod(0o755)
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    paths = [str(folder / "slurm"), str(Path(sys.executable).parent), os.environ["PATH"]]
    job = {"PATH": os.pathsep.join(paths), "MASTER_PORT": str(port), "PROCESSES_PER_NODE": "2"}
    job |= {"SLURM_NNODES": "2", "SLURM_JOB_ID": "7", "SLURM_JOB_NODELIST": "localhost"}
    given = command(folder, "nodes", "--epochs", "1", model="exact.json")
    result = subprocess.run(
        ["bash", str(REPOSITORY / "examples" / "train.slurm"), *given[3:]],
        env={**environment(), **job},
        capture_output=True,
        text=True,
    )
    assert result.returncode == 0, result.stderr[-3000:]
    assert "No checkpoint in" in result.stderr
    assert_same_training(folder / "nodes", on_one_process)


@pytest.mark.slow
def test_accumulated_gradients_are_the_batchs(folder: Path, on_one_process: Path) -> None:
    """Micro-batches with two or three images give the same result as one with four.

    Without augmentation all images have the same size, so that none is padded.
    """
    for size in ("2", "3", "4"):  # 3 doesn't divide the batch's 4
        plain = ("--micro_batch_size", size, "--epochs", "1", "--no_augmentation")
        assert train_here(*command(folder, f"of {size}", *plain, model="exact.json")) == 0
    assert_same_training(folder / "of 2", folder / "of 4")
    assert_same_training(folder / "of 3", folder / "of 4")


@pytest.mark.slow
def test_comparisons(folder: Path) -> None:
    """The comparisons train and write their results."""
    weights = folder / "backbone.safetensors"
    backbone = timm.create_model("test_resnet").state_dict()
    save_file({name: tensor.contiguous() for name, tensor in backbone.items()}, weights)
    common = ("--data", str(folder / "data"), "--backbone_weights", str(weights))
    architecture = {**ARCHITECTURE, **NO_DROPOUT, "model_type": "deformable_detr", "d_model": 64}
    (folder / "deformable.json").write_text(json.dumps(architecture))
    shown = run(
        str(REPOSITORY / "examples" / "benchmarks" / "compare_training.py"),
        *(*common, "--model", str(folder / "deformable.json"), "--steps", "2"),
        *("--batch_size", "4", "--output", str(folder / "sides")),
    )
    assert "| | hf_detr | transformers' Trainer |" in shown and "| AP50 |" in shown
    assert "| steps | 2 | 2 |" in shown
    small = ("--backbone", "test_resnet", "--image_size", "64", "--width", "64", "--layers", "1")
    shown = run(
        str(REPOSITORY / "examples" / "benchmarks" / "compare_convergence.py"),
        *(*common, *small, "--epochs", "1", "--batch_size", "4", "--queries", "6"),
        *("--output", str(folder / "convergence")),
    )
    assert all(f"| {name} |" in shown for name in VARIANTS)
    # The weights are random, so that DETR's AP may exceed the limit of the warning by chance.
    with (folder / "convergence" / "convergence.csv").open() as file:
        [ap] = [float(row["AP"]) for row in csv.DictReader(file) if row["model"] == "detr"]
    assert ("too low for a meaningful comparison" in shown) == (ap < 0.05)
    for name in ("convergence.csv", "convergence.png", "convergence.md"):
        assert (folder / "convergence" / name).stat().st_size > 50


def test_loss_that_is_not_finite(folder: Path, capsys: pytest.CaptureFixture) -> None:
    """With a loss of NaN, training stops, names images and saves nothing."""
    assert train_here(*command(folder, "nan", "--lr", "1e30", "--max_grad_norm", "1e30")) == 1
    shown = capsys.readouterr().err
    assert "Training has stopped." in shown and "images" in shown and "Traceback" not in shown
    assert not list((folder / "nan").rglob("*.safetensors"))
    with pytest.warns(UserWarning, match="outputs have NaN or infinite values"):
        assert train_here(*command(folder, "skip", "--lr", "1e30", "--skip_nonfinite")) == 0
    shown = capsys.readouterr().err
    assert "is skipped" in shown and "steps were skipped" in shown


def test_health_check(folder: Path, capsys: pytest.CaptureFixture) -> None:
    """`--overfit` with few steps exits with an error."""
    assert train_here(*command(folder, "over", "--overfit", "3")) == 1
    assert "NOT healthy: after 2 steps AP50 is 0." in capsys.readouterr().err
