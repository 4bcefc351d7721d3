"""Data of any kind, in Python."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from torch.utils.data import ConcatDataset, Subset, random_split

from hf_detr import DetectionDataset, read_coco, read_data, read_splits
from hf_detr.data.formats import DataArguments

from ..some_data import entry, write_coco
from .test_torch_data import NAMES, Items


@pytest.fixture
def coco(tmp_path: Path) -> tuple[Path, Path]:
    return write_coco(tmp_path / "coco", [entry(1)], num_images=3)


def test_one_data_set(coco: tuple[Path, Path]):
    """A path, a data set of ours, torch's parts of it, and torch data sets."""
    file, images = coco
    ours = read_coco(file, images)
    assert read_data(ours) is ours
    assert [len(data) for data in read_splits(ours, val_fraction=0.4)] == [2, 1]
    assert len(read_data(file, images=images, masks=True)[0][1]["masks"]) == 1
    assert read_data(Subset(ours, [2])).table.image_ids.tolist() == [3]
    assert len(read_data(ConcatDataset([ours, ours]))) == 6
    assert read_data(Items(), names=NAMES, masks=True)[0][1]["masks"].sum() == 160
    assert read_data(Items(), names=["none", "cat", "big, old dog"]).id2label[2] == "big, old dog"


def test_pairs_and_dicts(coco: tuple[Path, Path], tmp_path: Path):
    """Training and validation data can be given each, of any kind."""
    file, images = coco
    ours = read_coco(file, images)
    two = random_split(ours, [2, 1])
    other = write_coco(tmp_path / "other" / "train", [entry(1)])[0].parent.parent
    for data in (
        two,
        {"train": two[0], "valid": two[1]},
        {"train": ours.subset([0, 1]), "val": ours.subset([2]), "test": ours},
        (other, ours.subset([2])),
    ):
        train, val = read_splits(data)
        assert (len(train), len(val)) == (2, 1)
        assert isinstance(train, DetectionDataset) and isinstance(val, DetectionDataset)
    assert len(read_data({"train": ours, "val": two[1]}, "val")) == 1
    with pytest.raises(ValueError, match=r"The dict has no split 'train'; its splits are \['a'\]"):
        read_data({"a": ours})
    with pytest.raises(ValueError, match="classes of train and val differ"):
        read_splits((ours, read_data(Items(), names=NAMES)))
    write_coco(tmp_path / "other" / "val", [entry(1)])
    with pytest.raises(ValueError, match="has the splits .* Give it alone instead"):
        read_splits((other, ours))


def test_data_sets_of_datasets():
    """One split, a dict of them, and torch's parts of one."""
    datasets = pytest.importorskip("datasets")
    from .test_hub import DICT_OF_LISTS, ROWS, make

    rows = make(ROWS, DICT_OF_LISTS)
    given = {"box_format": "coco_xywh"}
    assert len(read_data(rows, **given)) == 2
    splits = datasets.DatasetDict({"train": rows, "validation": rows.select([1])})
    for data in (splits, (rows, rows.select([1])), (rows, Subset(rows, [1]))):
        assert [len(one) for one in read_splits(data, **given)] == [2, 1]
    with pytest.raises(ValueError, match="are read without masks; omit --masks"):
        read_data(rows, **given, masks=True)


@pytest.mark.filterwarnings("ignore:the boxes are read as:UserWarning")
def test_evaluation_finds_the_box_format_of_training():
    """Boxes of validation data that fit several formats are read as they are in training."""
    datasets = pytest.importorskip("datasets")
    from .test_hub import DICT_OF_LISTS, make

    boxes = {"train": [[30, 20, 20, 8]], "val": [[5, 5, 20, 8]], "rest": [[5, 5, 9, 9]]}
    splits = datasets.DatasetDict(
        {
            name: make([{"bbox": some, "category": [0]}], DICT_OF_LISTS)
            for name, some in boxes.items()
        }
    )
    arguments = DataArguments(splits)
    for val in (read_splits(splits)[1], arguments.read_validation(), read_data(splits, "val")):
        assert val.table.boxes_xywh.tolist() == [[5, 5, 20, 8]]
    assert read_data(splits, "rest").table.boxes_xywh.tolist() == [[5, 5, 9, 9]]
    del splits["train"]
    with pytest.raises(ValueError, match="all 1 boxes fit coco_xywh and xyxy"):
        arguments.read_validation()


@pytest.mark.parametrize(
    ("data", "given", "error", "message"),
    [
        (lambda ours: 3, {}, TypeError, "The data are a int; expected a path, a name on the Hub"),
        (lambda ours: ours, {"names": {0: "a"}}, ValueError, "names can't be used with a Det"),
        (lambda ours: ours, {"masks": True}, ValueError, "has no masks; read it with masks=True"),
        (lambda ours: ours, {"box_format": "xyxy"}, ValueError, "box_format can't be used with a"),
        (lambda ours: ours, {"split": "val"}, ValueError, "has no splits, but is one"),
    ],
)
def test_what_has_no_effect_is_refused(
    coco: tuple[Path, Path],
    data: Callable[[DetectionDataset], Any],
    given: dict[str, Any],
    error: type[Exception],
    message: str,
):
    """No argument is ignored silently."""
    with pytest.raises(error, match=message):
        read_data(data(read_coco(*coco)), **given)
