"""Formats and splits are found from paths."""

import json
import os
from pathlib import Path

import pytest

from hf_detr.data.coco_layouts import LAYOUTS, PANOPTIC, WHOLE
from hf_detr.data.layouts import find_data

from ..some_data import entry, write_coco
from .test_coco import SEGMENTS, write_panoptic
from .test_voc import voc_object, write_voc
from .test_yolo import BOX, write_yolo


def touch(folder: Path, file: str, *folders: str) -> Path:
    """Make an empty file and folders."""
    for name in folders:
        (folder / name).mkdir(parents=True, exist_ok=True)
    (folder / file).parent.mkdir(parents=True, exist_ok=True)
    (folder / file).touch()
    return folder


@pytest.mark.parametrize("layout", [*LAYOUTS, *WHOLE, *PANOPTIC])
def test_every_layout_of_coco(tmp_path: Path, layout: tuple[str, ...]):
    """Splits of other names are found if they are asked for."""
    for name in ("train", "dev"):
        touch(tmp_path, *(part.format(split=name) for part in layout))
    is_whole = layout in WHOLE
    found = find_data(str(tmp_path), "dev")
    assert found.format == ("COCO panoptic" if layout in PANOPTIC else "COCO")
    assert found.splits == (("train",) if is_whole else ("dev", "train"))
    assert find_data(str(tmp_path)).splits == ("train",)


def test_capitals_of_splits(tmp_path: Path):
    """CVAT capitalizes its subsets, and a file system that ignores case has each of them once."""
    for name in ("Train", "Validation"):
        touch(tmp_path, f"annotations/instances_{name}.json", f"images/{name}")
    assert find_data(str(tmp_path)).splits == ("Train", "Validation")
    touch(tmp_path, "annotations/instances_train.json", "images/train")
    assert find_data(str(tmp_path)).splits == ("train", "Validation")
    assert find_data(str(tmp_path), "Train").splits == ("Train", "Validation")


def test_other_formats_of_folders(tmp_path: Path):
    """YOLO, both layouts of Pascal VOC, and what the library `datasets` writes or reads."""
    yolo = write_yolo(tmp_path / "yolo", {"a": BOX}, val="images", test=None, nc=2)
    voc = write_voc(tmp_path / "voc", {"a": voc_object()})
    for name in ("train", "test"):
        (tmp_path / "roboflow" / name).mkdir(parents=True)
        (tmp_path / "roboflow" / name / "a.xml").write_text("<annotation>")
    for name, content in (("dataset_dict", '{"splits": ["train", "dev"]}'), ("state", "{}")):
        (tmp_path / name).mkdir()
        (tmp_path / name / f"{name}.json").write_text(content)
    with pytest.raises(ValueError, match="isn't a folder as of save_to_disk: KeyError"):
        find_data(str(tmp_path / "state"))
    (tmp_path / "state" / "state.json").write_text('{"_split": null}')
    (tmp_path / "one" / "annotations").mkdir(parents=True)
    (tmp_path / "one" / "annotations" / "a.xml").write_text("<annotation>")
    for folder, name, splits in (
        (yolo, "YOLO", ("train", "val")),
        (yolo / "data.yaml", "YOLO", ("train", "val")),
        (voc, "Pascal VOC", ("train",)),
        (tmp_path / "roboflow", "Pascal VOC", ("train", "test")),
        (tmp_path / "one", "Pascal VOC", ("train",)),
        (tmp_path / "dataset_dict", "`datasets`", ("train", "dev")),
        (tmp_path / "state", "`datasets`", None),
        (touch(tmp_path / "parquet", "data/train-0.parquet"), "`datasets`", None),
        (touch(tmp_path / "images", "train/metadata.jsonl"), "`datasets`", None),
    ):
        found = find_data(str(folder))
        assert (found.format, found.splits, found.name) == (name, splits, str(folder))


@pytest.mark.parametrize("names", ["{0: cat, 0: dog}", "\n  0: cat\n  1: cow\n  0: dog"])
def test_repeated_keys_of_yaml_are_refused(tmp_path: Path, names: str):
    """YAML keeps the last, so that a class would be trained under the name of another one."""
    file = write_yolo(tmp_path, {"a": BOX}) / "data.yaml"
    file.write_text(f"train: images\nnames: {names}\n")
    line = 2 + names.count("\n")
    with pytest.raises(ValueError, match=rf"data.yaml:{line}: the key '0' is repeated; expected"):
        find_data(str(tmp_path))
    file.write_text("train: images\nnames: {0: cat, 1: cat}\n{0: a}: {0: b}\n")
    with pytest.raises(ValueError, match="(?s)is not a YAML file: .*unhashable key"):
        find_data(str(file))


