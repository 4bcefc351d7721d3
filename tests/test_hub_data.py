"""Data sets of the library `datasets`: real ones, made here, in the Hub's layouts."""

import io
import pickle
import sys
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import pytest
import torch

from hf_detr.hub_data import load_hf_dataset, read_hf_dataset, read_hf_segmentation

datasets = pytest.importorskip("datasets")

from datasets import ClassLabel, Features, Image, List, Value  # noqa: E402

BOX, NUMBER, TEXT = List(Value("float32"), 4), Value("int64"), Value("string")
CLASSES = ClassLabel(names=["cat", "dog"])


def picture(height: int = 40, width: int = 50) -> PIL.Image.Image:
    pixels = np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return PIL.Image.fromarray(pixels)


def make(objects: list[Any], feature: Any, **more: tuple[list[Any], Any]) -> Any:
    """A data set of one image per value of `objects`; `more` has values and feature per column."""
    features = {"image": Image(), "objects": feature, **{k: f for k, (_, f) in more.items()}}
    columns = {"image": [picture() for _ in objects], "objects": objects}
    columns |= {key: values for key, (values, _) in more.items()}
    return datasets.Dataset.from_dict(columns, features=Features(features))


DICT_OF_LISTS = {"bbox": List(BOX), "category": List(CLASSES)}
ROWS = [{"bbox": [[10, 5, 20, 8], [0, 0, 5, 5]], "category": [1, 0]}, {"bbox": [], "category": []}]


def boxes_of(dataset: Any, index: int = 0) -> list[list[float]]:
    return dataset[index][1]["boxes"].tolist()


def test_dict_of_lists():
    """Protects the Hub's usual layout: names from the ClassLabel, images decoded when asked for."""
    dataset = read_hf_dataset(make(ROWS, DICT_OF_LISTS), "coco_xywh")
    assert dataset.id2label == {0: "cat", 1: "dog"} and len(dataset) == 2
    image, target = dataset[0]
    assert np.array_equal(image.permute(1, 2, 0).numpy(), np.asarray(picture()))
    assert target["class_labels"].tolist() == [1, 0]
    assert boxes_of(dataset) == [[10, 5, 30, 13], [0, 0, 5, 5]] and boxes_of(dataset, 1) == []
    assert dataset.image_hw(1) == (40, 50)


def test_list_of_dicts_with_other_names():
    """Protects the other layout, and the keys that data sets use."""
    feature = {"bboxes": BOX, "label": CLASSES, "is_crowd": NUMBER, "area": Value("float32")}
    feature = List({**feature, "id": TEXT})
    entry = {"bboxes": [10, 5, 30, 13], "label": 1, "is_crowd": 0, "area": 7.5, "id": "a"}
    rows = [[entry, {**entry, "is_crowd": 1}], [], None]
    dataset = read_hf_dataset(make(rows, feature), "xyxy")
    assert boxes_of(dataset) == [[10, 5, 30, 13]]
    assert dataset[0][1]["area"].tolist() == [7.5]
    assert dataset[0][1]["class_labels"].tolist() == [1]
    assert boxes_of(dataset, 2) == []


def test_normalized_boxes_use_each_images_size():
    """Protects the third format."""
    rows = [{"bbox": [[0.4, 0.225, 0.4, 0.2]], "category": [0]}]
    boxes = boxes_of(read_hf_dataset(make(rows, DICT_OF_LISTS), "cxcywh_normalized"))
    torch.testing.assert_close(torch.tensor(boxes), torch.tensor([[10.0, 5, 30, 13]]))


def test_box_format_must_be_given_and_known():
    """Protects from guessing: the Hub has all formats."""
    with pytest.raises(TypeError, match="box_format"):
        read_hf_dataset(make(ROWS, DICT_OF_LISTS))
    with pytest.raises(ValueError, match="box_format is 'coco'"):
        read_hf_dataset(make(ROWS, DICT_OF_LISTS), "coco")


def test_names_come_from_text_or_from_the_user():
    """Protects categories that aren't ClassLabels."""
    text = make(
        [{"bbox": [[1, 1, 9, 9]] * 2, "category": ["dog", "ant"]}],
        {"bbox": List(BOX), "category": List(TEXT)},
    )
    dataset = read_hf_dataset(text, "coco_xywh")
    assert dataset.id2label == {0: "ant", 1: "dog"}
    assert dataset[0][1]["class_labels"].tolist() == [1, 0]
    dataset = read_hf_dataset(text, "coco_xywh", id2label={0: "dog", 1: "cow", 2: "ant"})
    assert dataset[0][1]["class_labels"].tolist() == [0, 2]

    numbers = make(
        [{"bbox": [[1, 1, 9, 9]], "category": [7]}], {"bbox": List(BOX), "category": List(NUMBER)}
    )
    with pytest.raises(ValueError, match=r"numbers without names, such as \['7'\]; give id2label"):
        read_hf_dataset(numbers, "coco_xywh")
    dataset = read_hf_dataset(numbers, "coco_xywh", id2label={"7": "owl"})
    assert dataset.id2label == {0: "owl"} and dataset.category_ids == (7,)


def test_unknown_name_is_a_problem():
    """Protects another split's classes from being lost."""
    feature = {"bbox": List(BOX), "category": List(TEXT)}
    data = make([{"bbox": [[1, 1, 9, 9]], "category": ["dog"]}], feature)
    with pytest.warns(UserWarning, match="category_id 'dog'"):
        read_hf_dataset(data, "coco_xywh", id2label={0: "cat"})


