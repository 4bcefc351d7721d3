"""Streamed data sets: the rows of each process and epoch, their examples, and errors."""

import io
import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import pytest
import torch
from datasets import (
    ClassLabel,
    Dataset,
    Features,
    Image,
    IterableDataset,
    List,
    Value,
    disable_progress_bars,
    load_dataset,
)
from datasets.splits import SplitDict, SplitInfo

from hf_detr import StreamedDataset, read_data, read_hf_dataset, read_splits
from hf_detr.data import streamed
from hf_detr.data.check import check_dataset
from hf_detr.data.formats import DataArguments
from hf_detr.data.split_check import check_splits
from hf_detr_command_line import main

from ..some_data import write_coco

disable_progress_bars()
OBJECTS = {"bbox": List(List(Value("float64"))), "category": List(ClassLabel(names=["cat", "dog"]))}
FEATURES = Features({"image": Image(), "objects": OBJECTS})
FILES, ROWS = 4, 3
STATED = SplitDict({"train": SplitInfo("train", num_examples=100)})


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A temporary cache instead of the user's."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def png(number: int) -> bytes:
    """The file of an image that has the color `number`."""
    file = io.BytesIO()
    pixels = np.full((30 + number % 3, 40, 3), number, dtype=np.uint8)
    PIL.Image.fromarray(pixels).save(file, "png")
    return file.getvalue()


def row(number: int) -> dict[str, Any]:
    """A row with no, one or two objects."""
    objects = {"bbox": [[1, 2, 10, 20 + number % 5]] * (number % 3)}
    return {
        "image": {"bytes": png(number)},
        "objects": {**objects, "category": [number % 2] * (number % 3)},
    }


def write_files(folder: Path, lengths: list[int], split: str = "train") -> None:
    """Write Parquet files with these numbers of rows."""
    numbers = itertools.count()
    for file, length in enumerate(lengths):
        rows = [row(next(numbers)) for _ in range(length)]
        Dataset.from_list(rows, FEATURES).to_parquet(folder / f"{split}-{file}.parquet")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of four Parquet files for training, and one for validation."""
    folder = tmp_path_factory.mktemp("stream")
    write_files(folder, [ROWS] * FILES)
    write_files(folder, [3], "validation")
    return folder


def sharded(lengths: list[int]) -> IterableDataset:
    """Rows in shards of these lengths, without the pause at the end of shuffled Parquet files."""
    ends = list(itertools.accumulate(lengths))
    numbers = [list(range(e - length, e)) for e, length in zip(ends, lengths, strict=True)]
    return IterableDataset.from_generator(rows_of, FEATURES, {"shards": numbers})


def rows_of(shards: list[list[int]]) -> Iterator[dict[str, Any]]:
    yield from (row(number) for shard in shards for number in shard)


def open_rows(folder: Path, split: str = "train") -> IterableDataset:
    return load_dataset(str(folder), split=split, streaming=True)


def numbers_of(rows: Iterator[Any]) -> list[int]:
    """The numbers of rows, which are the colors of their images."""
    opened = (PIL.Image.open(io.BytesIO(one["image"]["bytes"])) for one in rows)
    return [image.getpixel((0, 0))[0] for image in opened]


def test_examples_are_those_of_the_data_set(folder: Path) -> None:
    """Images and targets equal those of the same rows without streaming."""
    stream = StreamedDataset(open_rows(folder), box_format="coco_xywh")
    expected = read_hf_dataset(load_dataset(str(folder), split="train"), "coco_xywh")
    assert len(stream) == len(expected) == FILES * ROWS and stream.id2label == expected.id2label
    light = stream.for_workers()
    for number, one in enumerate(stream.rows()):
        image, target = light.example((number, one), epoch=0)
        assert torch.equal(image, expected[number][0])
        for key, value in expected[number][1].items():
            assert torch.equal(target[key], value), key
    [(keys, part)] = stream.parts(0, 1)
    assert keys == list(enumerate(stream.rows()))
    assert part.ground_truth()["annotations"] == expected.ground_truth()["annotations"]


def test_random_numbers_are_those_of_the_epoch_and_number(folder: Path) -> None:
    """A transform's numbers are other ones in each epoch and for each image."""
    stream = StreamedDataset(open_rows(folder), 12, "coco_xywh", seed=3)
    stream.set_transform(lambda image, target: (float(torch.rand(())), target))
    keys = [(number, epoch) for number in (0, 1) for epoch in (0, 1)] * 2
    drawn = [stream.example((number, stream.first_row), epoch)[0] for number, epoch in keys]
    assert drawn[:4] == drawn[4:] and len(set(drawn)) == 4


