"""`hf-detr predict` on many images: kills, memory, processes, threads, formats, other sources."""

import errno
import io
import json
import os
import shutil
import signal
import subprocess
import sys
import tarfile
import tracemalloc
from pathlib import Path
from typing import Any

import fsspec
import PIL.Image
import pytest
import torch

import hf_detr
from hf_detr import DetrImageProcessor
from hf_detr.commands import prediction_run
from hf_detr.commands.predict import FEW
from hf_detr.data.coco import read_coco
from hf_detr.data.voc import read_voc
from hf_detr.data.yolo import read_yolo
from hf_detr.inference.prediction_lines import PredictionLines
from hf_detr_command_line import main as run

from ..inference.test_image_inputs import write_tar
from ..some_data import write_image
from ..tiny import tiny_detector
from ..waiting import wait_until

REPOSITORY = Path(__file__).parents[2]
MANY = 1100
READERS = {"coco": read_coco, "yolo": read_yolo, "voc": read_voc}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A small detector's folder."""
    return save_model(tmp_path_factory.mktemp("model"))


def save_model(folder: Path) -> str:
    """Save a small detector; return its folder."""
    tiny_detector("detr", decoder_layers=1, encoder_layers=1).save_pretrained(folder)
    DetrImageProcessor(size={"shortest_edge": 32, "longest_edge": 48}).save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="module")
