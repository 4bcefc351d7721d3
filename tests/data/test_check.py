"""The check as a whole: report, exit status, cache."""

import json
import os
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import PIL.Image
import pytest
from torch.utils.data import Subset

from hf_detr.data import check as data_check
from hf_detr.data import table_cache
from hf_detr.data.check import CheckReport, check_dataset
from hf_detr.data.coco import read_coco
from hf_detr.data.dataset import DetectionDataset
from hf_detr.data.split_check import SHARED
from hf_detr_command_line import main as run

from ..some_data import entry, write_coco, write_image

SOUND = [entry(1), entry(2, 2, category_id=18)]


def main(arguments: list[str]) -> int:
    """`hf-detr check` with these arguments."""
    return run(["check", *arguments])


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A temporary cache instead of the user's."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "hf_detr" / "checks"


def arguments(folder: Path, entries: list[dict]) -> list[str]:
    file, images = write_coco(folder, entries)
    return ["--data", str(file), "--images", str(images)]


def test_sound_data_may_train(tmp_path: Path, capsys: pytest.CaptureFixture):
    """Data without errors have exit status 0, also with notes."""
    assert main(arguments(tmp_path, SOUND)) == 0
    out = capsys.readouterr().out
    assert out.split()[:5] == ["all", "images", "2", "objects", "2"]
    assert out.endswith("Training may start.\n")
    assert "ERROR" not in out


def test_training_needs_validation_data(tmp_path: Path, capsys: pytest.CaptureFixture):
    """Data of one split get a hint, but not a file, which may be the validation data."""
    given = arguments(tmp_path, SOUND)
    hint = "There is only one split: give `hf-detr train` --val-fraction 0.2, or add another.\n"
    folder = ["--data", str(tmp_path)]
    for options, is_shown in (
        (folder, True),
        ([*folder, "--val-fraction", "0.5"], False),
        ([*folder, "--json"], False),
        (given, False),
    ):
        assert main(options) == 0
        assert (hint in capsys.readouterr().out) == is_shown, options


def test_problems_are_named(tmp_path: Path, capsys: pytest.CaptureFixture):
    """Errors have exit status 1, and name image and object."""
    given = arguments(tmp_path, [*SOUND, entry(7, bbox=[5, 5, -2, 5]), entry(8, category_id=77)])
    (tmp_path / "images" / "2.png").write_text("no image")
    report_file = tmp_path / "report.json"
    assert main([*given, "--report", str(report_file), "--num-queries", "1"]) == 1
    out = capsys.readouterr().out
    assert f"ERROR: box with negative size: 1\n    {tmp_path}/images/1.png: object 7 has" in out
    assert f"{tmp_path}/images/1.png: object 8 has the unknown category id 77" in out
    assert f"ERROR: unreadable image: 1\n    {tmp_path}/images/2.png: cannot identify" in out
    assert "note: more objects than queries: 1" in out
    assert out.endswith("3 errors: fix them before training.\n")
    report = json.loads(report_file.read_text())
    kinds = [problem["kind"] for problem in report["splits"]["all"]["problems"]]
    assert main([*given, "--json", "--num-queries", "1"]) == 1
    assert json.loads(capsys.readouterr().out) == report
    assert "box with negative size" in kinds and "unreadable image" in kinds


def test_extreme_numbers_and_names(tmp_path: Path, capsys: pytest.CaptureFixture):
    """Extreme numbers and names are reported like other problems."""
    given = arguments(tmp_path, [entry(1, bbox=[5, 5, 10**400, 5]), entry(2, area=10**400)])
    content = json.loads(Path(given[1]).read_text())
    content["images"][0]["width"] = 10**30
    content["images"][1]["file_name"] = "\ud800.jpg"
    Path(given[1]).write_text(json.dumps(content))
    assert main([*given, "--json"]) == 1
    report = json.loads(capsys.readouterr().out)["splits"]["all"]
    found = {(problem["kind"], problem["image"]) for problem in report["problems"]}
    assert {("wrong bbox", 0), ("wrong area", 0), ("unreadable image", 1)} <= found


def test_training_and_validation_data_are_checked(tmp_path: Path, capsys: pytest.CaptureFixture):
    """One call looks at both splits and at what they share; `--split` restricts it to one."""
    for name in ("train", "valid", "test"):
        write_coco(tmp_path / name, SOUND)
    assert main(["--data", str(tmp_path)]) == 0
    out = capsys.readouterr().out
    assert out.split()[:2] == ["train", "valid"] and f"note: {SHARED}: 2" in out
    for name in ("train", "test"):
        assert main(["--data", str(tmp_path), "--split", name]) == 0
        assert capsys.readouterr().out.split()[:2] == [name, "images"]


