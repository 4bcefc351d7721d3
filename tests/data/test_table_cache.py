"""Mapped tables: equal to those that were read, shared, and made again when data change."""

import json
import os
import pickle
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import pytest
import torch

from hf_detr.data import table_cache
from hf_detr.data.annotation_table import AnnotationTable
from hf_detr.data.check import check_dataset
from hf_detr.data.coco import read_coco
from hf_detr.data.dataset import DetectionDataset
from hf_detr.data.packed_values import PackedValues
from hf_detr.data.table_cache import MappedArray
from hf_detr.data.voc import read_voc
from hf_detr.data.yolo import read_yolo

from ..some_data import CATEGORIES, entry, write_coco, write_image
from .test_voc import voc_object, write_voc
from .test_yolo import BOX, POLYGON, write_yolo

ENTRIES = [entry(1, 2), entry(2, category_id=18, iscrowd=1), entry(3, 2, area=None)]


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A temporary cache, which small files use, too."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(table_cache, "MIN_BYTES", 0)
    return tmp_path / "cache" / "hf_detr" / "tables"


def values(table: AnnotationTable) -> dict[str, Any]:
    """All fields of a table, in a form that can be compared."""
    found = {field.name: getattr(table, field.name) for field in fields(table)}
    for name, value in found.items():
        if isinstance(value, np.ndarray):
            found[name] = value.dtype, value.shape, value.tobytes()
        if isinstance(value, PackedValues):
            found[name] = value.tolist()
    return found


def is_mapped(dataset: DetectionDataset) -> bool:
    """Whether the data set's numbers are all in a file."""
    columns = [getattr(dataset.table, field.name) for field in fields(dataset.table)]
    arrays = [column for column in columns if isinstance(column, np.ndarray)]
    return len(arrays) == 8 and all(getattr(array, "place", None) for array in arrays)


@pytest.mark.parametrize("masks", [True, False])
def test_mapped_table_equals_the_one_that_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, masks: bool
):
    """Fields, images and examples are the same, whether read, just cached or mapped later."""
    files = write_coco(tmp_path, ENTRIES)
    first, second = read_coco(*files, masks=masks), read_coco(*files, masks=masks)
    monkeypatch.setattr(table_cache, "MIN_BYTES", 10**9)
    read = read_coco(*files, masks=masks)
    assert is_mapped(first) and is_mapped(second) and not is_mapped(read)
    for mapped in (first, second):
        assert values(mapped.table) == values(read.table)
        for index in range(2):
            assert mapped.images.name(index) == read.images.name(index)
            one, other = mapped[index], read[index]
            assert torch.equal(one[0], other[0]) and one[1].keys() == other[1].keys()
            assert all(torch.equal(one[1][key], other[1][key]) for key in one[1])
        assert mapped.ground_truth() == read.ground_truth()
        assert values(mapped.subset([1]).table) == values(read.subset([1]).table)
        assert values((mapped + mapped).table) == values((read + read).table)


def test_workers_get_the_place_instead_of_the_numbers(tmp_path: Path):
    """What is sent to a started worker doesn't grow with the data, and parts are sent right."""
    entries = [entry(n) for n in range(2000)]
    dataset = read_coco(*write_coco(tmp_path, entries), masks=True)
    sent = pickle.dumps((dataset.table, dataset.images))
    assert len(sent) < 5000 < dataset.table.boxes_xywh.nbytes
    table, images = pickle.loads(sent)
    assert values(table) == values(dataset.table) and images.name(1) == dataset.images.name(1)
    assert isinstance(table.ids, MappedArray) and table.ids.place == dataset.table.ids.place
    part = dataset.table.boxes_xywh[5:8, ::2]
    assert np.array_equal(pickle.loads(pickle.dumps(part)), part)
    assert type(pickle.loads(pickle.dumps(part))) is np.ndarray


def test_mapped_numbers_cannot_be_changed(tmp_path: Path):
    """Others use the same memory."""
    dataset = read_coco(*write_coco(tmp_path, ENTRIES))
    with pytest.raises(ValueError, match="read-only"):
        dataset.table.boxes_xywh[0] = 0


