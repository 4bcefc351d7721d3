"""YOLO data: locations of images, label files, polygons."""

from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from hf_detr.data.yolo import read_yolo

from ..some_data import write_image

BOX = "1 0.4 0.225 0.4 0.2"  # 10 … 30, 5 … 13 in an image of 40 x 50
POLYGON = "0 0.2 0.125 0.6 0.125 0.6 0.325 0.2 0.325"


def write_yolo(folder: Path, labels: dict[str, str | None], **changes: Any) -> Path:
    """Write images and their label files (unless None) for the split `train`."""
    for stem, text in labels.items():
        write_image(folder / "images" / "train" / f"{stem}.png")
        if text is not None:
            file = folder / "labels" / "train" / f"{stem}.txt"
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(text)
    content = {"names": ["cat", "dog"], "train": "images/train", **changes}
    (folder / "data.yaml").write_text(yaml.safe_dump(content))
    return folder


def test_boxes_polygons_and_images_without_labels(tmp_path: Path):
    """Label files may be complete, empty or missing; line numbers are the objects' ids."""
    folder = write_yolo(tmp_path, {"a": f"{BOX}\n\n{POLYGON}\n", "b": None, "c": ""})
    dataset = read_yolo(folder)
    assert dataset.id2label == {0: "cat", 1: "dog"} and len(dataset) == 3
    _, target = dataset[0]
    assert target["class_labels"].tolist() == [1, 0]
    expected = torch.tensor([[10.0, 5, 30, 13], [10.0, 5, 30, 13]])
    torch.testing.assert_close(target["boxes"].as_subclass(torch.Tensor), expected)
    assert dataset.table.ids.tolist() == [1, 3]
    assert len(dataset[1][1]["boxes"]) == len(dataset[2][1]["boxes"]) == 0


def test_polygons_become_masks(tmp_path: Path):
    """x is scaled by the width, y by the height."""
    dataset = read_yolo(write_yolo(tmp_path, {"a": POLYGON}), masks=True)
    masks = dataset[0][1]["masks"]
    assert masks.sum() == 160 and masks[0, 5:13, 10:30].all()


@pytest.mark.parametrize("kind", ["folder", "folders", "list", "beside", "root", "absolute"])
def test_every_kind_of_image_location(tmp_path: Path, kind: str):
    """The layouts exported by common tools can be read."""
    changes: dict[str, Any] = {
        "folder": {},
        "folders": {"train": ["images/train"]},
        "list": {"train": "train.txt"},
        "beside": {"train": "../images/train"},
        "root": {"path": "images", "train": "train"},
        "absolute": {"train": str(tmp_path / "data" / "images" / "train")},
    }[kind]
    folder = write_yolo(tmp_path / "data", {"a": BOX, "b": BOX}, **changes)
    (folder / "train.txt").write_text("./images/train/a.png\nimages/train/b.png\n")
    dataset = read_yolo(folder / "data.yaml")
    assert [len(dataset[i][1]["boxes"]) for i in range(len(dataset))] == [1, 1]


def test_classes_of_a_dict_are_numbered_without_gaps(tmp_path: Path):
    """Label files may use some of the classes of a larger list."""
    dataset = read_yolo(write_yolo(tmp_path, {"a": BOX}, names={5: "cow", 1: "dog"}))
    assert dataset.id2label == {0: "dog", 1: "cow"} and dataset.category_ids == (1, 5)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("1 0.5 0.5 0.1", "expected 'class cx cy w h'"),
        ("1 0.5 0.5 0.1 0.1 0.1", "expected"),
        ("dog 0.5 0.5 0.1 0.1", "expected"),
        ("1 0.5 nan 0.1 0.1", "expected"),
        ("2 0.5 0.5 0.1 0.1", "class 2 is not one of the 2"),
        ("0.5 0.5 0.5 0.1 0.1", "class 0.5 is not one of the 2"),
    ],
)
def test_errors_have_file_and_line(tmp_path: Path, line: str, message: str):
    """Only the image with the invalid line can't be used."""
    folder = write_yolo(tmp_path, {"a": f"{BOX}\n{line}\n", "b": BOX})
    with pytest.warns(UserWarning, match=f"a.txt:2: .*{message}"):
        dataset = read_yolo(folder)
    with pytest.raises(ValueError, match="a.txt:2"):
        dataset[0]
    assert len(dataset[1][1]["boxes"]) == 1


def test_pixels_in_label_files_warn(tmp_path: Path):
    """Labels that aren't divided by the image's size are detected."""
    folder = write_yolo(tmp_path, {"a": "1 20 9 20 8\n" * 5})
    with pytest.warns(UserWarning, match="box_format is 'cxcywh_normalized', but"):
        read_yolo(folder)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"names": None}, "names is None"),
        ({"names": {"a": 1}}, "names is"),
        ({"train": "nowhere"}, "train is 'nowhere', but .* doesn't exist"),
        ({"train": "labels"}, "no images"),
        ({"train": None, "val": "images"}, r"no 'train'; its splits are \['train', 'val'\]"),
    ],
)
def test_invalid_settings_raise(tmp_path: Path, changes: dict, message: str):
    """Invalid settings don't give an empty data set."""
    with pytest.raises(ValueError, match=message):
        read_yolo(write_yolo(tmp_path, {"a": BOX}, **changes))


def test_missing_and_invalid_yaml_raise(tmp_path: Path):
    """The error of an invalid file has the line."""
    with pytest.raises(ValueError, match="data.yaml doesn't exist"):
        read_yolo(tmp_path)
    (tmp_path / "data.yaml").write_text("names: [a\ntrain: b: c")
    with pytest.raises(ValueError, match="(?s)is not a YAML file: .*line 2"):
        read_yolo(tmp_path)
