"""`hf-detr evaluate` reads model and data from disk and gives the numbers of `evaluate`."""

import json
import math
from pathlib import Path

import pytest

from hf_detr import DeformableDetrImageProcessor, evaluate, read_coco
from hf_detr.commands.evaluate import _report
from hf_detr_command_line import main as run

from ..data.test_yolo import BOX, write_yolo
from ..some_data import entry, write_coco
from ..tiny import tiny_detector


def main(arguments: list[str]) -> int:
    """`hf-detr evaluate` with these arguments."""
    return run(["evaluate", *arguments])


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