def test_changed_data_are_read_again(tmp_path: Path, cache: Path):
    """Another content, other options; each has its file, so that workers can still map the old."""
    file, folder = write_coco(tmp_path, ENTRIES)
    old = read_coco(file, folder)
    assert read_coco(file, folder, box_format="xyxy").table.boxes_xywh[0, 2] == 10
    assert len(list(cache.iterdir())) == 2
    content = json.loads(file.read_text())
    content["annotations"][0]["bbox"] = [1, 2, 3, 4]
    file.write_text(json.dumps(content))
    sent = pickle.dumps(old.table)
    assert read_coco(file, folder).table.boxes_xywh.tolist()[1] == [1, 2, 3, 4]
    assert old.table.boxes_xywh.tolist()[1] == [10, 5, 20, 8]  # of the file that was replaced
    assert len(list(cache.iterdir())) == 3
    assert values(pickle.loads(sent)) == values(old.table)


def test_sizes_from_images_are_read_again_if_those_change(tmp_path: Path):
    """The table depends on images, too, where the file has no sizes."""
    images = [{"id": 1, "file_name": "1.png"}, {"id": 2, "file_name": "2.png"}]
    files = write_coco(tmp_path, ENTRIES, images=images)
    assert read_coco(*files).image_hw(1) == (40, 50) and is_mapped(read_coco(*files))
    write_image(tmp_path / "images" / "2.png", height=30, width=70)
    assert read_coco(*files).image_hw(1) == (30, 70) and is_mapped(read_coco(*files))


def test_orientation_is_read_again_if_images_change(tmp_path: Path):
    """A photo that is turned by its EXIF orientation has another size than in the file."""
    photo = {"id": 1, "file_name": "1.jpg", "height": 40, "width": 50}
    files = write_coco(tmp_path, [entry(1, bbox=[10, 5, 20, 44])], 1, images=[photo])
    exif = PIL.Image.Exif()
    exif[0x0112] = 6
    PIL.Image.new("RGB", (50, 40)).save(tmp_path / "images" / "1.jpg", exif=exif)
    for _ in range(2):  # the warning, too, is that of the first time
        with pytest.warns(UserWarning, match="upright size is used"):
            dataset = read_coco(*files)
        assert dataset.image_hw(0) == (50, 40) and is_mapped(dataset)
    PIL.Image.new("RGB", (50, 40)).save(tmp_path / "images" / "1.jpg")
    assert read_coco(*files).image_hw(0) == (40, 50)


def test_names_found_in_another_spelling_are_looked_up_each_time(tmp_path: Path):
    """A file of the exact name may be added."""
    write_image(tmp_path / "images" / "ä b.png")
    images = [{"id": 1, "file_name": "C:\\photos\\ä b.png", "height": 40, "width": 50}]
    files = write_coco(tmp_path, [entry(1)], 0, images=images)
    with pytest.warns(UserWarning, match="spelled differently"):
        assert not is_mapped(read_coco(*files))
    images[0]["file_name"] = "ä b.png"
    files = write_coco(tmp_path, [entry(1)], 0, images=images)
    assert is_mapped(read_coco(*files)) and len(read_coco(*files)[0][1]["boxes"]) == 1


def test_problems_are_kept_with_their_warning(tmp_path: Path):
    """An error isn't forgotten because the table was cached."""
    files = write_coco(tmp_path, [entry(1), entry(2, 2, category_id=7)])
    for _ in range(2):
        with pytest.warns(UserWarning, match="object 2 has the unknown category id 7") as caught:
            dataset = read_coco(*files)
        assert is_mapped(dataset) and len(caught) == 1
        with pytest.raises(ValueError, match="unknown category id 7"):
            dataset[1]