def test_sizes_and_ids_come_from_columns():
    """Protects large data from having every header read, and the data's own image ids."""
    more = {name: (values, NUMBER) for name, values in (("width", [50, 50]), ("height", [40, 40]))}
    more["image_id"] = ([8, 5], NUMBER)
    dataset = read_hf_dataset(make(ROWS, DICT_OF_LISTS, **more), "coco_xywh")
    assert dataset.table.image_ids.tolist() == [8, 5] and dataset.image_hw(0) == (40, 50)
    more["width"] = ([50, None], NUMBER)
    dataset = read_hf_dataset(make(ROWS, DICT_OF_LISTS, **more), "coco_xywh")
    assert dataset.image_hw(1) == (40, 50)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"objects_column": "boxes"}, r"no column \['boxes'\], only \['image', 'objects'\]"),
        ({"image_column": "photo"}, r"no image column 'photo'; its image columns are \['image'\]"),
    ],
)
def test_missing_columns_are_named(arguments: dict, message: str):
    """Protects from a typo."""
    with pytest.raises(ValueError, match=message):
        read_hf_dataset(make(ROWS, DICT_OF_LISTS), "coco_xywh", **arguments)


def test_two_keys_of_one_meaning_and_ragged_lists_are_refused():
    """Protects from picking one, and from pairing boxes with other objects' classes."""
    feature = {**DICT_OF_LISTS, "label": List(NUMBER)}
    rows = [{"bbox": [[1, 1, 9, 9]], "category": [1], "label": [0]}]
    with pytest.raises(ValueError, match=r"row 0 has objects with \['category', 'label'\]"):
        read_hf_dataset(make(rows, feature), "coco_xywh")
    rows = [{"bbox": [[1, 1, 9, 9]], "category": [1, 0]}]
    with pytest.raises(ValueError, match="row 0 has lists of different lengths"):
        read_hf_dataset(make(rows, DICT_OF_LISTS), "coco_xywh")


def test_whole_dict_of_splits_is_refused():
    """Protects from the commonest slip: load_dataset without split."""
    splits = datasets.DatasetDict({"train": make(ROWS, DICT_OF_LISTS)})
    with pytest.raises(TypeError, match="DatasetDict; give one split"):
        read_hf_dataset(splits, "coco_xywh")


def test_broken_image_is_named_by_its_row():
    """Protects the search for one bad row."""
    stream = io.BytesIO()
    picture().save(stream, "PNG")
    images = [{"bytes": stream.getvalue(), "path": None}, {"bytes": b"no image", "path": None}]
    features = Features({"image": Image(), "objects": DICT_OF_LISTS})
    data = datasets.Dataset.from_dict({"image": images, "objects": ROWS}, features=features)
    with pytest.warns(UserWarning, match="can't be read"):
        dataset = read_hf_dataset(data, "coco_xywh")
    assert len(boxes_of(dataset)) == 2
    with pytest.raises(ValueError, match="row 1"):
        dataset[1]


def test_saved_data_set_is_loaded_and_pickles_small(tmp_path: Path):
    """Protects `save_to_disk` folders, and workers from copies of the images."""
    make(ROWS * 20, DICT_OF_LISTS).save_to_disk(tmp_path / "one")
    splits = datasets.DatasetDict({"train": make(ROWS, DICT_OF_LISTS)})
    splits.save_to_disk(tmp_path / "two")
    dataset = read_hf_dataset(load_hf_dataset(str(tmp_path / "one"), "train"), "coco_xywh")
    assert len(dataset) == 40
    assert len(pickle.dumps(dataset)) < 20_000 < 40 * 40 * 50 * 3
    assert len(load_hf_dataset(str(tmp_path / "two"), "train")) == 2


def test_missing_library_says_how_to_install_it(monkeypatch: pytest.MonkeyPatch):
    """Protects users without the extra."""
    data = make(ROWS, DICT_OF_LISTS)
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(ImportError, match="pip install"):
        read_hf_dataset(data, "coco_xywh")


def segmentation_data(mode: str, boxes: bool) -> Any:
    ids = np.full((40, 50), 2 if mode == "L" else 70000)
    ids[5:13, 10:30] = 9
    if mode == "L":
        label = PIL.Image.fromarray(ids.astype(np.uint8))
    else:
        pixels = np.stack([ids % 256, ids // 256 % 256, ids // 65536], axis=-1)
        label = PIL.Image.fromarray(pixels.astype(np.uint8))
    stuff, thing = {"id": int(ids[0, 0]), "category_id": 4}, {"id": 9, "category_id": 1}
    feature = {"id": NUMBER, "category_id": NUMBER}
    if boxes:
        stuff["bbox"], thing["bbox"], feature["bbox"] = [0, 0, 50, 40], [10, 5, 20, 8], BOX
    return datasets.Dataset.from_dict(
        {"image": [picture()], "label": [label], "segments_info": [[stuff, thing]]},
        features=Features({"image": Image(), "label": Image(), "segments_info": List(feature)}),
    )


@pytest.mark.parametrize("mode", ["RGB", "L"])
@pytest.mark.parametrize("boxes", [True, False])
def test_segments_have_masks_and_boxes(mode: str, boxes: bool):
    """Protects the panoptic layout: colour and gray maps, with and without boxes."""
    dataset = read_hf_segmentation(
        segmentation_data(mode, boxes), id2label={1: "dog", 4: "sky"}, stuff_ids=[4]
    )
    assert dataset.id2label == {0: "dog", 1: "sky"} and dataset.label_ids_of_stuff == {1}
    _, target = dataset[0]
    assert target["class_labels"].tolist() == [1, 0]
    assert target["boxes"].tolist() == [[0, 0, 50, 40], [10, 5, 30, 13]]
    assert target["masks"].sum(dim=(1, 2)).tolist() == [1840, 160]
