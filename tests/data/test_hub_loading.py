"""Data sets of `datasets` are loaded from disk, and their images are read lazily."""

import pickle
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from hf_detr.data.hub import read_hf_dataset
from hf_detr.data.hub_loading import HubImages, divides_evenly, load_hf_splits

datasets = pytest.importorskip("datasets")
from datasets.distributed import split_dataset_by_node  # noqa: E402

from ..some_data import write_image  # noqa: E402
from .test_hub import DICT_OF_LISTS, ROWS, make  # noqa: E402


def test_saved_data_sets_are_loaded_and_pickled_without_images(tmp_path: Path):
    """Folders of `save_to_disk` can be read, and workers get no copies of the images."""
    make(ROWS * 20, DICT_OF_LISTS).save_to_disk(tmp_path / "one")
    splits = datasets.DatasetDict({"train": make(ROWS, DICT_OF_LISTS)})
    splits.save_to_disk(tmp_path / "two")
    dataset = read_hf_dataset(load_hf_splits(str(tmp_path / "one")), "coco_xywh")
    assert len(dataset) == 40
    assert len(pickle.dumps(dataset)) < 20_000 < 40 * 40 * 50 * 3
    assert {k: len(v) for k, v in load_hf_splits(str(tmp_path / "two")).items()} == {"train": 2}


def test_stamp_changes_with_the_file_of_a_path(tmp_path: Path) -> None:
    """Paths in rows stay the same where their files change; other rows never change."""
    write_image(tmp_path / "a.png")
    paths = [str(tmp_path / "a.png"), str(tmp_path / "b.png"), None]
    column = datasets.Dataset.from_dict({"image": paths}).cast_column("image", datasets.Image())
    images = HubImages(column, "image")
    before = [images.stamp(index) for index in range(3)]
    assert before == [images.stamp(index) for index in range(3)]
    write_image(tmp_path / "a.png", width=60)
    write_image(tmp_path / "b.png")
    after = [images.stamp(index) for index in range(3)]
    assert after[0] != before[0] and after[1] != before[1] and after[2] == before[2]
    images = HubImages(make(ROWS, DICT_OF_LISTS), "image")
    assert images.stamp(0) == images.stamp(1)


def test_a_saved_split_has_its_name(tmp_path: Path) -> None:
    """A folder of a training split isn't read where another split is asked for."""
    rows = datasets.DatasetDict({"train": make(ROWS, DICT_OF_LISTS)})["train"]
    for name in ("train", "train[:2]"):  # as of load_dataset(..., split="train[:2]")
        folder = tmp_path / name
        datasets.Dataset(rows.data, split=datasets.Split(name)).save_to_disk(folder)
        assert list(load_hf_splits(str(folder))) == ["train"]


def test_local_parquet(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """A folder of Parquet files has splits, a single file has none; parts can be loaded."""
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    (tmp_path / "data").mkdir()
    file = tmp_path / "data" / "validation-00000-of-00001.parquet"
    make(ROWS, DICT_OF_LISTS).to_parquet(file)
    assert {k: len(v) for k, v in load_hf_splits(str(file.parent)).items()} == {"validation": 2}
    part = "validation[:1]"
    loaded = load_hf_splits(str(file.parent), part)
    assert len(loaded[part]) == 1 and len(loaded["validation"]) == 2
    assert len(load_hf_splits(str(file))) == 2
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="empty can't be loaded: "):
        load_hf_splits(str(tmp_path / "empty"))


def test_folders_named_like_a_format(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Protects from the files of other folders, which `datasets` reads too for "parquet"."""
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    monkeypatch.chdir(tmp_path)
    for folder in ("parquet", "others"):
        Path(folder).mkdir()
        make(ROWS, DICT_OF_LISTS).to_parquet(Path(folder, "train.parquet"))
    for name in ("parquet", "./parquet", "others"):
        assert len(load_hf_splits(name)["train"]) == 2
    with pytest.raises(FileNotFoundError, match="imagefolder is no folder here, but a format"):
        load_hf_splits("imagefolder")


def test_names_that_are_nowhere(tmp_path: Path):
    """The error says that it is no folder either."""
    with pytest.raises(FileNotFoundError, match="nowhere/data is neither a file or folder here"):
        load_hf_splits("nowhere/data")


def test_error_of_missing_library_says_how_to_install_it(monkeypatch: pytest.MonkeyPatch):
    """The library is optional."""
    data = make(ROWS, DICT_OF_LISTS)
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(ImportError, match="pip install"):
        read_hf_dataset(data, "coco_xywh")


@pytest.mark.parametrize("num_processes", [2, 3, 4, 5])
def test_division_of_files_is_that_of_the_library(num_processes: int) -> None:
    """Where it says that a process has files of its own, `datasets` reads no others."""
    opened = []

    def rows(shards: list[int]) -> Iterator[dict[str, int]]:
        for shard in shards:
            opened.append(shard)
            yield {"shard": shard}

    stream = datasets.IterableDataset.from_generator(rows, gen_kwargs={"shards": [0, 1, 2, 3]})
    list(split_dataset_by_node(stream, 0, num_processes))
    assert divides_evenly(stream, num_processes) == (len(opened) < 4)