@pytest.mark.parametrize("damage", ["empty", "short", "long", "header", "bit"])
def test_damaged_files_are_replaced(tmp_path: Path, cache: Path, damage: str):
    """The cache can always be removed or truncated."""
    files = write_coco(tmp_path, ENTRIES)
    expected = values(read_coco(*files).table)
    (file,) = cache.iterdir()
    content = file.read_bytes()
    file.unlink()  # is mapped
    lines = content.split(b"\n", 2)
    file.write_bytes(
        {
            "empty": b"",
            "short": content[:-1],
            "long": content + b"\0",
            "header": b"\n".join([lines[0], lines[1][:-5], lines[2]]),
            "bit": content.replace(b'"category_ids": [3,', b'"category_ids": [2,'),
        }[damage]
    )
    assert file.read_bytes() != content
    number = file.stat().st_ino
    assert values(read_coco(*files).table) == expected
    assert file.stat().st_ino != number and is_mapped(read_coco(*files))


def test_changed_boxes_are_checked_again(tmp_path: Path):
    """The cached check of a mapped table doesn't read all numbers to see whether they changed."""
    file, folder = write_coco(tmp_path, [entry(1, bbox=[10, 5, 20, 8])])
    assert "box outside its image (dropped)" not in check_dataset(read_coco(file, folder)).counts
    file.write_text(file.read_text().replace("[10, 5, 20, 8]", "[90, 5, 20, 8]"))
    assert "box outside its image (dropped)" in check_dataset(read_coco(file, folder)).counts


