"""Selection of data sets on a command line."""

import json
from pathlib import Path

import pytest
from transformers import HfArgumentParser

from hf_detr import read_splits
from hf_detr.data import formats, reading
from hf_detr.data.formats import DataArguments
from hf_detr.data.layouts import DataFiles, find_data

from ..some_data import CATEGORIES, entry, write_coco
from .test_coco import SEGMENTS, write_panoptic
from .test_voc import voc_object, write_voc
from .test_yolo import BOX, write_yolo


def parse(*arguments: object) -> DataArguments:
    (parsed,) = HfArgumentParser(DataArguments).parse_args_into_dataclasses(
        [str(argument) for argument in arguments]
    )
    return parsed


def write_panoptic_split(folder: Path) -> None:
    """Write panoptic data in the layout of a split's folder."""
    file, _, maps = write_panoptic(folder, SEGMENTS)
    file.rename(folder / "panoptic.json")
    maps.rename(folder / "panoptic")


def test_every_format_can_be_selected(tmp_path: Path):
    """One option names data of every format."""
    file, images = write_coco(tmp_path / "coco", [entry(1)])
    panoptic_file, panoptic_images, maps = write_panoptic(tmp_path / "panoptic", SEGMENTS)
    write_coco(tmp_path / "splits" / "valid", [entry(1)])
    write_panoptic_split(tmp_path / "panoptic_splits" / "train")
    voc = write_voc(tmp_path / "voc", {"a": voc_object()})
    yolo = write_yolo(tmp_path / "yolo", {"a": BOX})
    for arguments, classes, masks in (
        ([file, "--images", images, "--masks"], 2, True),
        ([file, "--images", images, "--box-format", "coco_xywh"], 2, False),
        ([panoptic_file, "--images", panoptic_images, "--segments", maps], 2, False),
        ([tmp_path / "panoptic_splits"], 2, False),
        ([tmp_path / "splits", "--split", "valid"], 2, False),
        ([voc], 1, False),
        ([yolo], 2, False),
        ([yolo / "data.yaml"], 2, False),
    ):
        dataset = parse("--data", *arguments).read(seed=5)
        assert len(dataset.id2label) == classes and dataset.masks == masks and dataset.seed == 5
        assert [10, 5, 30, 13] in dataset[0][1]["boxes"].round().tolist()


@pytest.mark.parametrize("read", ["read_splits", "read_validation", "read_all"])
def test_folders_are_looked_through_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, read: str
):
    """A command checks its data and reads them; a second reading looks again."""
    for name in ("train", "val"):
        write_coco(tmp_path / name, [entry(1)])
    found = []

    def find_and_count(*given: object) -> DataFiles:
        found.append(given)
        return find_data(*given)

    monkeypatch.setattr(formats, "find_data", find_and_count)
    monkeypatch.setattr(reading, "find_data", find_and_count)
    arguments = DataArguments(str(tmp_path))
    arguments.check(training=read == "read_splits", evaluation=read == "read_validation")
    assert len(getattr(arguments, read)()) == 2 and len(found) == 1
    getattr(arguments, read)()
    assert len(found) == 2


def test_checked_arguments_can_change(tmp_path: Path):
    """What was found for others isn't used."""
    for number, name in enumerate(("a", "b", "c/dev"), start=1):
        boxes = [entry(index + 1) for index in range(number)]
        write_coco(tmp_path / name / ("" if number == 3 else "train"), boxes)
    arguments = DataArguments(str(tmp_path / "a"))
    arguments.check()
    arguments.data = str(tmp_path / "b")
    assert len(arguments.read().table.ids) == 2
    arguments.check()
    arguments.data, arguments.images = str(tmp_path / "a"), "nowhere"
    with pytest.raises(ValueError, match="--images and --segments can only be used with a JSON"):
        arguments.read()
    arguments = DataArguments(str(tmp_path / "c"), split="dev")
    arguments.check()
    assert len(arguments.read().table.ids) == 3


def test_split_can_be_overridden(tmp_path: Path):
    """The same arguments select training and evaluation data; the folder may have that one only."""
    folder = write_yolo(tmp_path / "yolo", {"a": BOX}, val="images")
    assert len(parse("--data", folder).read("val")) == 1
    write_coco(tmp_path / "coco" / "dev", [entry(1)])
    assert len(parse("--data", tmp_path / "coco").read("dev")) == 2


