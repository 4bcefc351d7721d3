"""Lines of predictions: complete after a kill at any byte, continued only if all is as before."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from hf_detr.inference.prediction_lines import PredictionLines, complete_run, describe

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
        assert not list(lines.failed(f"{index}.jpg" for index in range(7)))
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
            list(lines.failed(iter(names)))
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


def test_failed_images_get_another_line(tmp_path: Path) -> None:
    """The last line of an image counts, whatever a kill leaves, and the order stays."""
    file = tmp_path / "p.jsonl"
    failed = {1, 4, 6}  # in all groups, of which the last isn't complete
    names = [f"{index}.jpg" for index in range(8)]
    lines = PredictionLines(file, 3, OPTIONS)
    for index in ORDER:
        value = {"error": "torn"} if index in failed else {"objects": []}
        lines.add({"index": index, "file": names[index], **value})
    lines.close()
    before = file.read_bytes()

    def retry(still_failed: set[int]) -> list[int]:
        lines = PredictionLines(file, 3, OPTIONS, resume=True, retry=True)
        start, again = lines.start, []
        for index in lines.failed(iter(names)):
            again.append(index)
            lines.add({"index": index, "file": names[index], **result(index, still_failed)})
        assert start == 6
        for index in range(start, 8):
            if not lines.has(index, names[index]):
                again.append(index)
                lines.add({"index": index, "file": names[index], **result(index, still_failed)})
        lines.close()
        found = list(lines.records())
        assert [record["index"] for record in found] == list(range(8))
        assert {record["index"] for record in found if "error" in record} == still_failed
        assert (lines.num_results, lines.num_failures) == (8 - len(still_failed), len(still_failed))
        assert list(reopened(file).records()) == found
        return again

    def result(index: int, still_failed: set[int]) -> dict[str, Any]:
        return {"error": "again"} if index in still_failed else {"objects": [{"label": "new"}]}

    assert retry({4}) == [1, 4, 6, 7]
    whole = file.read_bytes()
    assert whole.startswith(before)
    for end in range(len(before), len(whole)):
        file.write_bytes(whole[:end])
        retry({4})
    file.write_bytes(whole)
    assert retry({4}) == [4]
    assert retry(set()) == [4] and retry(set()) == []


def reopened(file: Path) -> PredictionLines:
    lines = PredictionLines(file, 3, OPTIONS, resume=True)
    lines.close()
    return lines


def test_only_runs_that_ended_are_complete(tmp_path: Path) -> None:
    """A run that goes on isn't, from its first line; what can't go on changes nothing."""
    file = tmp_path / "p.jsonl"
    with pytest.raises(ValueError, match="isn't complete: .* with --resume"):
        PredictionLines.of_complete_run(file)
    lines = write(file)
    with pytest.raises(ValueError, match="isn't complete"):
        PredictionLines.of_complete_run(file)
    lines.complete(model="m")
    assert list(PredictionLines.of_complete_run(file).records()) == list(map(record, range(7)))
    assert complete_run(file) == (OPTIONS, {"group_size": 3, "model": "m"})
    lines = reopened(file)
    with pytest.raises(ValueError, match="the images have changed"):
        list(lines.failed(iter(["x"])))
    assert complete_run(file)[1]["model"] == "m"
    lines = PredictionLines(file, 3, OPTIONS, resume=True)
    lines.add(record(7))
    lines.close()
    with pytest.raises(ValueError, match="isn't complete"):
        complete_run(file)


def test_run_without_images_replaces_an_earlier_one(tmp_path: Path) -> None:
    """As one of several processes can be; its file would otherwise be that of other images."""
    file = tmp_path / "p.jsonl"
    write(file)
    lines = PredictionLines(file, 3, OPTIONS)
    assert not list(lines.records())
    lines.complete()
    lines.close()
    assert file.read_bytes() == b"" and not list(lines.records())


def test_results_become_json() -> None:
    """Objects have names, rounded numbers, and the best comes first."""
    boxes = torch.tensor([[0, 1, 2, 3.456], [4, 5, 6, 7]])
    result = {"scores": torch.tensor([0.25, 0.5]), "labels": torch.tensor([1, 9]), "boxes": boxes}
    first, second = describe(result, {1: "cat"})["objects"]
    assert first == {"label": "9", "label_id": 9, "score": 0.5, "box": [4, 5, 6, 7]}
    assert second == {"label": "cat", "label_id": 1, "score": 0.25, "box": [0, 1, 2, 3.46]}
