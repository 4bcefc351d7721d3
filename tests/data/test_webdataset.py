"""Tests the reader of WebDataset's tar files."""

import io
import json
import pickle
import tarfile
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import PIL.Image
import pytest
import torch
from torch.utils.data import DataLoader

from hf_detr import read_data, read_splits, read_webdataset
from hf_detr.data.check import check_dataset


def tar_of(files: dict[str, Any]) -> bytes:
    """A tar file of images, given as seeds, and of JSON values."""
    content = io.BytesIO()
    with tarfile.open(fileobj=content, mode="w") as tar:
        for name, value in files.items():
            data = json.dumps(value).encode()
            if isinstance(value, int):
                data = image_bytes(value)
            member = tarfile.TarInfo(name)
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
    return content.getvalue()


def pixels(seed: int) -> np.ndarray:
    """The pixels of an image."""
    return np.random.default_rng(seed).integers(0, 256, (40, 50, 3), dtype=np.uint8)


def image_bytes(seed: int) -> bytes:
    """A PNG file."""
    content = io.BytesIO()
    PIL.Image.fromarray(pixels(seed)).save(content, "png")
    return content.getvalue()


CAR = {"bbox": [10, 5, 20, 8], "category": "car"}
DOG = {"bbox": [1, 2, 30, 30], "category": "dog", "iscrowd": 1}
FIRST = {
    "a/1.png": 1,
    "a/1.json": {"objects": {"bbox": [CAR["bbox"]] * 2, "category": ["car", "dog"]}},
    "a/2.json": {"annotations": [CAR, DOG], "image_id": 77, "width": 50, "height": 40},
    "a/2.PNG": 2,
    "a/readme.txt": {},
}
SECOND = {"1.png": 3, "1.json": []}


@pytest.fixture(params=["file", "memory"])
def address(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """The address of a folder of tar files, on disk or in another file system of fsspec."""
    root = str(tmp_path) if request.param == "file" else f"memory://{tmp_path.name}"
    files = fsspec.filesystem(request.param)
    path = str(tmp_path) if request.param == "file" else f"/{tmp_path.name}"
    files.pipe({f"{path}/train-0.tar": tar_of(FIRST), f"{path}/train-1.tar": tar_of(SECOND)})
    files.pipe({f"{path}/val-0.tar": tar_of(FIRST)})
    return root


def test_samples(address: str) -> None:
    """Every form of annotations is read, images come from their place, also in a worker."""
    data = read_webdataset(f"{address}/train-{{0..1}}.tar", "coco_xywh")
    assert data.id2label == {0: "car", 1: "dog"}
    assert [len(data.table.rows(i)) for i in range(3)] == [2, 2, 0]
    assert data.table.boxes_xywh[0].tolist() == CAR["bbox"] and data.table.is_crowd[3]
    for index, seed in ((2, 3), (0, 1), (1, 2)):
        image, target = data[index]
        assert torch.equal(image.permute(1, 2, 0), torch.from_numpy(pixels(seed)))
    assert data.images.name(1).endswith("train-0.tar/a/2.PNG")
    assert check_dataset(data, use_cache=False).may_train
    if address.startswith("memory"):  # which other processes don't have
        data = pickle.loads(pickle.dumps(data))
    workers = 0 if address.startswith("memory") else 2
    loader = DataLoader(data, batch_size=None, num_workers=workers)
    assert [int(target["orig_size"][0]) for _, target in loader] == [40] * 3


def test_stamp_changes_with_the_tar_file(tmp_path: Path) -> None:
    """The cache of the data check notices other pixels at the same place of a tar file."""
    (tmp_path / "a.tar").write_bytes(tar_of(SECOND))
    before = read_webdataset(str(tmp_path / "a.tar"), "coco_xywh", {0: "a"}).images.stamp(0)
    assert before == read_webdataset(str(tmp_path / "a.tar"), "xyxy", {0: "a"}).images.stamp(0)
    (tmp_path / "b.tar").write_bytes(tar_of({**SECOND, "1.png": 4}))
    (tmp_path / "b.tar").replace(tmp_path / "a.tar")
    assert before != read_webdataset(str(tmp_path / "a.tar"), "xyxy", {0: "a"}).images.stamp(0)


def test_data_argument(address: str) -> None:
    """`--data` finds tar files and their splits, whose text categories have the same labels."""
    train, val = read_splits(address, box_format="coco_xywh")
    assert (len(train), len(val)) == (3, 2) and train.id2label == val.id2label
    assert len(read_data(f"{address}/train-1.tar", names={0: "a"}, box_format="xyxy")) == 1
    with pytest.raises(ValueError, match="WebDataset data, which has no masks|can't be used with"):
        read_data(address, "train", masks=True)


@pytest.mark.filterwarnings("ignore:the boxes are read as:UserWarning")
def test_evaluation_finds_the_box_format_of_training(tmp_path: Path) -> None:
    """Boxes of validation data that fit several formats are read as they are in training."""
    for name, box in (("train", [30, 20, 20, 8]), ("val", [5, 5, 20, 8])):
        files = {"1.png": 1, "1.json": [{"bbox": box, "category": "car"}]}
        (tmp_path / f"{name}-0.tar").write_bytes(tar_of(files))
    for val in (read_splits(str(tmp_path))[1], read_data(str(tmp_path), "val")):
        assert val.table.boxes_xywh.tolist() == [[5, 5, 20, 8]]
    with pytest.raises(ValueError, match="all 1 boxes fit coco_xywh and xyxy"):
        read_webdataset(str(tmp_path / "val-0.tar"))


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({}, r"a.tar has no samples; expected images, .* JSON files: none\."),
        ({"a.x.png": 1, "b.txt": 2}, r"has no samples; .* files: .*a.x.png\."),
        ({"a.1.png": 1, "a.1.jpg": 1, "a.1.json": []}, "the sample .*a.1' has two images"),
        ({"1.png": 1}, "1 samples aren't complete: .*1' has no JSON file of objects"),
        ({"1.json": []}, "has no image"),
        ({"1.png": 1, "1.jpg": 1, "1.json": []}, "the sample .*1' has two images"),
        ({"1.png": 1, "1.json": [{**CAR, "label": "x"}]}, "are all names of 'category_id'"),
    ],
)
def test_wrong_samples(tmp_path: Path, files: dict[str, Any], message: str) -> None:
    """Incomplete and ambiguous samples are named."""
    (tmp_path / "a.tar").write_bytes(tar_of(files))
    with pytest.raises(ValueError, match=message):
        read_webdataset(str(tmp_path / "a.tar"))