def test_panoptic_annotations_beside_others(tmp_path: Path):
    """COCO's own folder has both: the panoptic ones are used if they are asked for."""
    write_coco(tmp_path / "train", [entry(1)])
    with pytest.raises(ValueError, match="has no panoptic data; looked for train/panoptic.json"):
        find_data(str(tmp_path), panoptic=True)
    touch(tmp_path, "train/panoptic.json", "train/panoptic")
    assert find_data(str(tmp_path)).format == "COCO"
    assert find_data(str(tmp_path), panoptic=True).format == "COCO panoptic"


def test_files(tmp_path: Path):
    """A JSON file is COCO's; what is no file of annotations is refused."""
    assert find_data(str(write_coco(tmp_path, [])[0])).splits is None
    assert find_data(str(touch(tmp_path, "a.parquet") / "a.parquet")).format == "`datasets`"
    with pytest.raises(ValueError, match="isn't a file of annotations"):
        find_data(str(tmp_path / "images" / "1.png"))


def test_names_on_the_hub_and_missing_paths():
    """A name that could be on the Hub isn't refused; paths that don't exist are."""
    assert find_data("cppe-5").format == find_data("some/data").format == "the Hub"
    for name in ("./nowhere", "a/b/c", "nowhere.json", "data.yaml"):
        with pytest.raises(FileNotFoundError, match="doesn't exist; expected a folder"):
            find_data(name)


def test_unknown_and_several_formats_are_refused(tmp_path: Path):
    """The error lists what was looked for, or what was found."""
    touch(tmp_path, "annotations.xml")  # CVAT's own format
    (tmp_path / "annotations.xml").write_text("<annotations>")
    with pytest.raises(ValueError, match="no data in a known layout; looked for COCO .*YOLO.*VOC"):
        find_data(str(tmp_path))
    write_yolo(tmp_path, {"a": BOX})
    write_coco(tmp_path / "train", [entry(1)])
    with pytest.raises(ValueError, match="in several formats, COCO and YOLO; give one of its"):
        find_data(str(tmp_path))
    with pytest.raises(ValueError, match="not a path inside"):
        find_data(str(tmp_path), "../other")


def test_folder_around_a_data_set(tmp_path: Path):
    """The error names the folder inside, such as VOCdevkit's, instead of all layouts."""
    touch(tmp_path, "VOC2007/ImageSets/Main/train.txt")
    with pytest.raises(ValueError, match="known layout; its folder .*VOC2007 has; give that"):
        find_data(str(tmp_path))
    assert find_data(str(tmp_path / "VOC2007")).splits == ("train",)


def test_panoptic_file_of_a_folder(tmp_path: Path):
    """Layouts of panoptic data lead to data that can be read."""
    file, images, maps = write_panoptic(tmp_path / "train", SEGMENTS)
    file.rename(tmp_path / "train" / "panoptic.json")
    maps.rename(tmp_path / "train" / "panoptic")
    assert json.loads((tmp_path / "train" / "panoptic.json").read_text())["images"]
    assert find_data(str(tmp_path)).splits == ("train",) and images.is_dir()


def test_folders_are_listed_once_for_tables_and_tars(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """A folder of images can have hundreds of thousands of files."""
    touch(tmp_path, "annotations/instances_train2017.json", "train2017/inner/deep")
    listed = []
    scandir = os.scandir

    def scan_and_note(path: str = ".") -> object:
        listed.append(os.fspath(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", scan_and_note)
    assert find_data(str(tmp_path)).format == "COCO"
    assert listed.count(str(tmp_path / "train2017")) == 1
    assert str(tmp_path / "train2017" / "inner" / "deep") not in listed


@pytest.mark.parametrize("depth", range(4))
def test_depths_of_tables_and_tars(tmp_path: Path, depth: int):
    """Tables are found two folders deep and tars one folder deep."""
    for file, most in (("a.parquet", 2), ("metadata.csv", 2), ("train-0.tar", 1)):
        folder = tmp_path / file.partition(".")[0]
        touch(folder, "/".join(["a"] * depth + [file]))
        if depth <= most:
            assert find_data(str(folder)).format in ("`datasets`", "WebDataset")
        else:
            with pytest.raises(ValueError, match="no data in a known layout"):
                find_data(str(folder))
