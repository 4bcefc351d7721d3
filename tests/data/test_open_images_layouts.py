"""Folders of Open Images, as its site names the files and as FiftyOne downloads them."""

import itertools
from pathlib import Path

import pytest

from hf_detr.data.formats import read_data, read_splits
from hf_detr.data.open_images_layouts import LAYOUTS
from hf_detr_command_line import main

from ..some_data import write_image

HEADER = "ImageID,LabelName,XMin,XMax,YMin,YMax,IsGroupOf\n"
PLACES = [place for layout in LAYOUTS for place in itertools.product(*layout)]


def write(folder: Path, split: str, place: tuple[str, str, str], images: tuple[str, ...]) -> None:
    """Write a dog in each image of a split."""
    boxes, classes, image_folder = (folder / path.format(split=split) for path in place)
    for file in (boxes, classes):
        file.parent.mkdir(parents=True, exist_ok=True)
    boxes.write_text(HEADER + "".join(f"{name},/m/dog,0.2,0.6,0.125,0.325,0\n" for name in images))
    classes.write_text("/m/dog,Dog\n/m/cat,Cat\n")
    for seed, name in enumerate(images, start=ord(split[0])):
        write_image(image_folder / f"{name}.jpg", seed=seed)


@pytest.mark.parametrize("place", PLACES)
def test_every_layout(tmp_path: Path, place: tuple[str, str, str]):
    """Both splits are found, under the name that Open Images gives to validation data."""
    write(tmp_path, "train", place, ("a1", "b2"))
    write(tmp_path, "validation", place, ("c3",))
    train, val = read_splits(tmp_path)
    assert len(train) == 2 and len(val) == 1
    assert val.id2label == train.id2label == {0: "Dog", 1: "Cat"}
    assert val.table.boxes_xywh.tolist() == [pytest.approx([10, 5, 20, 8])]


@pytest.mark.parametrize("lacking", [1, 2])
def test_part_of_the_files(tmp_path: Path, lacking: int):
    """Boxes without classes or images aren't Open Images; the error names the files."""
    place = tuple("elsewhere/x" if i == lacking else path for i, path in enumerate(PLACES[0]))
    write(tmp_path, "train", place, ("a1",))
    message = "train-annotations-bbox.csv with class-descriptions-boxable.csv and images in train, "
    with pytest.raises(ValueError, match=message):
        read_data(tmp_path)


def test_the_folder_around_it(tmp_path: Path):
    """An error names the folder inside that has the files."""
    write(tmp_path / "open-images", "train", PLACES[0], ("a1",))
    with pytest.raises(ValueError, match="its folder .*open-images has; give that"):
        read_data(tmp_path)


def test_command(tmp_path: Path, capsys: pytest.CaptureFixture):
    """`hf-detr check` needs the folder only."""
    for split, names in (("train", ("a1", "b2")), ("test", ("c3",))):
        write(tmp_path, split, PLACES[0], names)
    assert main(["check", "--data", str(tmp_path)]) == 0
    shown = capsys.readouterr().out
    assert "Dog" in shown and "Training may start" in shown
