"""Label files of YOLO are found and recognized."""

import os
from pathlib import Path

import pytest

from hf_detr.data.yolo_labels import are_labels, find_label_files, label_file_of


@pytest.mark.parametrize(
    ("image", "labels"),
    [
        ("/a/images/train/1.jpg", "/a/labels/train/1.txt"),
        ("/a/images/images/1.2.jpg", "/a/images/labels/1.2.txt"),
        ("/a/photos/1.jpg", "/a/photos/1.txt"),
    ],
)
def test_the_last_folder_of_images_has_labels_beside_it(image: str, labels: str):
    """Other folders have the label files beside the images."""
    assert label_file_of(image.replace("/", os.sep)) == labels.replace("/", os.sep)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("0 0.5 0.5 1e-1 .2\n", True),
        ("\ufeff0 0.5 0.5 0.1 0.2", True),
        ("0 0.5 0.5 0.1\n", False),
        ("some words about these images", False),
        ("", False),
    ],
)
def test_the_first_line_tells_labels_from_other_texts(tmp_path: Path, text: str, expected: bool):
    """A line has a class and at least four numbers."""
    (tmp_path / "a.txt").write_text(text, encoding="utf-8")
    assert are_labels(tmp_path / "a.txt") == expected


def test_label_files_of_another_case_are_found(tmp_path: Path):
    """The usual name comes first, and is that of labels that don't exist."""
    for name in ("a.TXT", "b.Txt", "b.txt"):
        (tmp_path / name).touch()
    images = [str(tmp_path / f"{stem}.jpg") for stem in "abc"] + ["/nowhere/d.jpg"]
    found = [os.path.basename(file) for file in find_label_files(images)]
    assert found == ["a.TXT", "b.txt", "c.txt", "d.txt"]
