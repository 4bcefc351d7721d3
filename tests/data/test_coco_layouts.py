"""Folders of COCO data as several tools write them."""

from pathlib import Path

import pytest

from hf_detr.data.coco import read_coco
from hf_detr.data.coco_layouts import LAYOUTS, WHOLE

from ..some_data import entry, write_coco


def move(folder: Path, file: str, images: str) -> None:
    """Write COCO data in a layout."""
    source, image_folder = write_coco(folder / "source", [entry(1)])
    for path, target in ((image_folder, folder / images), (source, folder / file)):
        target.parent.mkdir(parents=True, exist_ok=True)
        if path.is_dir() and target.is_dir():
            for image in path.iterdir():
                image.rename(target / image.name)
        else:
            path.rename(target)


@pytest.mark.parametrize(("file", "images"), LAYOUTS)
def test_every_layout_of_splits(tmp_path: Path, file: str, images: str):
    """Only the folder and the split's name are needed."""
    move(tmp_path, file.format(split="valid"), images.format(split="valid"))
    dataset = read_coco(tmp_path, split="valid")
    assert dataset[0][1]["boxes"].tolist() == [[10, 5, 30, 13]] and not dataset.table.problems
    with pytest.raises(ValueError, match="no COCO data of the split 'train'.*such as train/"):
        read_coco(tmp_path)


@pytest.mark.parametrize(("file", "images"), WHOLE)
def test_every_layout_without_splits(tmp_path: Path, file: str, images: str):
    """All images are `train`; another split isn't silently the same."""
    move(tmp_path, file, images)
    with pytest.warns(UserWarning, match="has no splits; 'train' has all of its images"):
        dataset = read_coco(tmp_path)
    assert dataset[0][1]["boxes"].tolist() == [[10, 5, 30, 13]]
    with pytest.raises(ValueError, match="no COCO data of the split 'val', but .*--split train"):
        read_coco(tmp_path, split="val")


def test_file_and_folder_have_to_be_given_together(tmp_path: Path):
    """The image folder isn't guessed for a file, and not ignored for a folder."""
    file, images = write_coco(tmp_path, [entry(1)])
    with pytest.raises(ValueError, match="image_folder is missing"):
        read_coco(file)
    with pytest.raises(ValueError, match="is a folder, in which the images are found"):
        read_coco(tmp_path, images)
    with pytest.raises(ValueError, match="not a path inside"):
        read_coco(tmp_path, split="../other")
