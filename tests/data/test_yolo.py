"""YOLO data: locations of images, label files, polygons."""

import codecs
import re
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from hf_detr.data.file_names import image_endings
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


def test_another_number_of_classes_is_noted(tmp_path: Path):
    """A name may be missing; without `nc`, or with the right one, there is no note."""
    with pytest.warns(UserWarning, match="has nc 3, but 2 names, which are used"):
        (problem,) = read_yolo(write_yolo(tmp_path, {"a": BOX}, nc=3)).table.problems
    assert not problem.is_fatal
    for nc in (2, None):
        assert not read_yolo(write_yolo(tmp_path, {"a": BOX}, nc=nc)).table.problems


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
    """Labels that aren't divided by the image's size are detected; YOLO has one box format."""
    folder = write_yolo(tmp_path, {"a": "1 20 9 20 8\n" * 5})
    with pytest.warns(UserWarning, match="5 boxes are .* look like pixels; divide them by the im"):
        (problem,) = read_yolo(folder).table.problems
    assert problem.is_fatal and "box_format" not in problem.text


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"names": None}, "names is None"),
        ({"names": {"a": 1}}, "names is"),
        ({"train": "nowhere"}, "train is 'nowhere', but .* doesn't exist"),
        ({"train": "labels"}, "no images"),
        ({"train": None, "val": "images"}, r"no 'train'; its splits are \['val'\]"),
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


@pytest.mark.parametrize("shape", [[2, 3], [3, 2], [2, 2]])
def test_pose_labels_give_boxes_without_keypoints(tmp_path: Path, shape: list[int]):
    """Keypoints aren't read as corners of a polygon, and a note says that they are ignored."""
    line = f"{BOX} {'0.9 ' * (shape[0] * shape[1])}"
    folder = write_yolo(tmp_path, {"a": f"{line}\n{BOX}"}, kpt_shape=shape)
    with pytest.warns(UserWarning, match="keypoints of the objects aren't read"):
        dataset = read_yolo(folder)
    torch.testing.assert_close(
        dataset[0][1]["boxes"].as_subclass(torch.Tensor), torch.tensor([[10.0, 5, 30, 13]] * 2)
    )
    with pytest.raises(ValueError, match="pose data have no masks"):
        read_yolo(folder, masks=True)


@pytest.mark.filterwarnings("ignore:the keypoints:UserWarning")
def test_pose_labels_of_another_length_are_errors(tmp_path: Path):
    """Lines that don't have the declared keypoints aren't guessed."""
    folder = write_yolo(tmp_path, {"a": f"{BOX} 0.5 0.5"}, kpt_shape=[2, 3])
    with pytest.warns(UserWarning, match=r"a.txt:1: .*expected 'class cx cy w h' and 6 numbers"):
        read_yolo(folder)
    with pytest.raises(ValueError, match=r"kpt_shape is \['2'\]; expected \[number"):
        read_yolo(write_yolo(tmp_path, {"a": BOX}, kpt_shape=[2]))


@pytest.mark.parametrize("is_list", [True, False])
def test_names_are_text(tmp_path: Path, is_list: bool):
    """Names that mean booleans, numbers, dates or nothing in YAML are kept as they are written."""
    folder = write_yolo(tmp_path, {"a": BOX})
    names = ["on", "no", "02146", "1.50", "null", "~", "2024-01-01", "0x1F", "1_000"]
    lines = [f"  {'-' if is_list else f'{i}:'} {name}" for i, name in enumerate(names)]
    text = "\n".join(["train: images/train", "val:", "nc: 9", "names:", *lines])
    (folder / "data.yaml").write_text(text)
    assert list(read_yolo(folder).id2label.values()) == names
    with pytest.raises(ValueError, match="no 'val'"):
        read_yolo(folder, "val")
    (folder / "data.yaml").write_text("train: images/train\nnames: [a, b: c]")
    with pytest.raises(ValueError, match="names is .*need quotes"):
        read_yolo(folder)


@pytest.mark.parametrize("ending", ["jfif", "gif", "ppm", "tga", "JPG", "avif", "jp2"])
def test_every_ending_of_an_image_is_read(tmp_path: Path, ending: str):
    """Labelled images of unusual formats aren't left out."""
    if f".{ending.lower()}" not in image_endings():
        pytest.skip("PIL was built without this format")
    folder = write_yolo(tmp_path, {"a": BOX, "b": BOX})
    write_image(folder / "images" / "train" / f"b.{ending}")
    (folder / "images" / "train" / "b.png").unlink()
    dataset = read_yolo(folder)
    assert [len(dataset[i][1]["boxes"]) for i in range(len(dataset))] == [1, 1]


