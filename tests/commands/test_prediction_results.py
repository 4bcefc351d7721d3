"""`hf-detr predict` by several processes: one result, in all formats, by the last one or later."""

import json
import shutil
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pytest

from hf_detr import read_data
from hf_detr.commands import prediction_results
from hf_detr.inference.prediction_lines import complete_run, write_options
from hf_detr_command_line import main as run

from ..inference.test_image_inputs import write_tar
from ..some_data import write_image
from .test_prediction_run import lines_of, png, predict, save_model

NUM_PROCESSES = 3


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A small detector's folder."""
    return save_model(tmp_path_factory.mktemp("model"))


@pytest.fixture
def images(tmp_path: Path) -> list[Path]:
    """Photos of equal names in two folders, one that is torn, and a tar."""
    for number in range(4):
        write_image(tmp_path / "photos" / "a" / f"{number}.png", seed=number)
        write_image(tmp_path / "photos" / "b" / f"{number}.png", seed=10 + number)
    (tmp_path / "photos" / "b" / "torn.png").write_text("torn")
    tar = {f"{number}.png": png(16, 16, number) for number in range(3)}
    return [tmp_path / "photos" / "b", write_tar(tmp_path / "t.tar", tar), tmp_path / "photos/a"]


def predict_by_processes(
    monkeypatch: pytest.MonkeyPatch, output: Path, *given: Any, order: tuple[int, ...] = (2, 0, 1)
) -> None:
    """Run the processes one after the other, in any order."""
    with monkeypatch.context() as patch:
        patch.setenv("WORLD_SIZE", str(NUM_PROCESSES))
        for rank in order:
            patch.setenv("RANK", str(rank))
            assert predict(output, *given) == 0


def merge(output: Path, *given: Any) -> int:
    """`hf-detr predict --merge` with these arguments."""
    return run(["predict", "--merge", "--output", str(output), *map(str, given)])