def test_versions_have_their_own_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Workers of a running training can map its table after another version read the data."""
    files = write_coco(tmp_path, ENTRIES)
    sent = pickle.dumps(read_coco(*files).table)
    monkeypatch.setattr(table_cache, "VERSION", "another")
    read_coco(*files)
    assert pickle.loads(sent).ids.tolist() == read_coco(*files).table.ids.tolist()


def test_content_with_the_times_of_another_is_read(tmp_path: Path):
    """`cp -p` over a file keeps its place, and here also its size and time."""
    file, folder = write_coco(tmp_path, ENTRIES)
    read_coco(file, folder)
    state = file.stat()
    content = json.loads(file.read_text())
    content["annotations"][0]["bbox"][0] += 1
    file.write_text(json.dumps(content))
    os.utime(file, ns=(state.st_atime_ns, state.st_mtime_ns))
    assert file.stat().st_size == state.st_size
    assert read_coco(file, folder).table.boxes_xywh[1, 0] == 11


def test_place_in_a_table_of_other_images_is_not_mapped(tmp_path: Path):
    """The annotations are the same, but sizes from images, or their places, could differ."""
    images = [{"id": 1, "file_name": "1.png"}, {"id": 2, "file_name": "2.png"}]
    files = write_coco(tmp_path, ENTRIES, images=images)
    sent = pickle.dumps(read_coco(*files).table)
    write_image(tmp_path / "images" / "2.png", height=30, width=70)
    read_coco(*files)
    with pytest.raises(ValueError, match="images have changed. Read the data set again"):
        pickle.loads(sent)


def test_leftovers_of_killed_processes_are_removed(tmp_path: Path, cache: Path):
    """They are as large as the tables."""
    files = write_coco(tmp_path, ENTRIES)
    read_coco(*files)
    (file,) = cache.iterdir()
    file.with_name(f".{file.name}.999999").touch()
    file.unlink()
    read_coco(*files)
    assert list(cache.iterdir()) == [file]


def test_empty_data_set(tmp_path: Path):
    """Arrays without elements can be mapped."""
    files = write_coco(tmp_path, [], 0, categories=CATEGORIES)
    files[1].mkdir()
    for _ in range(2):
        dataset = read_coco(*files)
        assert len(dataset) == 0 and dataset.table.boxes_xywh.shape == (0, 4)
        assert pickle.loads(pickle.dumps(dataset.table)).ids.shape == (0,)


def test_small_files_are_not_cached(tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch):
    """Reading them takes no time."""
    monkeypatch.undo()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    assert not is_mapped(read_coco(*write_coco(tmp_path, ENTRIES))) and not cache.exists()


def write_small_files(folder: Path, name: str) -> Path:
    """Write a data set with a small annotation file per image, and polygons in YOLO."""
    if name == "yolo":
        return write_yolo(folder, {"a": f"{BOX}\n{POLYGON}", "sub/ü b": POLYGON, "c": None})
    return write_voc(folder, {"a": voc_object("cat") + voc_object("dog"), "b": "", "c": "x"}, "")


READERS = {"yolo": read_yolo, "voc": read_voc}


@pytest.mark.parametrize("name", READERS)
def test_tables_of_small_files_are_mapped(
    tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch
):
    """From some thousands of them on; those of fewer are read in a fraction of a second."""
    folder, read = write_small_files(tmp_path / "data", name), READERS[name]
    monkeypatch.setattr(table_cache, "MIN_BYTES", 10**9)
    plain = read(folder)
    assert not is_mapped(plain) and not is_mapped(read(folder))
    monkeypatch.setattr(table_cache, "MIN_FILES", 3)
    for _ in range(2):
        mapped = read(folder)
        assert is_mapped(mapped) and values(mapped.table) == values(plain.table)
        for index in range(3):
            assert mapped.images.name(index) == plain.images.name(index)
            assert torch.equal(mapped[index][0], plain[index][0])
    if name == "yolo":
        assert is_mapped(read_yolo(folder / "data.yaml"))
        write_yolo(tmp_path / "polygons", {"a": POLYGON})
        for _ in range(2):
            masks = read_yolo(tmp_path / "polygons", masks=True)[0][1]["masks"]
            assert masks.sum() == 160
    else:
        assert is_mapped(read_voc(folder, class_names=["dog", "cat"]))
        assert read_voc(folder, class_names=["dog", "cat"]).id2label == {0: "dog", 1: "cat"}


def change_label(folder: Path, name: str) -> None:
    if name == "yolo":
        (folder / "labels" / "train" / "a.txt").write_text(POLYGON)
    else:
        file = folder / "Annotations" / "a.xml"
        file.write_text(file.read_text().replace("<xmin>11", "<xmin>12"))


def remove_label(folder: Path, name: str) -> None:
    (folder / ("labels/train/a.txt" if name == "yolo" else "Annotations/a.xml")).unlink()


def add_image(folder: Path, name: str) -> None:
    write_image(folder / ("images/train" if name == "yolo" else "JPEGImages") / "c.bmp")


def change_image(folder: Path, name: str) -> None:
    file = "images/train/c.png" if name == "yolo" else "JPEGImages/c.jpg"
    write_image(folder / file, height=30, width=70)


def change_classes(folder: Path, name: str) -> None:
    if name == "yolo":
        (folder / "data.yaml").write_text("{names: [cat, cow], train: images/train}")
    else:  # in an image of another split
        text = f"<annotation>{voc_object('ant')}</annotation>"
        (folder / "Annotations" / "other.xml").write_text(text)


def change_list(folder: Path, name: str) -> None:
    if name == "yolo":
        (folder / "data.yaml").write_text("{names: [cat, dog], train: list.txt}")
        (folder / "list.txt").write_text("images/train/c.png\nimages/train/a.png\n")
    else:
        (folder / "ImageSets" / "Main" / "train.txt").write_text("b\na\n")


@pytest.mark.filterwarnings("ignore:The annotations have 1 problem", "ignore:1 images have the")
@pytest.mark.parametrize("name", READERS)
@pytest.mark.parametrize(
    "change",
    [change_label, remove_label, add_image, change_image, change_classes, change_list],
)
def test_small_files_that_changed_are_read_again(
    tmp_path: Path, name: str, change: Any, monkeypatch: pytest.MonkeyPatch
):
    """Whatever the table depends on: labels, images, their lists, classes."""
    folder, read = write_small_files(tmp_path / "data", name), READERS[name]
    before = read(folder)
    assert is_mapped(before)
    change(folder, name)
    after = read(folder)
    monkeypatch.setattr(table_cache, "MIN_BYTES", 10**9)
    expected = read(folder)
    assert not is_mapped(expected) and values(after.table) == values(expected.table)
    names = [[data.images.name(i) for i in range(len(data))] for data in (after, expected)]
    assert names[0] == names[1]
    assert values(before.table) != values(after.table)