def test_divided_data_are_checked(tmp_path: Path, capsys: pytest.CaptureFixture):
    """`--val-fraction` shows what training would use."""
    given = arguments(tmp_path, SOUND)
    assert main([*given, "--val-fraction", "0.5", "--json"]) == 0
    splits = json.loads(capsys.readouterr().out)["splits"]
    assert {name: split["num_images"] for name, split in splits.items()} == {"train": 1, "val": 1}


def test_unreadable_data(tmp_path: Path, capsys: pytest.CaptureFixture):
    """Unreadable data have exit status 1."""
    given = arguments(tmp_path, SOUND)
    Path(given[1]).write_text("{")
    assert main(given) == 1
    assert "is not a JSON file" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ([], "--data is missing"),
        (["--data", __file__], "isn't a file of annotations"),
        (["--nonsense"], "--nonsense"),
        (["--data", "a.json", "--images", "b"], "a.json doesn't exist"),
        (["--data", ".", "--num_queries", "0"], "'0' isn't an integer of at least 1"),
        (["--data", "a", "--report", "."], "can't be written"),
    ],
)
def test_wrong_arguments_are_status_2(
    given: list[str], message: str, capsys: pytest.CaptureFixture
):
    """Wrong arguments differ from bad data in their status."""
    with pytest.raises(SystemExit) as caught:
        main(given)
    assert caught.value.code == 2 and message in capsys.readouterr().err


def test_most_limits_the_lines_of_each_kind(tmp_path: Path):
    """The report has at most so many lines of each kind."""
    entries = [entry(i, bbox=[5, 5, 0, 5 + i]) for i in range(9)]
    text = check_dataset(read_coco(*write_coco(tmp_path, entries))).text(most=2)
    assert "note: box without area (dropped): 9" in text and "... and 7 more" in text


def test_result_is_kept_until_anything_changes(
    tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
):
    """Unchanged data aren't checked again; changed data are."""
    checked: list[int] = []
    original = data_check.image_problems

    def counted(dataset, image, *options):
        checked.append(image)
        return original(dataset, image, *options)

    monkeypatch.setattr(data_check, "image_problems", counted)

    def check(**arguments: object) -> CheckReport:
        checked.clear()
        return check_dataset(
            read_coco(tmp_path / "annotations.json", tmp_path / "images"), **arguments
        )

    file, images = write_coco(tmp_path, SOUND)
    first = check()
    assert sorted(checked) == [0, 1] and len(list(cache.iterdir())) == 1
    assert check() == first and not checked
    check(num_queries=3)
    assert checked
    check(use_cache=False)
    assert checked and len(list(cache.iterdir())) == 2
    write_image(images / "1.png", seed=9)
    assert check().may_train and checked
    with monkeypatch.context() as patch:
        patch.setattr(PIL.Image, "MAX_IMAGE_PIXELS", None)
        assert check().may_train and checked
    (images / "1.png").unlink()
    assert not check().may_train and checked
    assert not check().may_train and not checked
    write_image(images / "1.png", seed=1)
    content = json.loads(file.read_text())
    content["annotations"][0]["bbox"] = [5, 5, -1, 1]
    file.write_text(json.dumps(content))
    assert not check().may_train and checked


def test_broken_cache_is_replaced(tmp_path: Path, cache: Path):
    """A damaged cache is ignored and replaced."""
    dataset = read_coco(*write_coco(tmp_path, SOUND))
    first = check_dataset(dataset)
    (file,) = cache.iterdir()
    for text in ("", "{}", "[1]"):
        file.write_text(text)
        assert check_dataset(dataset) == first
    assert CheckReport.load(file) == first


@pytest.mark.skipif(os.name == "nt", reason="files can't hide folders' names there")
def test_cache_that_cannot_be_written_is_a_warning(tmp_path: Path, cache: Path):
    """A read-only home folder doesn't prevent the check."""
    cache.parent.parent.mkdir(parents=True)
    cache.parent.write_text("a file where the folder should be")
    dataset = read_coco(*write_coco(tmp_path, SOUND))
    with pytest.warns(UserWarning, match="result of the check can't be cached"):
        assert check_dataset(dataset).may_train


def test_part_of_a_data_set(tmp_path: Path):
    """What torch's random_split returns is checked like a data set, only with its images."""
    dataset = read_coco(*write_coco(tmp_path, [entry(1), entry(2, 2, bbox=[5, 5, -2, 5])]))
    assert check_dataset(Subset(dataset, [0])).may_train
    report = check_dataset(Subset(dataset, [1]))
    assert not report.may_train and report.image_names[0].endswith("2.png")


