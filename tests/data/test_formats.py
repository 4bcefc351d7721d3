"""Selection of data sets on a command line."""

from pathlib import Path

import pytest
from transformers import HfArgumentParser

from hf_detr.data.formats import DataArguments, parsed_names

from ..some_data import entry, write_coco
from .test_coco import SEGMENTS, write_panoptic
from .test_voc import voc_object, write_voc
from .test_yolo import BOX, write_yolo


def parse(*arguments: object) -> DataArguments:
    (parsed,) = HfArgumentParser(DataArguments).parse_args_into_dataclasses(
        [str(argument) for argument in arguments]
    )
    return parsed


def test_every_format_can_be_selected(tmp_path: Path):
    """The data check and the training script use the same arguments."""
    file, images = write_coco(tmp_path / "coco", [entry(1)])
    panoptic_file, panoptic_images, maps = write_panoptic(tmp_path / "panoptic", SEGMENTS)
    write_coco(tmp_path / "splits" / "valid", [entry(1)])
    voc = write_voc(tmp_path / "voc", {"a": voc_object()})
    yolo = write_yolo(tmp_path / "yolo", {"a": BOX})
    for arguments, classes, masks in (
        (["--coco", file, "--images", images, "--masks"], 2, True),
        (["--coco", file, "--images", images, "--box-format", "coco_xywh"], 2, False),
        (["--coco", panoptic_file, "--images", panoptic_images, "--segments", maps], 2, False),
        (["--coco", tmp_path / "splits", "--split", "valid"], 2, False),
        (["--voc", voc], 1, False),
        (["--yolo", yolo], 2, False),
    ):
        dataset = parse(*arguments).read(seed=5)
        assert len(dataset.id2label) == classes and dataset.masks == masks and dataset.seed == 5
        assert [10, 5, 30, 13] in dataset[0][1]["boxes"].round().tolist()


def test_hub_data_on_disk_can_be_selected(tmp_path: Path):
    """Folders of `save_to_disk` can be read with a box format."""
    pytest.importorskip("datasets")
    from .test_hub import DICT_OF_LISTS, ROWS, make

    make(ROWS, DICT_OF_LISTS).save_to_disk(tmp_path / "data")
    arguments = parse("--hub", tmp_path / "data", "--box_format", "coco_xywh")
    assert len(arguments.read()) == 2


def test_split_can_be_overridden(tmp_path: Path):
    """The same arguments select training and evaluation data."""
    folder = write_yolo(tmp_path, {"a": BOX}, val="images")
    assert len(parse("--yolo", folder).read("val")) == 1


def test_validation_split(tmp_path: Path):
    """A model isn't evaluated on the training split, unless it is asked for."""
    yolo = write_yolo(tmp_path / "yolo", {"a": BOX, "b": BOX}, val="list.txt")
    (yolo / "list.txt").write_text("images/train/a.png\n")
    voc = write_voc(tmp_path / "voc", {"a": voc_object(), "b": voc_object()})
    (voc / "ImageSets" / "Main" / "val.txt").write_text("a\n")
    for kind, folder in (("--yolo", yolo), ("--voc", voc)):
        assert len(parse(kind, folder).read_validation()) == 1
        assert len(parse(kind, folder, "--split", "train").read_validation()) == 2
        assert len(parse(kind, folder).read()) == 2
    file, images = write_coco(tmp_path / "coco", [entry(1)])
    assert len(parse("--coco", file, "--images", images).read_validation()) == 2
    with pytest.raises(ValueError, match="no 'val'; its splits are"):
        parse("--yolo", write_yolo(tmp_path / "other", {"a": BOX})).read_validation()


def test_validation_split_of_the_hub(tmp_path: Path):
    """`validation`, `val` or `valid` comes before `test`; without any, --split is required."""
    datasets = pytest.importorskip("datasets")
    from .test_hub import DICT_OF_LISTS, ROWS, make

    rows = make(ROWS, DICT_OF_LISTS)
    splits = {"train": rows, "test": rows.select([0])}
    splits |= dict.fromkeys(("validation", "val", "valid"), rows.select([1]))

    def save(*names: str) -> DataArguments:
        folder = tmp_path / "-".join(names)
        datasets.DatasetDict({name: splits[name] for name in names}).save_to_disk(folder)
        return parse("--hub", folder, "--box_format", "coco_xywh")

    assert len(save("train", "test", "validation").read_validation()[0][1]["boxes"]) == 0
    for name in ("val", "valid"):  # names on the Hub, besides datasets' own
        with pytest.warns(UserWarning, match=f"no split 'validation'; '{name}' is read"):
            assert len(save("train", "test", name).read_validation()[0][1]["boxes"]) == 0
    with pytest.warns(UserWarning, match="no split 'validation'; 'test' is read"):
        assert len(save("train", "test").read_validation()[0][1]["boxes"]) == 2
    with pytest.raises(ValueError, match="split validation or .* or test of .* give --split"):
        save("train").read_validation()
    assert len(save("train").read()) == 2
    with pytest.raises(ValueError, match="split tests of"):
        save("train").read("tests")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], r"expected one of .*got \[\]"),
        (["--voc", "a", "--yolo", "b"], r"got \['voc', 'yolo'\]"),
        (["--coco", "a"], "requires --images"),
        (["--coco", ".", "--images", "a"], "is a folder, in which the images are found"),
        (["--hub", "a"], "requires --box_format"),
        (["--hub", "a", "--box_format", "voc"], "box_format is 'voc'"),
        (["--voc", "a", "--box_format", "xyxy"], "can't be used with --voc and --yolo"),
        (["--yolo", "a", "--names", "b"], "--names can only be used with --hub"),
        (["--hub", "a", "--box_format", "xyxy", "--names", "b,b"], "expected different names"),
        (["--hub", "a", "--box_format", "xyxy", "--names", "b,,c"], "expected different names"),
        (["--voc", "a", "--masks"], "--masks can only be used with --coco and --yolo"),
        (["--hub", "a", "--box_format", "xyxy", "--masks"], "--masks can only be used with"),
        (["--yolo", "a", "--images", "b"], "--images can only be used with --coco"),
        (["--voc", "a", "--segments", "b"], "--segments can only be used with --coco"),
        (
            ["--coco", "a", "--images", "b", "--split", "val"],
            "--split needs a folder of --coco",
        ),
    ],
)
def test_conflicting_arguments_raise(arguments: list[str], message: str):
    """No argument is ignored silently."""
    with pytest.raises(ValueError, match=message):
        parse(*arguments).read()


def test_names_of_category_ids():
    """Names are numbered from 0, or have numbers; other equals signs are part of a name."""
    assert parsed_names("cat,big dog") == {0: "cat", 1: "big dog"}
    assert parsed_names("9=dog, 7=cat") == {9: "dog", 7: "cat"}
    assert parsed_names("a=b,c") == {0: "a=b", 1: "c"}
    with pytest.raises(ValueError, match="expected different names such as"):
        parsed_names("7=cat,dog")
