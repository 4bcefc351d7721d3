"""Images of data sets of the library `datasets`, saved in all ways."""

import shutil
from pathlib import Path

import pytest

from hf_detr.inference.data_set_images import DataSetImages

from ..some_data import write_image

datasets = pytest.importorskip("datasets")
datasets.disable_progress_bars()


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of data sets of five images."""
    folder = tmp_path_factory.mktemp("data")
    files = [write_image(folder / "images" / f"{i}.png", seed=i) for i in range(5)]
    rows = datasets.Dataset.from_dict({"image": [str(file) for file in files]})
    rows = rows.cast_column("image", datasets.Image())
    rows.save_to_disk(folder / "one")
    datasets.DatasetDict(train=rows, test=rows).save_to_disk(folder / "two")
    rows.to_parquet(folder / "rows.parquet")
    plain = datasets.Dataset.from_dict({"photo": [file.read_bytes() for file in files]})
    plain.to_parquet(folder / "plain.parquet")
    return folder


def contents(images: DataSetImages, process: int = 0, num_processes: int = 1) -> list[bytes]:
    images.check()
    found = [image.content() for image in images.part(process, num_processes)]
    return [one.read_bytes() if isinstance(one, Path) else one for one in found]


@pytest.mark.parametrize(
    ("name", "split", "column"),
    [
        ("one", None, "image"),
        ("two", "test", "image"),
        ("rows.parquet", None, "image"),
        ("plain.parquet", None, "photo"),
        ("images", None, "image"),
    ],
)
def test_every_way_of_saving(saved: Path, name: str, split: str | None, column: str) -> None:
    """Rows come in order as the bytes of the files, and processes share them."""
    images = DataSetImages(str(saved / name), split, column)
    expected = [(saved / "images" / f"{number}.png").read_bytes() for number in range(5)]
    assert contents(images) == expected
    if name != "images":  # whose rows have a file each
        assert contents(images, 1, 2) == expected[1::2]
    found = [image.name for image in images.part(0, 1)]
    assert found == [f"{saved / name}/{split or 'train'}/{number}" for number in range(5)]


def test_local_files(saved: Path) -> None:
    """The images in a folder, which can't be overwritten then; other data sets have none."""
    files = [saved / "images" / f"{number}.png" for number in range(5)]
    assert sorted(DataSetImages(str(saved / "images")).local_files()) == files
    (results := saved / "one" / "results").mkdir()
    shutil.copy(files[0], results)  # as a run before wrote it
    for name in (str(saved / "one"), str(saved / "rows.parquet"), "name/on-the-hub"):
        images = DataSetImages(name)
        assert not list(images.local_files()) and not list(images.skipped())


def test_files_are_shared_by_processes(saved: Path, tmp_path: Path) -> None:
    """If all get some, processes read files of their own; their rows have different names."""
    for number in range(4):
        rows = datasets.Dataset.from_dict({"image": [f"{number}{row}".encode() for row in "ab"]})
        rows.to_parquet(tmp_path / f"train-{number}.parquet")
    images = DataSetImages(str(tmp_path))
    assert [contents(images, process, 2) for process in range(2)] == [
        [b"0a", b"0b", b"2a", b"2b"],
        [b"1a", b"1b", b"3a", b"3b"],
    ]
    parts = [list(images.part(process, 2)) for process in range(2)]
    names = [image.name for part in parts for image in part]
    assert len(set(names)) == 8 and names[4] == f"{tmp_path}/train/00002-of-00002/0"
    # By the position, all are in the order of one process.
    found = sorted((image for part in parts for image in part), key=lambda one: one.position)
    assert [image.content() for image in found] == contents(images)


def test_positions_of_rows(saved: Path) -> None:
    """Rows that processes take in turn have the number of the row."""
    images = DataSetImages(str(saved / "one"))
    for process in range(2):
        found = [image.position for image in images.part(process, 2)]
        assert found == list(range(5))[process::2]


def test_what_is_missing_is_named(saved: Path, tmp_path: Path) -> None:
    """Splits and columns are listed, and a row without an image is that row's failure."""
    with pytest.raises(ValueError, match="has the splits train, test; give one of them as --split"):
        contents(DataSetImages(str(saved / "two")))
    for name in ("one", "rows.parquet"):
        with pytest.raises(ValueError, match="has the splits train; give"):
            contents(DataSetImages(str(saved / name), "test"))
    with pytest.raises(ValueError, match="no column 'photo'; its columns are .'image'"):
        contents(DataSetImages(str(saved / "one"), column="photo"))
    with pytest.raises(FileNotFoundError, match="nowhere doesn't exist"):
        DataSetImages(str(tmp_path / "nowhere")).check()
    rows = datasets.Dataset.from_dict({"image": [b"x", None]})
    rows.save_to_disk(tmp_path / "rows")
    first, second = DataSetImages(str(tmp_path / "rows")).part(0, 1)
    assert first.content() == b"x"
    with pytest.raises(ValueError, match="train/1 has no image"):
        second.content()