def test_validation_split(tmp_path: Path):
    """A model isn't evaluated on the training split, unless it is asked for."""
    yolo = write_yolo(tmp_path / "yolo", {"a": BOX, "b": BOX}, val="list.txt")
    (yolo / "list.txt").write_text("images/train/a.png\n")
    voc = write_voc(tmp_path / "voc", {"a": voc_object(), "b": voc_object()})
    (voc / "ImageSets" / "Main" / "val.txt").write_text("a\n")
    for folder in (yolo, voc):
        assert len(parse("--data", folder).read_validation()) == 1
        assert len(parse("--data", folder, "--split", "train").read_validation()) == 2
        assert len(parse("--data", folder).read()) == 2
        assert [len(one) for one in parse("--data", folder).read_splits()] == [2, 1]
    file, images = write_coco(tmp_path / "coco", [entry(1)])
    assert len(parse("--data", file, "--images", images).read_validation()) == 2
    with pytest.raises(ValueError, match="no validation split.*Give --split NAME"):
        parse("--data", write_yolo(tmp_path / "other", {"a": BOX})).read_validation()


def test_test_data_are_used_for_validation_with_a_warning(tmp_path: Path):
    """Without a validation split, `test` is used, and it is said once."""
    for name in ("train", "test"):
        write_coco(tmp_path / name, [entry(1)])
    with pytest.warns(UserWarning, match="its split 'test' is used for validation") as said:
        train, val = parse("--data", tmp_path).read_splits(seed=3)
    assert len(said) == 1 and train.seed == val.seed == 3
    assert "train" in train.images.name(0) and "test" in val.images.name(0)


def test_training_data_can_be_divided(tmp_path: Path):
    """`--val-fraction` is for data without validation split; evaluation uses the same part."""
    file, images = write_coco(tmp_path, [entry(1)], num_images=5)
    for data in (
        (file, "--images", images),
        (write_voc(tmp_path / "v", dict.fromkeys("abcde", "")),),
    ):
        given = parse("--data", *data, "--val-fraction", "0.4")
        train, val = given.read_splits(seed=1)
        assert (len(train), len(val)) == (3, 2)
        names = {one.images.name(i) for one in (train, val) for i in range(len(one))}
        assert len(names) == 5
        again = given.read_validation(seed=1)
        assert again.table.image_ids.tolist() == val.table.image_ids.tolist()
        for training in (parse("--data", *data), parse("--data", *data, "--split", "train")):
            with pytest.raises(ValueError, match="--val-fraction 0.2|omit --split"):
                training.check(training=True)
    with pytest.raises(ValueError, match="--val-fraction is 20.0; expected 0.2"):
        parse("--data", tmp_path, "--val-fraction", 20).check()


def test_validation_data_arent_ignored(tmp_path: Path):
    """`--val-fraction` beside a validation split is an error, also before reading."""
    for name in ("train", "valid"):
        write_coco(tmp_path / name, [entry(1)])
    given = parse("--data", tmp_path, "--val-fraction", "0.2")
    for call in (given.check, given.read_splits, given.read_validation):
        with pytest.raises(ValueError, match="has the validation split 'valid'; omit --val"):
            call()


def test_capitalized_splits(tmp_path: Path):
    """CVAT's Train and Validation are training and validation data."""
    for name in ("Train", "Validation"):
        file, images = write_coco(tmp_path / "source", [entry(1)])
        for path, target in ((file, f"annotations/instances_{name}.json"), (images, "images")):
            (tmp_path / "data" / target).parent.mkdir(parents=True, exist_ok=True)
            target = f"images/{name}" if path.is_dir() else target
            (tmp_path / "data" / target).parent.mkdir(parents=True, exist_ok=True)
            path.rename(tmp_path / "data" / target)
    given = parse("--data", tmp_path / "data")
    assert [len(data) for data in given.read_splits()] == [2, 2]
    assert "Validation" in given.read_validation().images.name(0)
    assert "Train" in given.read("train").images.name(0)


def test_different_classes_are_refused(tmp_path: Path):
    """A label has the same meaning in training and validation."""
    write_coco(tmp_path / "train", [entry(1)])
    write_coco(tmp_path / "val", [entry(1)], categories=CATEGORIES[1:])
    with pytest.raises(ValueError, match="the classes of train and val differ"):
        parse("--data", tmp_path).read_splits()


def test_panoptic_training(tmp_path: Path):
    """Panoptic data have masks in training, also beside annotations of instances."""
    for name in ("train", "val"):
        write_panoptic_split(tmp_path / name)
        file, _ = write_coco(tmp_path / name, [entry(1)])
        assert json.loads(file.read_text())["annotations"]
    for data in parse("--data", tmp_path).read_splits():
        assert data.segment_maps is None and not data.masks
    for data in read_splits(tmp_path, panoptic=True):
        assert data.segment_maps is not None and data.masks
    parse("--data", tmp_path).check(training=True, panoptic=True)
    with pytest.raises(ValueError, match="panoptic training needs a folder of COCO panoptic"):
        parse("--data", write_yolo(tmp_path / "y", {"a": BOX}) / "data.yaml").check(panoptic=True)


