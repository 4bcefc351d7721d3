"""Lines of predictions: complete after a kill at any byte, continued only if all is as before."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from hf_detr.inference.prediction_lines import PredictionLines, describe

OPTIONS = {"--model": "a", "--threshold": 0.5}
ORDER = (2, 0, 1, 3, 5, 4, 6)  # in groups of three


def record(index: int) -> dict[str, Any]:
    value = {"error": "torn"} if index == 1 else {"objects": [{"label": "ü\n" * index}]}
    return {"index": index, "file": f"{index}.jpg", **value}


def write(file: Path, indices: tuple[int, ...] = ORDER, **changes: Any) -> PredictionLines:
    lines = PredictionLines(file, 3, {**OPTIONS, **changes})
    for index in indices:
        lines.add(record(index))
    lines.close()
    return lines


def test_records_are_in_the_order_of_the_images(tmp_path: Path) -> None:
    """Groups are sorted when they are read; the file has the order of writing."""
    lines = write(tmp_path / "p.jsonl")
    assert list(lines.records()) == [record(index) for index in range(7)]
    written = map(json.loads, (tmp_path / "p.jsonl").read_bytes().splitlines())
    assert tuple(line["index"] for line in written) == ORDER
    assert (lines.num_results, lines.num_failures) == (6, 1)


def test_continues_after_a_kill_at_any_byte(tmp_path: Path) -> None:
    """Whatever a kill leaves, the continued file is that of a run without it."""
    file = tmp_path / "p.jsonl"
    write(file)
    whole = file.read_bytes()
    ends = [at for at in range(len(whole) + 1) if whole[:at].count(b"\n") in (0, 2, 3, 5, 7)]
    for end in ends:
        file.write_bytes(whole[:end])
        lines = PredictionLines(file, 3, OPTIONS, resume=True)
        complete = whole[:end].count(b"\n")
        assert lines.start == complete // 3 * 3
        assert lines.num_results + lines.num_failures == complete
        lines.check_names(f"{index}.jpg" for index in range(7))
        for index in ORDER[lines.start :]:
            if not lines.has(index, f"{index}.jpg"):
                lines.add(record(index))
        lines.close()
        assert file.read_bytes() == whole
        assert (lines.num_results, lines.num_failures) == (6, 1)


def test_other_options_are_named(tmp_path: Path) -> None:
    """Each difference is refused by its name, and the file stays; so is a file of unknown ones."""
    file = tmp_path / "p.jsonl"
    write(file)
    whole = file.read_bytes()
    for changed in ({"--threshold": 0.4}, {"--new": 1}):
        name, value = next(iter(changed.items()))
        with pytest.raises(ValueError, match=f"other options: {name}. .* and is {value} now"):
            PredictionLines(file, 3, {**OPTIONS, **changed}, resume=True)
    (tmp_path / "p.run.json").unlink()
    with pytest.raises(ValueError, match="options of its run are unknown.*without --resume"):
        PredictionLines(file, 3, OPTIONS, resume=True)
    assert file.read_bytes() == whole


def test_other_images_are_named(tmp_path: Path) -> None:
    """A new, missing or renamed image before the end of the lines isn't mistaken for another."""
    file = tmp_path / "p.jsonl"
    write(file, ORDER[:5])
    for names, expected in (
        (["0.jpg", "x.jpg"], "1.jpg, which is x.jpg"),
        ([], "0.jpg, .*missing"),
    ):
        lines = PredictionLines(file, 3, OPTIONS, resume=True)
        with pytest.raises(ValueError, match=f"the images have changed: .* {expected}"):
            lines.check_names(iter(names))
        with pytest.raises(ValueError, match="as 5.jpg, which is x.jpg"):
            lines.has(5, "x.jpg")
        assert lines.has(3, "3.jpg") and not lines.has(4, "4.jpg")
        lines.close()


def test_files_of_something_else_are_refused(tmp_path: Path) -> None:
    """A line that is no result is cut off at the end only."""
    file = tmp_path / "p.jsonl"
    lines = write(file)
    whole = file.read_bytes()
    file.write_bytes(b"5\n" + whole)
    with pytest.raises(ValueError, match="line 1 of .* isn't a result"):
        PredictionLines(file, 3, OPTIONS, resume=True)
    file.write_bytes(whole + b"5\n")
    lines = PredictionLines(file, 3, OPTIONS, resume=True)
    lines.close()
    assert file.read_bytes() == whole


def test_earlier_lines_stay_until_there_are_new_ones(tmp_path: Path) -> None:
    """Without resume, the file is replaced by the first line."""
    file = tmp_path / "p.jsonl"
    write(file)
    whole = file.read_bytes()
    write(file, ())
    assert file.read_bytes() == whole
    write(file, (0,), **{"--threshold": 0.1})
    assert file.read_bytes().count(b"\n") == 1
    assert json.loads((tmp_path / "p.run.json").read_text())["--threshold"] == 0.1
    assert list(PredictionLines(tmp_path / "none.jsonl", 3, OPTIONS, resume=True).records()) == []


def test_results_become_json() -> None:
    """Objects have names, rounded numbers, and the best comes first."""
    boxes = torch.tensor([[0, 1, 2, 3.456], [4, 5, 6, 7]])
    result = {"scores": torch.tensor([0.25, 0.5]), "labels": torch.tensor([1, 9]), "boxes": boxes}
    first, second = describe(result, {1: "cat"})["objects"]
    assert first == {"label": "9", "label_id": 9, "score": 0.5, "box": [4, 5, 6, 7]}
    assert second == {"label": "cat", "label_id": 1, "score": 0.25, "box": [0, 1, 2, 3.46]}