def many(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of many small images of two sizes; some can't be read."""
    folder = tmp_path_factory.mktemp("many")
    kinds = [png(16, 16, 1), png(12, 20, 2), png(16, 16, 3)]
    for number in range(MANY):
        content = b"torn" if number % 150 == 77 else kinds[number % 3]
        (folder / f"{number:05}.png").write_bytes(content)
    return folder


def png(width: int, height: int, seed: int) -> bytes:
    file = io.BytesIO()
    PIL.Image.new("RGB", (width, height), (40 * seed, 90, 200 - 20 * seed)).save(file, "png")
    return file.getvalue()


def predict(output: Path, *arguments: Any) -> int:
    """`hf-detr predict` with these arguments; all queries of the model count."""
    given = ["--output", output, "--threshold", "0", "--batch-size", "4", *arguments]
    return run(["predict", *map(str, given)])


def lines_of(output: Path, name: str = "predictions.jsonl") -> list[dict[str, Any]]:
    return list(map(json.loads, (output / name).read_text().splitlines()))


@pytest.fixture(scope="module")
def uninterrupted(model: str, many: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The output of a run over many images."""
    output = tmp_path_factory.mktemp("uninterrupted")
    assert predict(output, many, "--model", model) == 3
    return output


def test_many_images_are_lines(uninterrupted: Path, many: Path) -> None:
    """Above 1,000 images, nothing is drawn and no other file is written; failures have lines."""
    assert MANY > FEW
    names = {path.name for path in uninterrupted.iterdir()}
    assert names == {"predictions.jsonl", "predictions.run.json"}
    found = sorted(lines_of(uninterrupted), key=lambda line: line["index"])
    assert [line["file"] for line in found] == [str(many / f"{n:05}.png") for n in range(MANY)]
    failed = [line["index"] for line in found if "error" in line]
    assert failed == list(range(77, MANY, 150)) and "00077.png" in found[77]["error"]
    assert {(line["width"], line["height"]) for line in found if "error" not in line} == {
        (16, 16),
        (12, 20),
    }


@pytest.mark.slow
def test_killed_and_resumed(
    model: str, many: Path, uninterrupted: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    """After `kill -9` the next run continues; the result is that of an uninterrupted run."""
    command = [sys.executable, "-m", "hf_detr", "predict", many, "--model", model, "--resume"]
    command += ["--output", tmp_path, "--threshold", "0", "--batch-size", "4"]
    threads = {"OMP_NUM_THREADS": str(torch.get_num_threads())}
    process = subprocess.Popen(
        list(map(str, command)),
        cwd=REPOSITORY,
        env={**os.environ, **threads},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    file = tmp_path / "predictions.jsonl"
    wait_until(lambda: file.exists() and file.stat().st_size > 100_000, process)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    before = file.read_bytes()
    assert before.count(b"\n") < MANY - 64
    with file.open("ab") as torn:
        torn.write(b'{"index": 12')
    assert predict(tmp_path, many, "--model", model, "--resume") == 3
    expected = (uninterrupted / "predictions.jsonl").read_bytes()
    assert file.read_bytes() == expected and expected.startswith(before[: before.rindex(b"\n")])
    # All is done: another run changes nothing, but can write other formats.
    assert predict(tmp_path, many, "--model", model, "--resume", "--format", "json") == 3
    assert file.read_bytes() == expected
    report = json.loads((tmp_path / "predictions.json").read_text())
    assert len(report["images"]) + len(report["failed"]) == MANY
    assert f"{len(report['failed'])} of {MANY} images failed" in capsys.readouterr().err


@pytest.mark.parametrize("done", [1, 64, 65, 90, 128])
def test_resumed_anywhere(model: str, many: Path, tmp_path: Path, done: int) -> None:
    """Images of a batch whose others have lines get exactly the same results."""
    for number in range(150):
        shutil.copy(many / f"{number:05}.png", tmp_path)
    assert predict(tmp_path / "whole", tmp_path, "--model", model, "--no-draw") == 3
    file = tmp_path / "output" / "predictions.jsonl"
    file.parent.mkdir()
    whole = (tmp_path / "whole" / "predictions.jsonl").read_bytes()
    file.write_bytes(b"".join(whole.splitlines(keepends=True)[:done]))
    shutil.copy(tmp_path / "whole" / "predictions.run.json", file.parent)
    assert predict(file.parent, tmp_path, "--model", model, "--no-draw", "--resume") == 3
    assert file.read_bytes() == whole


def test_other_options_are_refused(
    model: str, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    """A changed option or model is named, and nothing is written."""
    images = [write_image(tmp_path / f"{name}.png") for name in "ab"]
    given = (*images, "--model", model)
    output = tmp_path / "output"
    assert predict(output, *given) == 0
    before = (output / "predictions.jsonl").read_bytes()
    retrained = tmp_path / "retrained"
    shutil.copytree(model, retrained)
    tiny_detector("detr", encoder_layers=1, num_queries=3).save_pretrained(retrained)
    for changed, name in [
        (("--threshold", "0.5"), "--threshold. --threshold was 0.0 and is 0.5"),
        (("--batch-size", "2"), "--batch-size was 4"),
        (("--dtype", "bfloat16"), "--dtype was float32 and is bfloat16"),
        (("--no-draw",), "--draw was True"),
        (("--model", retrained), "--model, the model's files"),
        (("--format", "coco"), "--format was no data set and is coco"),
    ]:
        assert predict(output, *given, *changed, "--resume") == 1
        assert name in capsys.readouterr().err
    assert predict(output, *images[::-1], "--model", model, "--resume") == 1
    assert "the images have changed" in capsys.readouterr().err
    assert (output / "predictions.jsonl").read_bytes() == before
    assert predict(output, *given, "--resume") == 0


def test_images_that_are_gone_are_refused(
    model: str, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    """Also those at the end, where no later image shows that the places have changed."""
    photos, output = tmp_path / "photos", tmp_path / "output"
    for number in range(5):
        write_image(photos / f"{number}.png", seed=number)
    given = (output, photos, "--model", model, "--no-draw")
    assert predict(*given) == 0
    before = (output / "predictions.jsonl").read_bytes()
    (photos / "3.png").unlink()
    (photos / "4.png").rename(tmp_path / "4.png")
    for option in ("--resume", "--retry-failed"):
        assert predict(*given, option) == 1
        error = capsys.readouterr().err
        assert "the images have changed" in error and "3.png, which is missing now" in error
    assert (output / "predictions.jsonl").read_bytes() == before
    write_image(photos / "3.png", seed=3)
    (tmp_path / "4.png").rename(photos / "4.png")
    assert predict(*given, "--resume") == 0


def test_memory_is_constant(
    model: str, many: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between the first and the second half, Python's memory grows by less than 100 KB.

    With the results or names of all images in memory, it would be megabytes.
    """
    add, sizes = PredictionLines.add, []

    def add_and_measure(lines: PredictionLines, record: dict) -> None:
        add(lines, record)
        if record["index"] % 64 == 63:
            sizes.append(tracemalloc.get_traced_memory()[0])

    given = ("--model", model, "--workers", "1")
    predict(tmp_path / "first", many, *given)  # what is loaded once
    monkeypatch.setattr(PredictionLines, "add", add_and_measure)
    tracemalloc.start()
    try:
        predict(tmp_path / "second", many, *given)
    finally:
        tracemalloc.stop()
    middle = len(sizes) // 2
    assert abs(min(sizes[middle:]) - min(sizes[4:middle])) < 100_000


@pytest.mark.parametrize("workers", [1, 3])
def test_workers_change_nothing(
    model: str, many: Path, uninterrupted: Path, tmp_path: Path, workers: int
) -> None:
    """Threads that read images give the same file."""
    assert predict(tmp_path, many, "--model", model, "--workers", workers) == 3
    expected = (uninterrupted / "predictions.jsonl").read_bytes()
    assert (tmp_path / "predictions.jsonl").read_bytes() == expected


@pytest.mark.parametrize("workers", [0, 2])
def test_failed_images_are_tried_again(
    model: str, many: Path, tmp_path: Path, workers: int, capsys: pytest.CaptureFixture
) -> None:
    """Those that were repaired get results, and all others keep theirs; a kill is no problem."""
    photos, output = tmp_path / "photos", tmp_path / "output"
    shutil.copytree(many, photos, ignore=lambda _, names: [n for n in names if n > "00160.png"])
    for number in (3, 76, 159):
        (photos / f"{number:05}.png").write_text("torn")
    given = (photos, "--model", model, "--no-draw", "--workers", workers)
    assert predict(output, *given) == 3
    before = lines_of(output)
    for number in (3, 77, 159):
        (photos / f"{number:05}.png").write_bytes(png(16, 16, 1))
    assert predict(output, *given, "--resume") == 3
    assert lines_of(output) == before
    assert "4 of 161 images failed; --retry-failed tries them again" in capsys.readouterr().err
    assert predict(output, *given, "--retry-failed", "--format", "json") == 3
    lines = lines_of(output)
    assert lines[: len(before)] == before
    assert [line["index"] for line in lines[len(before) :]] == [3, 76, 77, 159]
    report = json.loads((output / "predictions.json").read_text())
    assert [one["index"] for one in report["images"]] == [n for n in range(161) if n != 76]
    assert [one["index"] for one in report["failed"]] == [76]
    known = {line["index"]: line for line in before}
    others = [one for one in report["images"] if one["index"] not in (3, 77, 159)]
    assert others == [known[one["index"]] for one in others]
    assert all("objects" in one and (one["width"], one["height"]) for one in report["images"])
    # Killed after the first of them
    whole = (output / "predictions.jsonl").read_bytes().splitlines(keepends=True)
    (output / "predictions.jsonl").write_bytes(b"".join(whole[: len(before) + 1]) + b'{"in')
    (photos / "00076.png").write_bytes(png(16, 16, 1))
    (photos / "00161.png").write_bytes(png(16, 16, 1))  # a new one
    assert predict(output, *given, "--retry-failed", "--format", "json") == 0
    lines = lines_of(output)[len(before) :]
    assert [line["index"] for line in lines] == [3, 76, 77, 159, 161]
    report = json.loads((output / "predictions.json").read_text())
    assert [one["index"] for one in report["images"]] == list(range(162))


def torn_tar(file: Path, torn: int) -> bytes:
    """Write a tar of five images that ends in one of them; return the whole one."""
    contents = {f"{number}.png": png(16, 16, number) for number in range(5)}
    whole = write_tar(file, contents).read_bytes()
    with tarfile.open(file) as tar:
        end = tar.getmembers()[torn].offset_data + 10
    file.write_bytes(whole[:end])
    return whole


def by_index(output: Path) -> dict[int, dict[str, Any]]:
    """The last line of each image."""
    last = {line["index"]: line for line in lines_of(output)}
    return {index: last[index] for index in sorted(last)}


@pytest.mark.parametrize("torn", [0, 3])
def test_repaired_tar_at_the_end_is_continued(model: str, tmp_path: Path, torn: int) -> None:
    """The rest of its images follow those that were there, as if it had never been torn."""
    photo, tar, output = write_image(tmp_path / "a.png"), tmp_path / "t.tar", tmp_path / "output"
    whole = torn_tar(tar, torn)
    given = (photo, tar, "--model", model, "--no-draw")
    assert predict(output, *given) == 3
    before = by_index(output)
    assert list(before) == list(range(2 + torn))
    assert "to its end as a tar file" in before[1 + torn]["error"]
    assert predict(output, *given, "--retry-failed") == 3 and by_index(output) == before
    tar.write_bytes(whole)
    assert predict(output, *given, "--resume") == 3 and by_index(output) == before
    assert predict(output, *given, "--retry-failed") == 0
    assert predict(tmp_path / "whole", *given) == 0
    after, expected = by_index(output), by_index(tmp_path / "whole")
    assert [after[n]["file"] for n in after] == [expected[n]["file"] for n in range(6)]
    assert all("objects" in line for line in after.values())
    assert [after[n] for n in range(1 + torn)] == [before[n] for n in range(1 + torn)]


def test_repaired_tar_in_the_middle_says_what_to_do(
    model: str, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    """Other failed images are tried again; no result is mistaken for another image's."""
    tar, photo, output = tmp_path / "t.tar", tmp_path / "a.png", tmp_path / "output"
    whole = torn_tar(tar, 2)
    photo.write_text("torn")
    given = (tar, photo, "--model", model, "--no-draw")
    assert predict(output, *given) == 3
    before = by_index(output)
    tar.write_bytes(whole)
    write_image(photo)
    assert predict(output, *given, "--resume") == 3 and by_index(output) == before
    capsys.readouterr()
    assert predict(output, *given, "--retry-failed") == 3
    assert f"run them alone: hf-detr predict {tar}" in capsys.readouterr().err
    after = by_index(output)
    assert [line["file"] for line in after.values()] == [one["file"] for one in before.values()]
    assert "objects" in after[3] and [n for n in after if "error" in after[n]] == [2]
    assert (after[0], after[1]) == (before[0], before[1])


@pytest.mark.parametrize("name", READERS)
def test_data_sets_of_predictions(
    model: str, tmp_path: Path, name: str, capsys: pytest.CaptureFixture
) -> None:
    """Our readers read the found objects, with images of odd and equal names."""
    names = ("a/1.png", "b/1.png", "b/1.jpg", " b /mon été .png", "c:d\n\u2028.png")
    files = [write_image(tmp_path / "photos" / one, seed=i) for i, one in enumerate(names)]
    (tmp_path / "photos" / "torn.png").write_text("torn")
    outputs, tar = (
        tmp_path / "output",
        write_tar(
            tmp_path / "t.tar",
            {"a/1.png": files[0].read_bytes(), "noname.gif": files[1].read_bytes()},
        ),
    )
    given = [tmp_path / "photos", tar, "--recursive", "--format", name, "--model", model]
    assert predict(outputs, *given) == 3
    dataset = READERS[name](outputs)
    records = [line for line in lines_of(outputs) if "error" not in line]
    records = {line["image"]: line for line in records}
    assert len(dataset) == len(records) == 7
    for index in range(len(dataset)):
        image = Path(dataset.images.name(index)).relative_to(outputs).as_posix().partition("/")[2]
        record, rows = records[image], dataset.table.rows(index)
        assert len(rows) == len(record["objects"]) == 7
        found = dataset.table.boxes_xywh[rows.start : rows.stop]
        x0, y0, x1, y1 = record["objects"][0]["box"]
        assert found[0].tolist() == pytest.approx([x0, y0, x1 - x0, y1 - y0], abs=0.02)
        assert dataset[index][0].shape[-2:] == (record["height"], record["width"])
    assert "b/1-2.jpg" in records or "b/1-2.png" in records
    with pytest.raises(SystemExit):
        predict(outputs, *given)
    assert "isn't empty; give another --output, or --resume" in capsys.readouterr().err
    assert predict(outputs, *given, "--resume") == 3


@pytest.mark.parametrize("name", READERS)
def test_data_sets_of_predictions_are_checked_and_trained_on(
    model: str, tmp_path: Path, name: str, capsys: pytest.CaptureFixture
) -> None:
    """`check` finds no errors in what was found, and `train` takes 20 steps on it."""
    for number in range(10):
        write_image(tmp_path / "photos" / f"{number}.png", seed=number)
    output = tmp_path / "found"
    assert predict(output, tmp_path / "photos", "--format", name, "--model", model) == 0
    assert run(["check", "--data", str(output)]) == 0
    assert "Training may start" in capsys.readouterr().out
    given = ["--data", output, "--model", model, "--epochs", 5, "--batch-size", 2]
    if name != "yolo":  # whose data.yaml has a validation split
        given += ["--val-fraction", 0.2]
    assert run(["train", *map(str, given), "--output", str(tmp_path / "trained")]) == 0
    steps = (tmp_path / "trained" / "losses.csv").read_text().splitlines()[1:]
    assert steps and (tmp_path / "trained" / "model" / "model.safetensors").is_file()


def test_links_in_the_output_are_replaced(model: str, tmp_path: Path) -> None:
    """No result is written through a link of an earlier data set to an input image."""
    photo = write_image(tmp_path / "photos" / "images" / "1.png")
    before, output = photo.read_bytes(), tmp_path / "output"
    given = (tmp_path / "photos", "--recursive", "--draw", "--model", model)
    (output / "images").mkdir(parents=True)
    (output / "images" / "1.png").symlink_to(photo)
    assert predict(output, *given) == 0
    assert photo.read_bytes() == before and not (output / "images" / "1.png").is_symlink()


def test_full_disk_is_no_failure_of_images(
    model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    """The run ends at the first image that can't be written, and continues there later."""
    for number in range(8):
        write_image(tmp_path / "photos" / f"{number}.png", seed=number)
    given = (tmp_path / "output", tmp_path / "photos", "--draw", "--model", model)

    def fail(*_: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as full:
        full.setattr(prediction_run, "draw_predictions", fail)
        assert predict(*given) == 1
    assert "ERROR: [Errno 28] No space left" in capsys.readouterr().err
    assert predict(*given, "--resume") == 0
    assert all("objects" in line and line["picture"] for line in lines_of(given[0]))
    assert len(lines_of(given[0])) == 8


def test_nothing_in_a_stream(model: str, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    """A tar or storage without images is an error, as a folder without images is."""
    tar = write_tar(tmp_path / "t.tar", {"notes.txt": b"text"})
    assert predict(tmp_path / "output", tar, "--model", model) == 1
    assert "there are no images" in capsys.readouterr().err


def test_lists_and_storages(model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Names on stdin, tars and storages give the same results as files; drawing is possible."""
    file = write_image(tmp_path / "a b.png")
    fsspec.filesystem("memory").pipe("/bucket/a b.png", file.read_bytes())
    tar = write_tar(tmp_path / "t.tar", {"x/a b.png": file.read_bytes()})
    text = io.TextIOWrapper(io.BytesIO(f"{file}\n{tmp_path}/none.png\n".encode()))
    monkeypatch.setattr(sys, "stdin", text)
    output = tmp_path / "output"
    given = ("-", tar, "memory://bucket", "--draw", "--format", "parquet", "--model", model)
    assert predict(output, *given) == 3
    listed, missing, in_tar, stored = sorted(lines_of(output), key=lambda line: line["index"])
    assert listed["objects"] == in_tar["objects"] == stored["objects"]
    assert "none.png" in missing["error"] and stored["file"] == "memory:///bucket/a b.png"
    assert [Path(line["picture"]).relative_to(output) for line in (listed, in_tar, stored)] == [
        Path("a b.png"),
        Path("x/a b.png"),
        Path("a b-2.png"),
    ]
    assert all(Path(line["picture"]).is_file() for line in (listed, in_tar, stored))
    assert (output / "predictions.parquet").is_file()


def test_data_sets_as_input(model: str, tmp_path: Path) -> None:
    """Rows of a data set of `datasets` are named by their split and number."""
    datasets = pytest.importorskip("datasets")
    datasets.disable_progress_bars()
    content = write_image(tmp_path / "a.png").read_bytes()
    rows = datasets.Dataset.from_dict({"photo": [content, b"torn"]})
    rows.save_to_disk(tmp_path / "rows")
    given = ("--data", tmp_path / "rows", "--image-column", "photo", "--model", model)
    assert predict(tmp_path / "output", *given) == 3
    first, second = sorted(lines_of(tmp_path / "output"), key=lambda line: line["index"])
    assert first["file"] == f"{tmp_path}/rows/train/0" and len(first["objects"]) == 7
    assert "rows/train/1" in second["error"]


def test_processes_write_their_own_files(
    model: str, many: Path, uninterrupted: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Together they have each image once, and each can be resumed, by the same number only."""
    names = [f"predictions-{number:05}-of-00002.jsonl" for number in (1, 2)]
    monkeypatch.setenv("WORLD_SIZE", "2")
    for rank in range(2):
        monkeypatch.setenv("RANK", str(rank))
        assert predict(tmp_path, many, "--model", model, "--format", "parquet") == 0
    found = [line for name in names for line in lines_of(tmp_path, name)]
    assert sorted(line["file"] for line in found) == [
        str(many / f"{n:05}.png") for n in range(MANY)
    ]
    objects = {line["file"]: line.get("objects", [])[:1] for line in lines_of(uninterrupted)}
    for line in found[:50]:
        for one, other in zip(line["objects"][:1], objects[line["file"]], strict=True):
            assert one["box"] == pytest.approx(other["box"], abs=0.02)
    whole = (tmp_path / names[1]).read_bytes()
    (tmp_path / names[1]).write_bytes(whole[:80_000])
    assert predict(tmp_path, many, "--model", model, "--resume") == 0
    assert (tmp_path / names[1]).read_bytes() == whole
    monkeypatch.setenv("WORLD_SIZE", "3")
    with pytest.raises(SystemExit) as ended:
        predict(tmp_path, many, "--model", model, "--resume")
    assert ended.value.code == 2


def test_what_processes_cannot_do(
    many: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    """One object on stdout, and lists on stdin, need one process."""
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "2")
    for given, message in [
        ((many, "--json"), "can't be used by 2 processes together; use --format json"),
        (("-",), "a list on stdin can be read once, and only by one process"),
    ]:
        with pytest.raises(SystemExit) as ended:
            predict(tmp_path / "output", *given)
        assert ended.value.code == 2 and message in capsys.readouterr().err


def test_tasks_of_srun_do_not_write_the_same_files(
    model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    """They are told how to share the images; a number or an output of its own is enough."""
    photo, output = write_image(tmp_path / "a.png"), tmp_path / "output"
    monkeypatch.setenv("SLURM_STEP_NUM_TASKS", "2")
    with pytest.raises(SystemExit) as ended:
        predict(output, photo, "--model", model)
    assert ended.value.code == 2 and not output.exists()
    assert "srun started 2 tasks, which would write the same files" in capsys.readouterr().err
    monkeypatch.setenv("RANK", "0")
    assert predict(output, photo, "--model", model) == 0
    monkeypatch.delenv("RANK")
    monkeypatch.setenv("SLURM_STEP_NUM_TASKS", "1")
    assert predict(tmp_path / "alone", photo, "--model", model) == 0


@pytest.mark.slow
@pytest.mark.parametrize("launcher", ["torchrun", "accelerate"])
def test_launchers(model: str, many: Path, tmp_path: Path, launcher: str) -> None:
    """torchrun and `accelerate launch` start processes that share the images.

    They stop the others if one doesn't end with status 0, which failed images must not cause.
    """
    commands = {
        "torchrun": ["torch.distributed.run", "--nproc-per-node", "2"],
        "accelerate": ["accelerate.commands.launch", "--multi_gpu", "--num_processes", "2"],
    }
    command = [sys.executable, "-m", *commands[launcher], "-m", "hf_detr", "predict", str(many)]
    command += ["--model", model, "--output", str(tmp_path)]
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, env=environment, cwd=tmp_path, capture_output=True, text=True)
    names = sorted(path.name for path in tmp_path.glob("*-of-*.jsonl"))
    assert names == [f"predictions-{n:05}-of-00002.jsonl" for n in (1, 2)], done.stderr
    assert done.returncode == 0
    files = [line["file"] for name in names for line in lines_of(tmp_path, name)]
    assert sorted(files) == [str(many / f"{number:05}.png") for number in range(MANY)]
    files = [line["file"] for line in lines_of(tmp_path)]  # merged by the last one
    assert files == [str(many / f"{number:05}.png") for number in range(MANY)]


def test_failures_are_named_once(
    model: str, tmp_path: Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of many failures and skipped files, some are printed; the lines have all of them."""
    monkeypatch.setattr(prediction_run, "SAID", 2)
    for number in range(15):
        (tmp_path / "photos" / f"{number}.txt").parent.mkdir(exist_ok=True)
        (tmp_path / "photos" / f"{number}.txt").touch()
        (tmp_path / "photos" / f"{number}.png").touch()
    assert predict(tmp_path / "output", tmp_path / "photos", "--model", model) == 1
    err = capsys.readouterr().err
    assert err.count("failed: ") == 2 and "Further failures are in" in err
    assert err.count("skipped: ") == 11 and "skipped: 5 more files" in err
    assert len(lines_of(tmp_path / "output")) == 15


def test_wrong_combinations(
    many: Path, tmp_path: Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Options that don't fit each other are refused before anything is read."""
    for given, message in [
        ((many, "--data", "cppe-5"), "expected IMAGES or --data, and not both"),
        ((many, "--split", "test"), "--split and --image-column need --data"),
        (("--data", "cppe-5", "--recursive"), "--data doesn't have them"),
        (("--data", "./nowhere"), "nowhere doesn't exist"),
        (("-", "-"), "a list on stdin can be read once"),
        ((many, "--workers=-1"), "--workers is -1"),
        (("nonsense://a.png",), "nonsense://a.png can't be read"),
    ]:
        with pytest.raises(SystemExit) as ended:
            predict(tmp_path / "output", *given)
        assert ended.value.code == 2 and message in capsys.readouterr().err


def test_tiles_are_resumed(model: str, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    """Lines of images in tiles are those of `predict`, are continued, and need the same tiles."""
    for number, height in enumerate((70, 30, 100, 64, 70)):
        write_image(tmp_path / "photos" / f"{number}.png", height, 80, seed=number)
    given = [tmp_path / "photos", "--model", model, "--workers", 2, "--batch-size", 1]
    tiles = [*given, "--tiles", 40, "--overlap", 0.5, "--no-draw"]
    assert predict(tmp_path / "whole", *tiles, "--format", "json") == 0
    found = by_index(tmp_path / "whole")
    assert len(found) == 5 and found[2]["height"] == 100
    detector = tiny_detector("detr", decoder_layers=1, encoder_layers=1)
    processor = DetrImageProcessor(size={"shortest_edge": 32, "longest_edge": 48})
    images = sorted((tmp_path / "photos").iterdir())
    options = {"threshold": 0, "progress": False, "tiles": 40, "overlap": 0.5}
    for index, result in enumerate(hf_detr.predict(detector, processor, images, **options)):
        scores = [one["score"] for one in found[index]["objects"]]
        assert scores == pytest.approx(result["scores"].tolist(), abs=1e-3) and len(scores) > 7
    output = tmp_path / "torn"
    shutil.copytree(tmp_path / "whole", output)
    file = output / "predictions.jsonl"
    lines = file.read_bytes().splitlines(keepends=True)
    file.write_bytes(b"".join(lines[:2]) + lines[2][:20])
    for changed in (["--tiles", 50], ["--tiles", 40, "--overlap", 0.2], []):
        assert predict(output, *given, *changed, "--no-draw", "--resume") == 1
        assert "was written with other options: --" in capsys.readouterr().err
    assert predict(output, *tiles, "--resume") == 0
    assert file.read_bytes() == (tmp_path / "whole" / "predictions.jsonl").read_bytes()


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (["--tiles", 8], "tiles is 8; expected the side of a tile in pixels, at least 32"),
        (["--tiles", 64, "--overlap", 64], "overlap is 64.0; expected a share"),
        (["--overlap", 0.3], "--overlap has no effect without --tiles"),
    ],
)
def test_wrong_tiles_are_status_2(
    given: list[Any], message: str, many: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    """Before a model is loaded, by all commands that have them."""
    commands = ["predict", str(many)], ["video", "a.mp4"], ["evaluate", "--data", "a"]
    for command in commands:
        with pytest.raises(SystemExit) as ended:
            run([*command, *map(str, given)])
        assert ended.value.code == 2 and message in capsys.readouterr().err, command