def test_data_of_datasets(tmp_path: Path):
    """Splits of the library `datasets` are known when they are loaded."""
    datasets = pytest.importorskip("datasets")
    from .test_hub import DICT_OF_LISTS, ROWS, make

    rows = make(ROWS, DICT_OF_LISTS)
    splits = {"train": rows, "test": rows.select([0])}
    splits |= dict.fromkeys(("validation", "val", "valid"), rows.select([1]))

    def save(*names: str) -> DataArguments:
        folder = tmp_path / "-".join(names)
        datasets.DatasetDict({name: splits[name] for name in names}).save_to_disk(folder)
        return parse("--data", folder, "--box_format", "coco_xywh")

    for name in ("val", "valid", "validation"):
        assert len(save("train", "test", name).read_validation()[0][1]["boxes"]) == 0
    with pytest.warns(UserWarning, match="no validation split; its split 'test' is used"):
        assert len(save("train", "test").read_validation()[0][1]["boxes"]) == 2
    with pytest.raises(ValueError, match=r"no validation split.*\['train'\]. Give --split"):
        save("train").check(evaluation=True)
    with pytest.raises(ValueError, match="Give --val-fraction 0.2"):
        save("train").check(training=True)
    assert len(save("train").read()) == 2
    with pytest.raises(ValueError, match=r"no split 'tests'; its splits are \['train'\]"):
        save("train").read("tests")
    rows.save_to_disk(tmp_path / "one")
    one = parse("--data", tmp_path / "one", "--box_format", "coco_xywh", "--val-fraction", 0.5)
    assert [len(data) for data in one.read_splits()] == [1, 1]


def test_layout_of_cppe_5(tmp_path: Path):
    """The columns of the Hub's best-known detection data need no option but --data."""
    datasets = pytest.importorskip("datasets")
    from datasets import ClassLabel, Features, Image, List, Value

    from .test_hub import make_image

    number = Value("int64")
    objects = {"id": List(number), "area": List(number), "bbox": List(List(Value("float32"), 4))}
    objects["category"] = List(ClassLabel(names=["Coverall", "Mask"]))
    features = {"image_id": number, "image": Image(), "width": number, "height": number}
    row = {"image_id": 7, "image": make_image(), "width": 50, "height": 40}
    row["objects"] = {"id": [3, 4], "area": [160, 81], "category": [1, 0]}
    row["objects"]["bbox"] = [[10, 5, 20, 8], [1, 1, 9, 9]]
    rows = datasets.Dataset.from_list([row], features=Features({**features, "objects": objects}))
    datasets.DatasetDict({"train": rows, "test": rows}).save_to_disk(tmp_path / "data")
    with pytest.warns(UserWarning) as said:
        train, val = parse("--data", tmp_path / "data").read_splits()
    assert [str(one.message).partition(",")[0] for one in said] == [
        f"{tmp_path / 'data'} has no validation split; its split 'test' is used for validation.",
        "the boxes are read as coco_xywh",
    ]
    assert train.id2label == val.id2label == {0: "Coverall", 1: "Mask"}
    assert train[0][1]["boxes"].tolist() == [[10, 5, 30, 13], [1, 1, 10, 10]]
    assert train.table.image_ids.tolist() == [7]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "--data is missing; expected a folder"),
        (["--data", "{coco}"], "requires --images, the folder of its images"),
        (["--data", "{splits}", "--images", "a"], "can only be used with a JSON file of COCO"),
        (["--data", "some/name", "--box_format", "voc"], "box_format is 'voc'"),
        (["--data", "{yolo}", "--box_format", "xyxy"], "--box-format can't be used with YOLO"),
        (["--data", "{yolo}", "--names", "b"], "--names can't be used with YOLO data"),
        (["--data", "some/name", "--names", "b,b"], "expected different names"),
        (["--data", "some/name", "--masks"], "--masks can't be used with the Hub data"),
        (["--data", "{coco}", "--images", "{yolo}", "--split", "val"], "no splits.*omit --split"),
        (["--data", "{splits}", "--split", "dev"], r"no split 'dev'; its splits are \['valid'\]"),
    ],
)
def test_conflicting_arguments_raise(tmp_path: Path, arguments: list[str], message: str):
    """No argument is ignored silently, and nothing is read before all are checked."""
    file, _ = write_coco(tmp_path / "splits" / "valid", [entry(1)])
    yolo = write_yolo(tmp_path / "yolo", {"a": BOX})
    paths = {"coco": file, "splits": tmp_path / "splits", "yolo": yolo}
    with pytest.raises(ValueError, match=message):
        parse(*(argument.format(**paths) for argument in arguments)).check()


def test_missing_folders_raise(tmp_path: Path):
    """Folders are checked before anything is read."""
    file, _ = write_coco(tmp_path, [entry(1)])
    with pytest.raises(FileNotFoundError, match="--images .*nowhere isn't a folder"):
        parse("--data", file, "--images", tmp_path / "nowhere").check()