@pytest.mark.parametrize("is_beside", [True, False])
def test_label_files_without_image_are_reported_once(tmp_path: Path, is_beside: bool):
    """Images of unknown formats or missing ones don't vanish silently; other text files may."""
    folder = write_yolo(tmp_path, {"a": BOX})
    labels = folder / "labels" / "train"
    if is_beside:
        (folder / "data.yaml").write_text("names: [cat, dog]\ntrain: all")
        labels.rename(folder / "all")
        (folder / "images" / "train" / "a.png").rename(folder / "all" / "a.png")
        labels = folder / "all"
    (labels / "classes.txt").write_text("cat\ndog\n")
    (labels / "empty.txt").write_text("")
    assert not read_yolo(folder).table.problems
    for name in ("b", "c"):
        (labels / f"{name}.txt").write_text(BOX)
    with pytest.warns(
        UserWarning, match="2 label files in .* have no image, such as b.txt"
    ) as all_:
        dataset = read_yolo(folder)
    assert len(all_) == 1 and len(dataset) == 1
    assert [(p.image, p.is_fatal) for p in dataset.table.problems] == [(None, False)]


@pytest.mark.parametrize("train", ["images/train", "train.txt"])
def test_label_files_with_an_ending_in_capitals(tmp_path: Path, train: str):
    """They are read, of listed images too, and reported if they have no image."""
    folder = write_yolo(tmp_path, {"a": BOX, "b": BOX}, train=train)
    (folder / "train.txt").write_text("images/train/a.png\nimages/train/b.png\n")
    labels = folder / "labels" / "train"
    (labels / "b.txt").rename(labels / "b.TXT")
    dataset = read_yolo(folder)
    assert [len(dataset[i][1]["boxes"]) for i in range(2)] == [1, 1]
    assert not dataset.table.problems
    (folder / "images" / "train" / "b.png").unlink()
    if train != "train.txt":
        with pytest.warns(UserWarning, match="1 label files in .* have no image, such as b.TXT"):
            read_yolo(folder)


def test_images_with_the_same_label_file_are_reported(tmp_path: Path):
    """Two images of one name share their boxes, which is rarely intended."""
    folder = write_yolo(tmp_path, {"a": BOX})
    write_image(folder / "images" / "train" / "a.jpg")
    with pytest.warns(UserWarning, match="1 images have the label file of another .*a.jpg and a.p"):
        assert len(read_yolo(folder)) == 2


def test_byte_order_marks(tmp_path: Path):
    """Editors on Windows write them into label files, lists and the YAML file."""
    folder = write_yolo(tmp_path, {"a": BOX}, train="train.txt")
    (folder / "train.txt").write_text("images/train/a.png\n", encoding="utf-8-sig")
    for file in (folder / "data.yaml", folder / "labels" / "train" / "a.txt"):
        file.write_bytes(codecs.BOM_UTF8 + file.read_bytes())
    assert len(read_yolo(folder)[0][1]["boxes"]) == 1
    (folder / "labels" / "train" / "a.txt").write_bytes("größe".encode("latin-1"))
    with pytest.warns(UserWarning, match="a.txt isn't UTF-8 text"):
        read_yolo(folder)


def test_lines_that_are_no_paths_are_errors_of_their_image(tmp_path: Path):
    """One broken line of a list doesn't prevent reading the others."""
    folder = write_yolo(tmp_path, {"a": BOX}, train="train.txt")
    (folder / "train.txt").write_text(f"images/train/a.png\n{'a' * 300}.png\nb.png")
    with pytest.warns(UserWarning, match="2 problems that prevent training"):
        dataset = read_yolo(folder)
    assert len(dataset) == 3 and len(dataset[0][1]["boxes"]) == 1


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        ({"train": "images\\train"}, None),
        ({"train": "..\\images\\train"}, None),
        ({"path": "/content/data", "train": "images/train"}, None),
        ({"train": "/content/data/images/train"}, None),
        ({"train": "C:\\data\\images\\train"}, None),
        ({"train": "train.txt"}, "images\\train\\a.png"),
        ({"train": "train.txt"}, "data/images/train/a.png"),
        ({"train": "train.txt"}, "/content/data/images/train/a.png"),
        ({"train": "train.txt"}, "C:\\data\\images\\train\\a.png"),
    ],
)
@pytest.mark.filterwarnings("ignore:.* doesn't exist; .* is used:UserWarning")
def test_paths_of_other_computers(tmp_path: Path, changes: dict, line: str | None):
    """Paths of Windows and of notebooks are found in the folder of the YAML file."""
    folder = write_yolo(tmp_path, {"a": BOX}, **changes)
    if line:
        (folder / "train.txt").write_text(line)
    assert len(read_yolo(folder)[0][1]["boxes"]) == 1


def test_linked_folders_of_images(tmp_path: Path):
    """A data set can be made of links to others."""
    folder = write_yolo(tmp_path / "data", {"a": BOX})
    write_yolo(tmp_path / "other", {"b": BOX})
    for kind in ("images", "labels"):
        (folder / kind / "train" / "more").symlink_to(tmp_path / "other" / kind / "train")
    dataset = read_yolo(folder)
    assert [len(dataset[i][1]["boxes"]) for i in range(len(dataset))] == [1, 1]


def test_no_label_file_at_all(tmp_path: Path):
    """As in a folder of labels with another name, which isn't the same as images of background."""
    folder = write_yolo(tmp_path, {"a": None, "b": None})
    expected = folder / "labels" / "train" / "a.txt"
    with pytest.warns(UserWarning, match=f"no image has a label file.* {re.escape(str(expected))}"):
        read_yolo(folder)
