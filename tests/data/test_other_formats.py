"""Folders without a known layout: what their files look like."""

import json
from pathlib import Path
from typing import Any

import pytest

from hf_detr.data.layouts import find_data
from hf_detr.data.other_formats import what_it_looks_like
from hf_detr.data.yolo import read_yolo

from ..some_data import write_image

BOX = "1 0.4 0.225 0.4 0.2"


def write_yolo_without_yaml(folder: Path, *images: str, names: str | None = None) -> None:
    """Write images and their labels in the folders of YOLO, and a file of names in its place."""
    for image in images:
        write_image(folder / image)
        file = (folder / image.replace("images", "labels")).with_suffix(".txt")
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(BOX)
    if names is not None:
        (folder / names).write_text("cat\nno: 1\n\n")


@pytest.mark.parametrize(
    ("images", "names", "expected"),
    [
        (
            ["images/train/1.png", "images/val/2.png"],
            "classes.txt",
            "train: images/train\nval: images/val\nnames: [cat, 'no: 1']\n",
        ),
        (["1.png"], "classes.txt", "train: .\nnames: [cat, 'no: 1']\n"),
        (["images/1.png"], "labels/classes.txt", "train: images\nnames: [cat, 'no: 1']\n"),
        (
            ["train/images/1.png", "test/images/2.png"],
            None,
            "train: train/images\nval: test/images",
        ),
        (["a/1.png", "b/2.png"], None, "train: [a, b]\nnames: [name of class 0, name of class 1]"),
    ],
)
def test_the_missing_yaml_file_of_yolo(
    tmp_path: Path, images: list[str], names: str | None, expected: str
):
    """What the error says to write makes the data readable."""
    write_yolo_without_yaml(tmp_path, *images, names=names)
    with pytest.raises(ValueError, match="it looks like YOLO without data.yaml") as raised:
        find_data(str(tmp_path))
    start, _, text = str(raised.value).partition(" such as\n")
    assert start.endswith(f"Write {tmp_path / 'data.yaml'}") and text.startswith(expected)
    (tmp_path / "data.yaml").write_text(text)
    splits = find_data(str(tmp_path)).splits
    assert sum(len(read_yolo(tmp_path, split)) for split in splits) == len(images)
    assert read_yolo(tmp_path).table.class_labels.tolist()[0] == 1


TASK = {"id": 1, "data": {"image": "a.png"}}


@pytest.mark.parametrize(
    ("content", "tool"),
    [
        ({"version": "5", "shapes": [], "imagePath": "a.png"}, "LabelMe"),
        ({"a.png12": {"filename": "a.png", "regions": []}}, "VIA"),
        ({"_via_settings": {}, "_via_img_metadata": {}}, "VIA"),
        ([{**TASK, "annotations": [{"result": []}]}], "Label Studio"),
        ([{**TASK, "completions": []}], "Label Studio"),
        ("<annotations><meta/><image id='0'></annotations>", "CVAT"),
        ("<annotations><track id='0'></annotations>", "CVAT"),
    ],
)
def test_own_formats_of_tools_are_named(tmp_path: Path, content: Any, tool: str):
    """The error says what to export instead of listing all that was looked for."""
    write_image(tmp_path / "photos" / "a.png")
    is_xml = isinstance(content, str)
    file = tmp_path / "photos" / ("a.xml" if is_xml else "a.json")
    file.write_text(content if is_xml else json.dumps(content))
    with pytest.raises(ValueError, match=f"COCO, YOLO or Pascal VOC with {tool}") as raised:
        find_data(str(tmp_path))
    assert str(file) in str(raised.value) and "looked for" not in str(raised.value)


def test_coco_beside_its_images(tmp_path: Path):
    """A file of a known name can be in a folder of no known layout."""
    file = tmp_path / "labels.json"
    file.write_text(json.dumps({"images": [], "annotations": [], "categories": []}))
    with pytest.raises(
        ValueError, match="looks like COCO, .*: --data .*labels.json --images FOLDE"
    ):
        find_data(str(tmp_path))


@pytest.mark.parametrize("content", ["", "3", "[]", "{}", "[3]", '{"a": 3}', "no JSON", "[" * 9999])
def test_other_files_look_like_nothing(tmp_path: Path, content: str):
    """Texts, images and any JSON have no format."""
    write_image(tmp_path / "1.png")
    for name in ("a.json", "a.xml", "1.txt"):
        (tmp_path / name).write_text(content)
    assert what_it_looks_like(tmp_path) is None