@pytest.mark.parametrize("num_processes", [1, 2, 3])
def test_processes_divide_the_rows_of_an_epoch(num_processes: int) -> None:
    """Each row is in one process, whether the files divide evenly or not; epochs differ."""
    stream = StreamedDataset(sharded([ROWS] * FILES), 12, "coco_xywh")
    orders = []
    for epoch in (0, 0, 1):
        parts = [numbers_of(stream.rows(p, num_processes, epoch)) for p in range(num_processes)]
        orders.append(parts)
        assert sorted(itertools.chain(*parts)) == list(range(12))
    assert orders[0] == orders[1] != orders[2]
    ids = [part.table.image_ids.tolist() for p in range(2) for _, part in stream.parts(p, 2)]
    assert sorted(itertools.chain(*ids)) == list(range(12))


def test_files_of_different_lengths() -> None:
    """A process with fewer rows begins again, in the same order; a wrong number is an error."""
    stream = StreamedDataset(sharded([4, 2]), box_format="coco_xywh")
    assert len(stream) == 6
    for process, length in enumerate((4, 2)):
        found = numbers_of(itertools.islice(stream.endless_rows(process, 2, epoch=1), 2 * length))
        assert found[:length] == found[length:] and len(set(found)) == length
    wrong = StreamedDataset(sharded([4, 2]), 7, "coco_xywh")
    for process, num_processes, number in ((0, 1, 6), (0, 3, 2), (2, 4, 1)):
        message = f"has {number} rows of the stream, but an epoch has {len(wrong)} for all"
        with pytest.raises(ValueError, match=message):
            list(itertools.islice(wrong.endless_rows(process, num_processes, 0), 7))


def test_stream_argument(folder: Path, tmp_path: Path) -> None:
    """`--stream` reads splits as streams, and the box format is found in the first rows."""
    arguments = DataArguments(str(folder), stream=True, box_format="coco_xywh")
    train, val = arguments.read_splits()
    assert isinstance(train, StreamedDataset) and (len(train), len(val)) == (12, 3)
    assert isinstance(arguments.read_validation(), StreamedDataset)
    with pytest.raises(ValueError, match="A stream can't be divided by a fraction"):
        data = {"train": open_rows(folder)}
        DataArguments(data, val_fraction=0.5, box_format="coco_xywh").read_splits()
    file, images = map(str, write_coco(tmp_path, []))
    with pytest.raises(ValueError, match="--stream can't be used with COCO data"):
        DataArguments(file, images, stream=True).check()
    with pytest.raises(ValueError, match="stream is for names and paths"):
        DataArguments(load_dataset(str(folder), split="train"), stream=True).read()


def test_data_of_python(folder: Path) -> None:
    """Streams alone, in pairs with other data sets, and rows whose number isn't the stated one."""
    stream = open_rows(folder)
    stream.info.splits = STATED
    data = read_data(stream.take(5), box_format="coco_xywh")
    assert len(data) == 5
    val = load_dataset(str(folder), split="validation")
    assert read_splits((data, data)) == (data, data)
    with pytest.raises(ValueError, match="names can't be used with a StreamedDataset"):
        read_data(data, names={0: "cat"})
    with pytest.raises(ValueError, match="The StreamedDataset has no masks"):
        read_data(data, masks=True)
    train, other = read_splits((stream.take(4), val), box_format="coco_xywh")
    assert isinstance(train, StreamedDataset) and len(train) == 4 and len(other) == 3


