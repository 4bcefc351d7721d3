"""The check of training and validation data together."""

import json
import shutil
from pathlib import Path

import numpy as np
import PIL.Image
import pytest

from hf_detr import read_data
from hf_detr.data import split_check
from hf_detr.data.coco import read_coco
from hf_detr.data.split_check import SHARED, check_splits, shared_image_problems

from ..some_data import CATEGORIES, entry, write_coco, write_image
from .test_torch_data import NAMES, Items, pixels


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A temporary cache instead of the user's."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Training and validation data with different images."""
    for number, name in enumerate(("train", "val")):
        _, images = write_coco(tmp_path / name, [entry(1), entry(2, 2, category_id=18)])
        for image in (1, 2):
            write_image(images / f"{image}.png", seed=10 * number + image)
    return tmp_path


def read(folder: Path, *names: str) -> dict:
    return {name: read_coco(folder, split=name) for name in names}


def test_sound_splits(folder: Path):
    """The report of each split, and the summary before it; both in JSON too."""
    report = check_splits(read(folder, "train", "val"))
    assert report.may_train and not report.problems
    text = report.text()
    assert text.splitlines()[0].split() == ["train", "val"]
    assert "\ntrain:\nnote: category ids renumbered" in text and "\nval:\n" in text
    assert text.endswith("\n\nTraining may start.") and "ERROR" not in text
    report.save(folder / "report.json")
    saved = json.loads((folder / "report.json").read_text())
    assert saved["splits"]["val"]["summary"]["classes"] == {"car": 1, "dog": 1}
    assert saved["splits"]["train"]["num_images"] == 2 and saved["problems"] == []


def test_errors_of_any_split_count(folder: Path):
    """Validation data with errors aren't sound."""
    (folder / "val" / "images" / "2.png").write_text("no image")
    report = check_splits(read(folder, "train", "val"), decode=False)
    assert not report.may_train
    assert report.text().endswith("1 errors: fix them before training.")


def test_images_in_two_splits_are_reported(folder: Path):
    """The same file, also by a link, and a copy by another name; training may start."""
    train, val = folder / "train" / "images", folder / "val" / "images"
    shutil.copy(train / "2.png", val / "1.png")
    (val / "2.png").unlink()
    (val / "2.png").symlink_to(train / "1.png")
    report = check_splits(read(folder, "train", "val"), decode=False)
    assert [(p.kind, p.is_fatal) for p in report.problems] == [(SHARED, False)] * 2
    assert report.may_train
    said = [problem.text for problem in report.problems]
    assert said[0] == f"{train}/2.png (train) and {val}/1.png (val) have the same content"
    assert said[1] == f"{train}/1.png (train) and {val}/2.png (val) are the same file"
    assert f"train and val:\nnote: {SHARED}: 2" in report.text()


def test_images_of_other_sources_are_compared(folder: Path):
    """Rows of `datasets` and items of torch data sets have no file, but pixels."""
    one = read_data(Items(), names=NAMES)
    other = read_data(Items(lambda index: pixels(index + 2)), names=NAMES)
    (problem,) = shared_image_problems({"train": one, "val": other})
    assert problem.text == (
        "item 2 of Items (train) and item 0 of Items (val) have the same content"
    )
    assert not list(shared_image_problems({"train": one, "val": other}, contents=False))
    datasets = pytest.importorskip("datasets")
    from .test_hub import DICT_OF_LISTS, make

    def rows(*seeds: int) -> object:
        made = make([{"bbox": [], "category": []}] * len(seeds), DICT_OF_LISTS)
        noise = [np.random.default_rng(seed).integers(0, 256, (40, 50, 3)) for seed in seeds]
        images = [PIL.Image.fromarray(one.astype(np.uint8)) for one in noise]
        columns = {"image": images, "objects": made["objects"][:]}
        return datasets.Dataset.from_dict(columns, features=made.features)

    both = {"train": read_data(rows(1, 2)), "val": read_data(rows(3, 1))}
    (problem,) = shared_image_problems(both)
    assert problem.text.startswith("row 0, image (train) and row 1, image (val) have the same")


def test_different_classes_are_errors(folder: Path):
    """Training would stop because of them."""
    write_coco(folder / "val", [entry(1)], categories=CATEGORIES[1:])
    kinds = [problem.kind for problem in check_splits(read(folder, "train", "val")).problems]
    assert "classes of splits" in kinds


def test_comparison_is_cached(folder: Path, monkeypatch: pytest.MonkeyPatch):
    """All processes and later starts use it, until an image or a split's name changes."""
    train, val = folder / "train" / "images", folder / "val" / "images"
    shutil.copy(train / "2.png", val / "1.png")
    compared = []
    compare = split_check.shared_image_problems

    def compare_and_count(*given: object) -> object:
        compared.append(given)
        return compare(*given)

    monkeypatch.setattr(split_check, "shared_image_problems", compare_and_count)
    splits = read(folder, "train", "val")
    first = check_splits(splits)
    assert [problem.kind for problem in first.problems] == [SHARED] and len(compared) == 1
    assert check_splits(splits) == first == check_splits(read(folder, "train", "val"))
    assert len(compared) == 1
    assert check_splits(splits, use_cache=False) == first and len(compared) == 2
    (problem,) = check_splits({"one": splits["train"], "two": splits["val"]}).problems
    assert "2.png (one) and" in problem.text
    write_image(val / "1.png", seed=7)
    assert not check_splits(splits).problems
    for file in (folder / "cache" / "hf_detr" / "split_checks").glob("*.json"):
        file.write_text("[{}]")
    assert not check_splits(splits).problems


def test_cache_is_asked_before_names(folder: Path, monkeypatch: pytest.MonkeyPatch):
    """Which images are at addresses is found once, not at each start of each process."""
    splits = read(folder, "train", "val")
    first = check_splits(splits)

    def fail(name: str) -> bool:
        raise AssertionError(f"{name} was looked at again")

    monkeypatch.setattr(split_check, "is_remote", fail)
    assert check_splits(splits) == first
    with pytest.raises(AssertionError, match="looked at again"):
        check_splits(splits, use_cache=False)


def test_rows_are_read_once(folder: Path):
    """Images that aren't files are compared by their content, which isn't read at each start."""
    datasets = pytest.importorskip("datasets")
    from .test_hub import DICT_OF_LISTS, make

    rows = make([{"bbox": [], "category": []}] * 4, DICT_OF_LISTS)
    splits = {"train": read_data(rows.select([0, 1])), "val": read_data(rows.select([2, 3]))}
    assert isinstance(rows, datasets.Dataset)
    first = check_splits(splits)
    assert first.problems
    for data in splits.values():
        data.images = Unreadable(data.images)
    assert check_splits(splits) == first


class Unreadable:
    """Images that can only be named."""

    def __init__(self, source: object) -> None:
        self.name, self.stamp, self.__len = source.name, source.stamp, len(source)

    def __len__(self) -> int:
        return self.__len

    def open(self, index: int) -> None:
        raise AssertionError(f"image {index} was read again")