def test_files_that_arent_tars(tmp_path: Path) -> None:
    """A compressed tar file, whose images have no place to be read from, is refused."""
    import gzip

    (tmp_path / "a.tar").write_bytes(gzip.compress(tar_of(SECOND)))
    with pytest.raises(ValueError, match="a.tar can't be read .* expected a tar file, not compr"):
        read_webdataset(str(tmp_path / "a.tar"))


def test_names_with_several_dots(address: str) -> None:
    """A name that has no known ending after its first dot ends at the last one."""
    files = fsspec.open(f"{address}/x.tar", "wb")
    members = {"b.1.PNG": 1, "b.1.json": [CAR], "c_jpg.rf.2.png": 2, "c_jpg.rf.2.JSON": [DOG]}
    with files as file:
        file.write(tar_of({**members, "._b.1.png": 3, "._b.1.json": [], "b.1.txt": 0}))
    data = read_webdataset(f"{address}/x.tar", "coco_xywh")
    assert data.table.class_labels.tolist() == [0, 1] and not data.table.problems
    for index in range(2):
        assert torch.equal(data[index][0].permute(1, 2, 0), torch.from_numpy(pixels(index + 1)))


@pytest.mark.parametrize("key", ["", "a.b/"])
def test_files_of_no_sample_are_reported(tmp_path: Path, key: str) -> None:
    """More files of a sample aren't samples themselves, even with a JSON file of their own."""
    members = {"1.png": 1, "1.json": [CAR], "1.seg.png": 2, "1.map.png": 3, "1.map.json": {}}
    members |= {"2.x.json": [], "3.x.png": 4, "3.x.txt": {}}
    content = tar_of({f"{key}{name}": value for name, value in members.items()})
    (tmp_path / "x.tar").write_bytes(content)
    with pytest.warns(UserWarning, match="5 images and JSON files in tar .* such as .*1.seg.png,"):
        data = read_webdataset(str(tmp_path / "x.tar"), "coco_xywh")
    (problem,) = data.table.problems
    assert len(data) == 1 and not problem.is_fatal