def test_stated_number_is_used_for_a_name(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The Hub states the number of rows, so that they needn't be read to count them."""
    stream = open_rows(folder)
    stream.info.splits = STATED
    monkeypatch.setattr("hf_detr.data.reading.load_hf_splits", lambda *given: {"train": stream})
    data = DataArguments("me/photos", stream=True, box_format="coco_xywh").read("train")
    assert len(data) == 100
    stream.info.splits = SplitDict({"train": SplitInfo("train")})
    data = DataArguments("me/photos", stream=True, box_format="coco_xywh").read("train")
    assert len(data) == FILES * ROWS


def test_generators_and_lists_as_columns() -> None:
    """Rows of unknown types: PIL images, and boxes and names of classes as columns."""

    def generate() -> Iterator[dict[str, Any]]:
        for number in range(2):
            image = PIL.Image.open(io.BytesIO(png(number)))
            yield {"image": image, "bbox": [[1, 2, 3, 4]], "label": ["dog"], "tags": [], "width": 0}

    rows = IterableDataset.from_generator(generate)
    data = read_data(rows, box_format="coco_xywh", names={7: "cat", 8: "dog"})
    image, target = data.example((5, data.first_row), epoch=0)
    assert image.shape == (3, 30, 40) and target["class_labels"].tolist() == [1]
    assert target["boxes"].tolist() == [[1, 2, 4, 6]] and int(target["image_id"]) == 5
    assert data.first(1)[0][0].shape == image.shape
    assert check_dataset(data.sample()).may_train


def test_checks_are_of_the_first_rows(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    """A check says how many rows it looked at, and finds their errors."""
    monkeypatch.setattr(streamed, "SAMPLE", 5)
    stream = StreamedDataset(open_rows(folder), box_format="coco_xywh")
    report = check_splits({"train": stream})
    assert report.may_train and len(stream.table) == 5
    assert "only the first 5 rows of the stream are checked" in report.text()
    broken = open_rows(folder).map(lambda one: {**one, "image": b"broken"}, features=None)
    with pytest.warns(UserWarning, match="can't be read: cannot identify"):
        data = StreamedDataset(broken, 12, "coco_xywh", {0: "cat", 1: "dog"})
    assert not check_splits({"train": data}).may_train
    with pytest.raises(ValueError, match="row 3 of the stream.*cannot identify"):
        data.example((3, data.first_row), epoch=0)
    given = ["check", "--data", str(folder), "--stream", "--box-format", "coco_xywh"]
    assert main(given) == 0 and "only the first 5 rows" in capsys.readouterr().out


def test_what_a_stream_needs(folder: Path, tmp_path: Path) -> None:
    """Rows, the columns of images and objects, names, and data that aren't on the disk."""
    rows = open_rows(folder)
    for stream, message in (
        (rows.take(0), "has no rows"),
        (rows.rename_column("image", "photo"), r"has the columns \['objects', 'photo'\]; expected"),
        (rows.remove_columns("objects"), "expected 'image', and 'objects' or lists"),
        (IterableDataset.from_generator(lambda: iter([row(1)])), "have no ClassLabel"),
    ):
        with pytest.raises(ValueError, match=message):
            read_data(stream, box_format="coco_xywh")
    with pytest.raises(ValueError, match="box_format"):
        read_data(rows)
    with pytest.raises(ValueError, match="without masks"):
        read_data(rows, masks=True)
    Dataset.from_list([row(1)], FEATURES).save_to_disk(tmp_path / "saved")
    with pytest.raises(ValueError, match="is on the disk already, .* omit --stream"):
        DataArguments(str(tmp_path / "saved"), stream=True).read()
