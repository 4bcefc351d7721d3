"""`hf-detr evaluate` reads model and data from disk and gives the numbers of a call."""

import json
from pathlib import Path

import pytest

from hf_detr import DeformableDetrImageProcessor, evaluate, read_coco
from hf_detr.evaluation_command import main

from .some_data import entry, write_coco
from .tiny import tiny_detector


def test_evaluate_prints_and_writes_what_evaluate_returns(
    tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    """A table and a file, or with --json alone JSON on stdout; bad data and models are told."""
    model = tiny_detector("deformable_detr", id2label={0: "car", 1: "dog"})
    processor = DeformableDetrImageProcessor(size={"shortest_edge": 64, "longest_edge": 96})
    model.save_pretrained(tmp_path / "model")
    processor.save_pretrained(tmp_path / "model")
    file, images = write_coco(tmp_path, [entry(1), entry(2, image_id=2, category_id=18)])
    data = ["--coco", str(file), "--images", str(images), "--model", str(tmp_path / "model")]
    output = tmp_path / "sub" / "metrics.json"
    expected = evaluate(model, processor, read_coco(file, images))
    assert main([*data, "--json", str(output)]) == 0
    out = capsys.readouterr().out
    assert json.loads(output.read_text()) == expected
    assert "AP50" in out and "dog" in out
    assert main([*data, "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == expected
    assert main([*data, "--dtype", "bfloat16"]) == 0
    assert main([*data, "--masks"]) == 1
    assert "has no mask head" in capsys.readouterr().err
    file.write_text("{")
    assert main(data) == 1
    assert "is no JSON" in capsys.readouterr().err


def test_wrong_arguments_are_status_2(capsys: pytest.CaptureFixture) -> None:
    """What is wrong on the command line is told before a model is loaded."""
    with pytest.raises(SystemExit) as ended:
        main(["--coco", "annotations.json"])
    assert ended.value.code == 2 and "--images" in capsys.readouterr().err
