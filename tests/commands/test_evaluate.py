"""`hf-detr evaluate` reads model and data from disk and gives the numbers of `evaluate`."""

import json
import math
import shutil
from argparse import Namespace
from importlib.machinery import ModuleSpec
from pathlib import Path

import PIL.Image
import pytest

from hf_detr import DeformableDetrImageProcessor, embedded_model_folder, evaluate, read_coco
from hf_detr.commands import evaluate as command
from hf_detr.commands.evaluate import _report
from hf_detr.wording import some_of
from hf_detr_command_line import main as run

from ..data.test_yolo import BOX, write_yolo
from ..some_data import entry, write_coco
from ..tiny import tiny_detector


def main(arguments: list[str]) -> int:
    """`hf-detr evaluate` with these arguments."""
    return run(["evaluate", *arguments])


def test_lvis(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    """Protects LVIS' rules, which its file turns on, with 300 detections of each image."""
    model = tiny_detector("deformable_detr", id2label={0: "car", 1: "dog"}, num_queries=200)
    processor = DeformableDetrImageProcessor(size={"shortest_edge": 64, "longest_edge": 96})
    model.save_pretrained(tmp_path / "model")
    processor.save_pretrained(tmp_path / "model")
    file, images = write_coco(tmp_path, [entry(1), entry(2, image_id=2, category_id=18)])
    content = json.loads(file.read_text())
    for image in content["images"]:
        image |= {"neg_category_ids": [], "not_exhaustive_category_ids": []}
    for category in content["categories"]:
        category["frequency"] = "r"
    file.write_text(json.dumps(content))
    data = ["--data", str(file), "--images", str(images), "--model", str(tmp_path / "model")]
    given = model, processor, read_coco(file, images)
    expected = evaluate(*given, max_detections=300, lvis=content)
    assert main([*data, "--json", "--lvis", str(file)]) == 0
    assert json.loads(capsys.readouterr().out) == expected
    assert main([*data, "--lvis", str(file)]) == 0
    assert "rare" in capsys.readouterr().out
    with pytest.raises(SystemExit):
        main([*data, "--lvis", str(file), "--write"])
    assert "follow COCO's rules" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main([*data, "--lvis", str(tmp_path / "none.json")])
    assert "doesn't exist" in capsys.readouterr().err


def test_evaluate_prints_and_writes_what_evaluate_returns(
    tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    """A table and a file, or only JSON on stdout; bad data and models have status 1."""
    model = tiny_detector("deformable_detr", id2label={0: "car", 1: "dog"})
    processor = DeformableDetrImageProcessor(size={"shortest_edge": 64, "longest_edge": 96})
    model.save_pretrained(tmp_path / "model")
    processor.save_pretrained(tmp_path / "model")
    file, images = write_coco(tmp_path, [entry(1), entry(2, image_id=2, category_id=18)])
    data = ["--data", str(file), "--images", str(images), "--model", str(tmp_path / "model")]
    output = tmp_path / "sub" / "metrics.json"
    expected = evaluate(model, processor, read_coco(file, images))
    assert main([*data, "--json", str(output)]) == 0
    out = capsys.readouterr().out
    assert json.loads(output.read_text()) == expected
    assert "AP50" in out and "dog" in out
    assert main([*data, "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == expected
    assert main([*data, "--json", "--max-detections", "150"]) == 0
    assert "AR_150" in json.loads(capsys.readouterr().out)
    tiles = {"tiles": 32, "overlap": 0.5}
    expected = evaluate(model, processor, read_coco(file, images), **tiles)
    assert main([*data, "--json", "--tiles", "32", "--overlap", "0.5"]) == 0
    assert json.loads(capsys.readouterr().out) == expected
    assert main([*data, "--dtype", "bfloat16"]) == 0
    assert main([*data, "--masks"]) == 1
    assert "has no mask head" in capsys.readouterr().err
    file.write_text("{")
    assert main(data) == 1
    assert "is not a JSON file" in capsys.readouterr().err


def test_validation_split_is_measured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without --split, YOLO's training images aren't read."""
    folder = write_yolo(tmp_path / "data", {"a": BOX, "b": BOX}, val="list.txt")
    (folder / "list.txt").write_text("images/train/a.png\n")
    sizes = []
    monkeypatch.setattr(
        "hf_detr.evaluation.evaluate.evaluate",
        lambda model, processor, data, *others, **more: sizes.append(len(data)) or {"AP": 0.5},
    )
    for given in ([], ["--split", "train"]):
        assert main(["--data", str(folder), "--json", *given]) == 0
    assert sizes == [1, 2]


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (["--data", "a.json", "--images", "b"], "a.json doesn't exist"),
        (["--data", "a.json", "--bogus"], "unrecognized arguments: --bogus"),
        (["--data", "a", "--json", "."], "can't be written"),
        (["--data", "a", "--max-detections", "10"], "--max-detections is 10; expected more"),
        (["--data", "a", "--model", "./nowhere"], "nowhere doesn't exist"),
    ],
)
def test_wrong_arguments_are_status_2(
    given: list[str], message: str, capsys: pytest.CaptureFixture
) -> None:
    """Wrong arguments end the program before a model is loaded."""
    with pytest.raises(SystemExit) as ended:
        main(given)
    assert ended.value.code == 2 and message in capsys.readouterr().err


def test_missing_validation_data_are_found_early(
    tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    """A folder without validation split ends the program before a model is loaded."""
    write_coco(tmp_path / "train", [entry(1)])
    with pytest.raises(SystemExit) as ended:
        main(["--data", str(tmp_path)])
    assert ended.value.code == 2 and "has no validation split" in capsys.readouterr().err


def test_quality_of_nothing_is_null(capsys: pytest.CaptureFixture) -> None:
    """NaN becomes null, since JSON doesn't have NaN."""
    quality = {"pq": 0.5, "pq_stuff": math.nan, "per_class": {"dog": {"pq": math.nan}}}
    _report({"AP": 0.25, "panoptic": quality}, Path("-"))
    nothing = {"pq": 0.5, "pq_stuff": None, "per_class": {"dog": {"pq": None}}}
    assert json.loads(capsys.readouterr().out) == {"AP": 0.25, "panoptic": nothing}


def write_garments(folder: Path) -> tuple[Path, list[str]]:
    """A copy of the embedded model, and the options of data with its example, one coat a dress."""
    image = Path(__file__).parents[2] / "examples" / "images" / "garments.jpg"
    model = folder / "model"
    shutil.copytree(embedded_model_folder(), model)
    assert run(["predict", str(image), "--output", str(folder / "found"), "--no-draw"]) == 0
    [found] = json.loads((folder / "found" / "predictions.json").read_text())["images"]
    names = json.loads((model / "config.json").read_text())["id2label"].values()
    categories = [{"id": number, "name": name} for number, name in enumerate(names, 1)]
    ids = {one["name"]: one["id"] for one in categories}
    entries = []
    for number, one in enumerate(found["objects"], 1):
        x0, y0, x1, y1 = one["box"]
        label = "dress" if one["label"] == "coat" else one["label"]
        more = {"category_id": ids[label], "bbox": [x0, y0, x1 - x0, y1 - y0]}
        entries.append(entry(number, segmentation=None, **more))
    file, images = write_coco(folder / "data", entries, num_images=1, categories=categories)
    shutil.copy(image, images / "1.png")
    with PIL.Image.open(image) as opened:
        content = json.loads(file.read_text())
        content["images"][0] |= {"width": opened.width, "height": opened.height}
    file.write_text(json.dumps(content))
    return model, ["--data", str(file), "--images", str(images), "--model", str(model)]


def test_report_and_thresholds_of_garments(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    """The page shows the mislabelled coat; the thresholds reach the files, and then `predict`."""
    model, data = write_garments(tmp_path)
    (model / "README.md").write_text("# Garments\n")
    plain = evaluate_json(data, capsys)
    page = tmp_path / "sub" / "report.html"
    assert main([*data, "--report", str(page), "--write", "--json"]) == 0
    out, err = capsys.readouterr()
    assert json.loads(out) == plain  # the numbers are the same
    assert str(page) in err and "README.md" in err
    assert "but the target is dress" in page.read_text(encoding="utf-8")
    thresholds = json.loads((model / "config.json").read_text())["class_thresholds"]
    assert f"thresholds of {some_of(list(thresholds))} are in {model / 'config.json'} and" in err
    assert "bag" in thresholds and "coat" not in thresholds  # there are none in the targets
    assert all(0.3 < score < 0.7 for score in thresholds.values())
    assert f"| bag | {thresholds['bag']} |" in (model / "README.md").read_text()
    assert evaluate_json(data, capsys) == plain

    image = str(tmp_path / "data" / "images" / "1.png")
    options = ["predict", image, "--model", str(model), "--no-draw", "--json", "--output"]
    assert run([*options, str(tmp_path / "own")]) == 0
    own = json.loads(capsys.readouterr().out)
    assert own["threshold"] == thresholds
    for one in own["images"][0]["objects"]:
        assert one["score"] > thresholds.get(one["label"], 0.5)
    assert run([*options, str(tmp_path / "given"), "--threshold", "0.65"]) == 0
    given = json.loads(capsys.readouterr().out)
    assert given["threshold"] == 0.65
    assert all(one["score"] > 0.65 for one in given["images"][0]["objects"])


def evaluate_json(data: list[str], capsys: pytest.CaptureFixture) -> dict:
    capsys.readouterr()
    assert main([*data, "--json"]) == 0
    return json.loads(capsys.readouterr().out)


@pytest.mark.parametrize("broken", ["_write_thresholds", "_write_page"])
def test_one_result_fails(broken: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """An evaluation takes long: page and thresholds are written without each other, too."""
    written = []

    def write(name: str) -> None:
        if name == broken:
            raise ValueError(f"{name} failed")
        written.append(name)

    for name in ("_write_thresholds", "_write_page"):
        monkeypatch.setattr(command, name, lambda *given, name=name: write(name))
    monkeypatch.setattr(command, "_compute_metrics", lambda *given: ({}, None))
    monkeypatch.setattr(command, "_report", lambda *given: None)
    with pytest.raises(ValueError, match=f"{broken} failed"):
        command.run(Namespace(device=None, write=True, report=Path("page"), model="m", json=None))
    assert len(written) == 1


def test_one_file_for_two_results(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    """The numbers would replace the page."""
    write_coco(tmp_path / "val", [entry(1)])
    file = str(tmp_path / "report.html")
    with pytest.raises(SystemExit) as ended:
        main(["--data", str(tmp_path), "--report", file, "--json", file])
    assert ended.value.code == 2 and "are both" in capsys.readouterr().err


@pytest.mark.parametrize("library", ["matplotlib", "jinja2"])
def test_missing_libraries_of_the_report(
    library: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture, tmp_path: Path
) -> None:
    """One line says what to install, before anything is evaluated."""
    monkeypatch.setattr(
        command, "find_spec", lambda name: None if name == library else ModuleSpec(name, None)
    )
    write_coco(tmp_path / "val", [entry(1)])
    with pytest.raises(SystemExit) as ended:
        main(["--data", str(tmp_path), "--report", str(tmp_path / "report.html")])
    assert ended.value.code == 2
    expected = f"--report needs {library}; pip install 'hf_detr[plots]' installs it"
    assert expected in capsys.readouterr().err


@pytest.mark.parametrize("model", [[], ["--model", "facebook/detr-resnet-50"]])
def test_only_own_files_are_changed(
    model: list[str], tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    """Neither the package's model nor one in the cache gets thresholds."""
    write_coco(tmp_path / "val", [entry(1)])
    with pytest.raises(SystemExit) as ended:
        main(["--data", str(tmp_path), *model, "--write"])
    assert ended.value.code == 2 and "must be a folder of yours" in capsys.readouterr().err