@pytest.fixture
def large(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A data set of 12 images, of which 5 are decoded; all its images are truncated."""
    monkeypatch.setattr(data_check, "LARGE", 10)
    monkeypatch.setattr(data_check, "SAMPLE", 5)
    monkeypatch.setattr(data_check, "BLOCK", 4)
    monkeypatch.setattr(data_check, "MOST", 3)
    write_coco(tmp_path, [entry(n, n + 1) for n in range(12)], 12)
    for file in (tmp_path / "images").iterdir():
        file.write_bytes(file.read_bytes()[:-2000])
    return tmp_path


def read_large(folder: Path, **options: bool) -> DetectionDataset:
    return read_coco(folder / "annotations.json", folder / "images", **options)


@pytest.mark.parametrize(("decode", "number"), [(None, 5), (True, 12), (False, 0)])
def test_of_a_large_data_set_a_sample_is_decoded(large: Path, decode: bool | None, number: int):
    """The report says how many; counts are those of all problems, of which the first are kept."""
    report = check_dataset(read_large(large), decode=decode)
    assert report.num_decoded == number and report.counts.get("unreadable image", 0) == number
    found = [p for p in report.problems if p.kind == "unreadable image"]
    assert len(found) == min(number, 3)
    text = report.text(most=2)
    assert ("Training may start" in text) == (number == 0)
    if number:
        assert f"ERROR: unreadable image: {number}\n" in text
        assert f"    ... and {number - 2} more\n" in text and f"{number} errors: fix" in text
    if number < 12:
        assert f"decoded {number} images, and read the headers of the others" in text
    assert report == check_dataset(read_large(large), decode=decode)
    assert CheckReport.load(next((large / "cache" / "hf_detr" / "checks").iterdir())) == report


def test_headers_of_all_images_of_a_large_data_set_are_read(large: Path):
    """Missing images are always found."""
    (large / "images" / "9.png").unlink()
    write_image(large / "images" / "10.png", 30, 30)
    report = check_dataset(read_large(large))
    assert report.counts["missing image"] == report.counts["image of another size"] == 1


def test_masks_of_a_large_data_set_are_checked_where_images_are_decoded(large: Path):
    """Drawing all polygons takes as long as decoding."""
    file = large / "annotations.json"
    file.write_text(file.read_text().replace("[[10, 5, 30, 5, 30, 13, 10, 13]]", "[[1, 2]]"))
    for number in range(1, 13):
        write_image(large / "images" / f"{number}.png")
    assert check_dataset(read_large(large, masks=True)).counts["bad mask"] == 5
    assert check_dataset(read_large(large, masks=True), decode=False).counts["bad mask"] == 12


def test_changes_of_a_large_data_set_are_noticed(large: Path, monkeypatch: pytest.MonkeyPatch):
    """Added and removed files, and other annotations, without looking at each file."""
    stamps: list[int] = []
    stamp = data_check._stamp
    monkeypatch.setattr(
        data_check, "_stamp", lambda source, image: stamps.append(image) or stamp(source, image)
    )
    assert not check_dataset(read_large(large)).counts.get("missing image")
    assert 0 < len(stamps) <= 5
    (large / "images" / "9.png").unlink()
    assert check_dataset(read_large(large)).counts["missing image"] == 1


def test_mapped_tables_are_not_read_for_the_digest(
    tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
):
    """The digest of a mapped table is that of its annotation file, and changes with it."""
    monkeypatch.setattr(table_cache, "MIN_BYTES", 0)
    for box in ([1, 1, 5, 5], [1, 1, 5, -5]):
        dataset = read_coco(*write_coco(tmp_path, [entry(1, bbox=box)]))
        assert dataset.table.ids.place is not None
        assert check_dataset(dataset).may_train == (box[3] > 0)
    assert len(list(cache.iterdir())) == 2


def test_processes_check_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Ranks may all call it; it waits for a file, not in a barrier of the process group."""
    dataset = read_coco(*write_coco(tmp_path, SOUND))
    checked: list[int] = []
    original = data_check._check

    def slow_check(*arguments: object) -> CheckReport:
        checked.append(1)
        time.sleep(0.2)
        return original(*arguments)

    monkeypatch.setattr(data_check, "_check", slow_check)
    with ThreadPoolExecutor(3) as pool:  # the lock is that of files, so threads suffice
        reports = list(pool.map(check_dataset, [dataset] * 3))
    assert reports[0] == reports[1] == reports[2] and len(checked) == 1
