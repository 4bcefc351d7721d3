"""Open Images: boxes, groups, images that aren't there, and errors with their line."""

from pathlib import Path
from typing import Any

import pytest

from hf_detr.data import open_images, table_cache
from hf_detr.data.dataset import DetectionDataset
from hf_detr.data.open_images import read_open_images

from ..some_data import write_image

HEADER = "ImageID,Source,LabelName,Confidence,XMin,XMax,YMin,YMax,IsOccluded,IsGroupOf\n"
ROWS = [
    "b2,xclick,/m/dog,1,0.2,0.6,0.125,0.325,0,0",
    "a1,xclick,/m/cat,1,0,1,0,0.5,0,1",
    "a1,xclick,/m/dog,1,0.5,0.75,0.5,1,-1,-1",
    "c3,xclick,/m/dog,1,0.5,0.75,0.5,1,0,0",
]


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def read(folder: Path, rows: list[str] = ROWS, header: str = HEADER) -> DetectionDataset:
    """Write images b2 and a1 of 40 x 50 pixels, and rows; read them."""
    for name in ("a1", "b2"):
        write_image(folder / "images" / f"{name}.jpg")
    (folder / "boxes.csv").write_text(header + "".join(f"{row}\n" for row in rows))
    (folder / "classes.csv").write_text('/m/dog,Dog\n/m/cat,"Cat, small"\n')
    return read_open_images(folder / "boxes.csv", folder / "classes.csv", folder / "images")


@pytest.mark.parametrize("block", [1, 2, 100])
def test_boxes_classes_and_groups(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, block: int):
    """In the order of the rows, in blocks of any size; groups are crowds, -1 is no group."""
    monkeypatch.setattr(open_images, "BLOCK", block)
    with pytest.warns(UserWarning, match="1 of 3 images .* such as c3, have no file") as caught:
        dataset = read(tmp_path)
    assert len(caught) == 1
    assert dataset.id2label == {0: "Dog", 1: "Cat, small"}
    assert [Path(dataset.images.name(i)).name for i in range(2)] == ["b2.jpg", "a1.jpg"]
    table = dataset.table
    assert table.is_crowd.tolist() == [False, True, False] and table.ids.tolist() == [0, 1, 2]
    assert table.class_labels.tolist() == [0, 1, 0] and dataset.image_hw(1) == (40, 50)
    boxes = [pytest.approx(box) for box in ([10, 5, 20, 8], [0, 0, 50, 20], [25, 20, 12.5, 20])]
    assert table.boxes_xywh.tolist() == boxes
    assert len(dataset[1][1]["boxes"]) == 1


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"rows": [ROWS[0], ROWS[1].replace("cat", "cow")]}, "csv:3: the class '/m/cow' isn't"),
        ({"rows": [ROWS[0], ROWS[0].replace("0.6", "x")]}, "csv:3: 'x' isn't a finite number"),
        ({"rows": [ROWS[0].replace("0.6", "nan")]}, "csv:2: 'nan' isn't a finite number"),
        ({"rows": [ROWS[0], "b2,/m/dog"]}, "csv:3: 2 values; expected 10"),
        ({"rows": [ROWS[3]]}, "has none of the 1 images .* such as c3.jpg"),
        ({"rows": []}, "has none of the 0 images"),
        ({"header": HEADER.replace("XMax", "X")}, r"has no columns \['XMax'\]"),
    ],
)
def test_errors_name_their_line(tmp_path: Path, change: dict[str, Any], message: str):
    """Rows aren't skipped."""
    with pytest.raises(ValueError, match=message):
        read(tmp_path, **change)


@pytest.mark.parametrize("text", ["", "/m/dog\n", "/m/dog,Dog\n/m/dog,Cat\n"])
def test_wrong_list_of_classes(tmp_path: Path, text: str):
    """Such as the file of boxes in its place."""
    read(tmp_path, ROWS[:3])
    (tmp_path / "classes.csv").write_text(text)
    with pytest.raises(ValueError, match="classes.csv isn't a list of classes"):
        read_open_images(*(tmp_path / n for n in ("boxes.csv", "classes.csv", "images")))


def test_new_images_are_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """The cached table changes with the files in the folder."""
    monkeypatch.setattr(table_cache, "MIN_BYTES", 0)
    for _ in range(2):
        with pytest.warns(UserWarning, match="such as c3, have no file"):
            assert len(read(tmp_path)) == 2
    write_image(tmp_path / "images" / "c3.jpg", 30, 20)
    dataset = read(tmp_path)
    assert len(dataset) == 3 and dataset.image_hw(2) == (30, 20)
    assert any((tmp_path / "cache" / "hf_detr" / "tables").iterdir())