def test_the_last_process_merges(
    model: str,
    images: list[Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture,
) -> None:
    """The result is that of one process: lines in its order, and one report."""
    output, given = tmp_path / "output", (*images, "--model", model, "--format", "json")
    predict_by_processes(monkeypatch, output, *given, order=(1, 2))
    assert not (output / "predictions.jsonl").exists()
    predict_by_processes(monkeypatch, output, *given, order=(0,))
    assert "1 of 12 images failed; --retry-failed" in capsys.readouterr().err
    assert predict(tmp_path / "one", *given, "--no-draw") == 3
    one, merged = (
        json.loads((folder / "predictions.json").read_text())
        for folder in (tmp_path / "one", output)
    )
    assert list(merged) == ["model", "threshold", "images", "failed"]
    assert merged["failed"] == one["failed"]
    assert [image["file"] for image in merged["images"]] == [i["file"] for i in one["images"]]
    for image, other in zip(merged["images"], one["images"], strict=True):
        assert image["index"] == other["index"] and set(image) == set(other)
        assert image["objects"][0]["box"] == pytest.approx(other["objects"][0]["box"], abs=0.02)
    # One process continues it, as a run of its own.
    before = (output / "predictions.jsonl").read_bytes()
    assert predict(output, *given, "--no-draw", "--resume") == 3
    assert (output / "predictions.jsonl").read_bytes() == before


@pytest.mark.parametrize("name", ["coco", "yolo", "voc"])
def test_merged_data_sets_can_be_read(
    model: str,
    images: list[Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture,
    name: str,
) -> None:
    """Images of equal names from different processes, drawn ones beside them."""
    output, given = tmp_path / "output", (*images, "--model", model, "--format", name, "--draw")
    predict_by_processes(monkeypatch, output, *given)
    dataset = read_data(output)
    records = [line for line in lines_of(output) if "error" not in line]
    assert len(dataset) == len(records) == 11
    assert len({line["image"] for line in records}) == 11
    assert all(Path(line["picture"]).is_file() for line in records)
    kept = {
        f"{output / folder}/{line['image']}": line
        for line in records
        for folder in ("images", "JPEGImages")
    }
    for index in range(len(dataset)):
        record = kept[dataset.images.name(index)]
        rows = dataset.table.rows(index)
        x0, y0, x1, y1 = record["objects"][0]["box"]
        box = dataset.table.boxes_xywh[rows.start].tolist()
        assert len(rows) == 7 and box == pytest.approx([x0, y0, x1 - x0, y1 - y0], abs=0.02)
        assert dataset[index][0].shape[-2:] == (record["height"], record["width"])
    monkeypatch.setenv("WORLD_SIZE", str(NUM_PROCESSES))
    with pytest.raises(SystemExit):
        predict(output, *given)
    assert "isn't empty; give another --output, or --resume" in capsys.readouterr().err


def test_files_of_an_earlier_run_in_other_formats_are_named(
    model: str, images: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    """They stay, and aren't mistaken for the new results; those of the same lines aren't named."""
    output, photos = tmp_path / "output", images[2]

    def older(*given: str) -> list[str]:
        assert predict(output, photos, "--model", model, *given) == 0
        said = [line for line in capsys.readouterr().err.splitlines() if "earlier run" in line]
        return [line.removeprefix(f"{output} also has ") for line in said]

    assert older("--format", "json") == older("--format", "json") == []
    end = " of an earlier run, without these results."
    assert older("--format", "jsonl") == [f"predictions.json{end}"]
    assert older("--format", "parquet", "--resume") == [f"predictions.json{end}"]
    assert older("--format", "json", "--resume") == []
    assert older("--format", "coco") == [f"predictions.json, predictions.parquet{end}"]
    assert older("--format", "json") == [
        f"predictions.parquet, annotations/instances_train.json{end}"
    ]


def test_merged_later(
    model: str,
    images: list[Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture,
) -> None:
    """Results of machines without a common disk, copied together; or in another format."""
    disks = [tmp_path / f"disk{rank}" for rank in range(NUM_PROCESSES)]
    together = tmp_path / "together"
    together.mkdir()
    for rank, disk in enumerate(disks):
        given = (images[0], "--model", model)
        predict_by_processes(monkeypatch, disk, *given, order=(rank,))
        assert not (disk / "predictions.jsonl").exists()
        for file in disk.iterdir():
            if rank != 1 or file.suffix != ".json":
                shutil.copy(file, together)
    capsys.readouterr()
    assert merge(together) == 1
    assert "predictions-00002-of-00003.jsonl isn't complete" in capsys.readouterr().err
    shutil.copy(disks[1] / "predictions-00002-of-00003.run.json", together)
    assert merge(together, "--format", "coco") == 1
    assert "haven't kept the images" in capsys.readouterr().err
    assert merge(together, "--format", "json") == 3
    files = [Path(line["file"]).name for line in lines_of(together)]
    assert files == ["0.png", "1.png", "2.png", "3.png", "torn.png"]
    report = json.loads((together / "predictions.json").read_text())
    assert report["model"] == model and len(report["images"]) == 4
    assert predict(together, images[0], "--model", model) == 3
    before, _ = (together / "predictions.jsonl").read_bytes(), capsys.readouterr()
    assert merge(together) == 1
    assert "is of a run of one process, and merging would replace it" in capsys.readouterr().err
    assert (together / "predictions.jsonl").read_bytes() == before
    assert predict(tmp_path / "nothing", images[0], "--model", model) == 3
    assert merge(tmp_path / "nothing") == 1
    assert "no results of several processes" in capsys.readouterr().err


def test_more_processes_than_images(
    model: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Processes without images are complete, too; they replace results of an earlier run."""
    photos = [write_image(tmp_path / f"{number}.png") for number in range(3)]
    output = tmp_path / "output"
    predict_by_processes(monkeypatch, output, *photos, "--model", model)
    assert len(lines_of(output)) == 3
    predict_by_processes(monkeypatch, output, photos[0], "--model", model)
    assert [line["file"] for line in lines_of(output)] == [str(photos[0])]


def test_another_process_replaces_its_lines_meanwhile(
    model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A second run to the same folder, of which one process ends before another has begun."""
    photos = [write_image(tmp_path / f"{number}.png") for number in range(6)]
    output, given = tmp_path / "output", (*photos, "--model", model)
    predict_by_processes(monkeypatch, output, *given)
    before = (output / "predictions.jsonl").read_bytes()
    merge_lines = prediction_results.merge_shards

    def begin_and_merge(*arguments: Any) -> object:
        file = output / "predictions-00002-of-00003.jsonl"
        write_options(file, complete_run(file)[0])
        file.write_bytes(b"")
        return merge_lines(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(prediction_results, "merge_shards", begin_and_merge)
        predict_by_processes(monkeypatch, output, *given, order=(0,))
    assert (output / "predictions.jsonl").read_bytes() == before
    predict_by_processes(monkeypatch, output, *given, order=(1, 2))
    assert (output / "predictions.jsonl").read_bytes() == before


def test_wrong_options(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    """--merge only reads what is there, in one process."""
    photo = write_image(tmp_path / "a.png")
    for given, message in [
        ((photo,), "--merge reads what was written to --output; omit IMAGES,"),
        (("--resume",), "--merge reads what was written to --output; omit --resume,"),
        (("--tiles", "64"), "omit --tiles, which would have no effect"),
        (("--overlap", "0.3"), "omit --overlap, which"),
        (("--threshold", "0.3", "--no-draw"), "omit --threshold, --draw, which"),
        (("--model", str(tmp_path), "--batch-size", "3"), "omit --model, --batch-size"),
        (("--device", "cpu", "--dtype", "float16"), "omit --device, --dtype, which"),
        (("--data", "some", "--split", "train"), "omit --data, --split, which"),
        (("--workers", "2", "--masks"), "omit --workers, --masks, which"),
        (("--recursive", "-0", "--retry-failed"), "omit --recursive, --null, --retry-"),
        (("--image-column", "picture"), "omit --image-column, which"),
        ((), "isn't a folder"),
    ]:
        with pytest.raises(SystemExit) as ended:
            merge(tmp_path / "output", *given)
        assert ended.value.code == 2 and message in capsys.readouterr().err
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(SystemExit):
        merge(tmp_path)
    assert "--merge is for one process, but 2 were started" in capsys.readouterr().err


def uncertainties(output: Path) -> dict[str, float]:
    """Of the images that didn't fail, in their order."""
    lines = sorted(lines_of(output), key=lambda line: line["index"])
    return {line["file"]: line["uncertainty"] for line in lines if "error" not in line}


def test_uncertain_images_are_listed(
    model: str,
    images: list[Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture,
) -> None:
    """One process, several, a resumed one and a later merge list the same images, the first first.

    Objects below the threshold count, but aren't in the results.
    """
    output = tmp_path / "output"
    given = (*images, "--model", model, "--no-draw", "--threshold", "0.9")
    assert predict(output, *given, "--uncertain", "5") == 3
    known = uncertainties(output)
    order = sorted(known, key=known.get, reverse=True)
    listed = (output / "uncertain.txt").read_text().splitlines()
    assert len(known) == 11 and listed == order[:5] and known[order[0]] > 0
    assert f"{known[order[0]]:9.4f}  {order[0]}" in capsys.readouterr().out
    assert not any(line.get("objects") for line in lines_of(output))
    # A torn file is continued; more images can be listed then.
    file = output / "predictions.jsonl"
    file.write_bytes(file.read_bytes()[:-20])
    assert predict(output, *given, "--uncertain", "7", "--resume") == 3
    assert (output / "uncertain.txt").read_text().splitlines() == order[:7]
    predict_by_processes(monkeypatch, tmp_path / "three", *given, "--uncertain", "5")
    together = tmp_path / "three" / "uncertain.txt"
    assert together.read_text().splitlines() == listed
    together.unlink()
    assert merge(tmp_path / "three", "--uncertain", "5") == 3
    assert together.read_text().splitlines() == listed


def test_a_list_of_an_earlier_run_is_removed(
    model: str, images: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """uncertain.txt is of the lines beside it, also if a later run makes no list or is killed."""
    listed = tmp_path / "output" / "uncertain.txt"
    given = (images[2], "--model", model, "--no-draw")
    uncertain = (*given, "--uncertain", "2")
    assert predict(listed.parent, *uncertain) == 0 and listed.exists()
    assert predict(listed.parent, *given) == 0 and not listed.exists()
    assert predict(listed.parent, *uncertain) == 0 and listed.exists()
    with monkeypatch.context() as patch:
        patch.setattr(prediction_results, "_write_uncertain", Mock(side_effect=KeyboardInterrupt))
        assert predict(listed.parent, *uncertain) == 130
    assert not listed.exists()

    assert predict(listed.parent, *uncertain) == 0 and listed.exists()
    predict_by_processes(monkeypatch, listed.parent, *given, order=(0,))
    assert listed.exists()  # predictions.jsonl is still that of the earlier run
    predict_by_processes(monkeypatch, listed.parent, *given, order=(1, 2))
    assert not listed.exists()


def test_uncertain_needs_a_run_that_measured_it(
    model: str,
    images: list[Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture,
) -> None:
    """Lines of a run without --uncertain can't be continued or merged with it; nor masks used."""
    given = (*images, "--model", model, "--no-draw")
    assert predict(tmp_path / "one", *given) == 3
    assert predict(tmp_path / "one", *given, "--resume", "--uncertain", "5") == 1
    assert "--uncertain was None and is True now" in capsys.readouterr().err
    predict_by_processes(monkeypatch, tmp_path / "three", *given)
    assert merge(tmp_path / "three", "--uncertain", "5") == 1
    assert "ran without --uncertain" in capsys.readouterr().err
    with pytest.raises(SystemExit) as ended:
        predict(tmp_path / "one", *given, "--uncertain", "5", "--masks")
    assert ended.value.code == 2 and "omit --masks" in capsys.readouterr().err


def test_uncertain_changes_no_result(model: str, images: list[Path], tmp_path: Path) -> None:
    """Objects above the threshold are the same, in the lines, with drawn images and as JSON."""
    for name, more in (("one", ()), ("other", ("--uncertain", "2"))):
        given = (images[2], "--model", model, "--threshold", "0.15", *more)
        assert predict(tmp_path / name, *given) == 0
    one, other = (lines_of(tmp_path / name) for name in ("one", "other"))
    assert any(line["objects"] for line in one)
    for line, with_more in zip(one, other, strict=True):
        assert with_more.pop("uncertainty") > 0
        assert line["objects"] == with_more["objects"]
        pictures = [Path(record["picture"]).read_bytes() for record in (line, with_more)]
        assert pictures[0] == pictures[1]
