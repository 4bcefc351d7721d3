"""Data sets of the library `datasets` in the layouts used on the Hub."""

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import pytest
import torch

from hf_detr.data.formats import DataArguments
from hf_detr.data.hub import read_hf_dataset, read_hf_segmentation, read_hf_splits

datasets = pytest.importorskip("datasets")

from datasets import ClassLabel, Features, Image, List, Value  # noqa: E402

BOX, NUMBER, TEXT = List(Value("float32"), 4), Value("int64"), Value("string")
CLASSES = ClassLabel(names=["cat", "dog"])


def make_image(height: int = 40, width: int = 50) -> PIL.Image.Image:
    pixels = np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return PIL.Image.fromarray(pixels)


def make(objects: list[Any], feature: Any, **more: tuple[list[Any], Any]) -> Any:
    """Make a data set with an image per value of `objects`, and additional columns `more`."""
    features = {"image": Image(), "objects": feature, **{k: f for k, (_, f) in more.items()}}
    columns = {"image": [make_image() for _ in objects], "objects": objects}
    columns |= {key: values for key, (values, _) in more.items()}
    return datasets.Dataset.from_dict(columns, features=Features(features))


DICT_OF_LISTS = {"bbox": List(BOX), "category": List(CLASSES)}
ROWS = [{"bbox": [[10, 5, 20, 8], [0, 0, 5, 5]], "category": [1, 0]}, {"bbox": [], "category": []}]


def boxes_of(dataset: Any, index: int = 0) -> list[list[float]]:
    return dataset[index][1]["boxes"].tolist()


def test_dict_of_lists():
    """The usual layout: names come from the ClassLabel, and images are decoded on access."""
    dataset = read_hf_dataset(make(ROWS, DICT_OF_LISTS), "coco_xywh")
    assert dataset.id2label == {0: "cat", 1: "dog"} and len(dataset) == 2
    image, target = dataset[0]
    assert np.array_equal(image.permute(1, 2, 0).numpy(), np.asarray(make_image()))
    assert target["class_labels"].tolist() == [1, 0]
    assert boxes_of(dataset) == [[10, 5, 30, 13], [0, 0, 5, 5]] and boxes_of(dataset, 1) == []
    assert dataset.image_hw(1) == (40, 50)


def test_list_of_dicts_with_other_names():
    """The other layout, with alternative key names."""
    feature = {"bboxes": BOX, "label": CLASSES, "is_crowd": NUMBER, "area": Value("float32")}
    feature = List({**feature, "id": TEXT})
    entry = {"bboxes": [10, 5, 30, 13], "label": 1, "is_crowd": 0, "area": 7.5, "id": "a"}
    rows = [[entry, {**entry, "is_crowd": 1}], [], None]
    dataset = read_hf_dataset(make(rows, feature), "xyxy")
    assert boxes_of(dataset) == [[10, 5, 30, 13]]
    assert dataset[0][1]["area"].tolist() == [7.5]
    assert dataset[0][1]["class_labels"].tolist() == [1]
    assert boxes_of(dataset, 2) == []


def test_columns_of_arrays():
    """Boxes of `Array2D` beside a list of labels are columns of objects as well as lists are."""
    features = {"image": Image(), "bboxes": datasets.Array2D((None, 4), "float32")}
    columns = {"image": [make_image()], "bboxes": [[[10, 5, 30, 13]]], "labels": [[1]]}
    features = Features({**features, "labels": List(CLASSES)})
    dataset = read_hf_dataset(datasets.Dataset.from_dict(columns, features=features), "xyxy")
    assert boxes_of(dataset) == [[10, 5, 30, 13]] and dataset.id2label == {0: "cat", 1: "dog"}


def test_normalized_boxes_use_each_images_size():
    """Normalized boxes are scaled by the size of their image."""
    rows = [{"bbox": [[0.4, 0.225, 0.4, 0.2]], "category": [0]}]
    boxes = boxes_of(read_hf_dataset(make(rows, DICT_OF_LISTS), "cxcywh_normalized"))
    torch.testing.assert_close(torch.tensor(boxes), torch.tensor([[10.0, 5, 30, 13]]))


def test_box_format_is_found_and_checked():
    """The format is only found if it is the only one that fits; a wrong one is refused."""
    with pytest.raises(ValueError, match="box_format is 'coco'"):
        read_hf_dataset(make(ROWS, DICT_OF_LISTS), "coco")
    with pytest.raises(ValueError, match=r"all 2 boxes fit coco_xywh and xyxy.*\(--box-format\)"):
        rows = [{"bbox": [[5, 5, 20, 8], [0, 0, 5, 5]], "category": [1, 0]}]
        read_hf_dataset(make(rows, DICT_OF_LISTS))
    rows = [{"bbox": [[30, 20, 20, 8], [0, 0, 5, 5]], "category": [1, 0]}]
    with pytest.warns(UserWarning, match="read as coco_xywh, because only then all boxes"):
        dataset = read_hf_dataset(make(rows, DICT_OF_LISTS))
    assert boxes_of(dataset) == [[30, 20, 50, 28], [0, 0, 5, 5]]
    assert read_hf_dataset(make([None], DICT_OF_LISTS)).table.offsets.tolist() == [0, 0]


def test_splits_have_the_same_box_format_and_names():
    """What is found in one split holds for the others; text names are those of both."""
    feature = {"bbox": List(BOX), "category": List(TEXT), "area": List(NUMBER)}
    train = [{"bbox": [[5, 5, 20, 8]], "category": ["dog"], "area": [160]}]
    val = [{"bbox": [[1, 1, 9, 9]], "category": ["ant"], "area": [81]}]
    with pytest.warns(UserWarning, match="only then each object's area is") as said:
        both = read_hf_splits([make(train, feature), make(val, feature)])
    assert len(said) == 1
    assert [data.id2label for data in both] == [{0: "ant", 1: "dog"}] * 2
    assert [boxes_of(data) for data in both] == [[[5, 5, 25, 13]], [[1, 1, 10, 10]]]


def test_a_split_without_objects_does_not_hide_that_the_format_is_unclear():
    """It was only read to find the format."""
    boxes = make([{"bbox": [[1, 1, 9, 9]], "category": [0]}], DICT_OF_LISTS)
    with pytest.raises(ValueError, match="The box format isn't clear: all 1 boxes fit"):
        read_hf_splits([boxes], others=[boxes.remove_columns("objects")])


def test_names_come_from_text_or_from_the_user():
    """Categories don't have to be ClassLabels."""
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
    with pytest.raises(ValueError, match=r"numbers without names, such as \['7'\]; pass id2label"):
        read_hf_dataset(numbers, "coco_xywh")
    dataset = read_hf_dataset(numbers, "coco_xywh", id2label={"7": "owl"})
    assert dataset.id2label == {0: "owl"} and dataset.category_ids == (7,)


def test_unknown_name_is_a_problem():
    """Classes of another split aren't dropped silently."""
    feature = {"bbox": List(BOX), "category": List(TEXT)}
    data = make([{"bbox": [[1, 1, 9, 9]], "category": ["dog"]}], feature)
    with pytest.warns(UserWarning, match="category_id 'dog'"):
        read_hf_dataset(data, "coco_xywh", id2label={0: "cat"})


def test_sizes_and_ids_come_from_columns():
    """Image headers aren't read if the sizes are in columns."""
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
        (
            {"objects_column": "boxes"},
            r"no column 'boxes'; its columns are \['image', 'objects'\]",
        ),
        ({"image_column": "photo"}, r"no image column 'photo'; its image columns are \['image'\]"),
    ],
)
def test_missing_columns_are_named(arguments: dict, message: str):
    """The error lists the existing columns."""
    with pytest.raises(ValueError, match=message):
        read_hf_dataset(make(ROWS, DICT_OF_LISTS), "coco_xywh", **arguments)


def test_paths_become_images_as_the_error_says(tmp_path: Path):
    """A column of paths looks like one of images, but isn't read as such."""
    make_image().save(tmp_path / "a.png")
    rows = {"image": [str(tmp_path / "a.png")], "objects": ROWS[:1]}
    features = Features({"image": TEXT, "objects": DICT_OF_LISTS})
    data = datasets.Dataset.from_dict(rows, features=features)
    with pytest.raises(ValueError, match=r"'image' has strings.*cast_column\('image', datasets.Im"):
        read_hf_dataset(data, "coco_xywh")
    data = data.cast_column("image", datasets.Image())
    assert len(read_hf_dataset(data, "coco_xywh")[0][1]["boxes"]) == 2


def test_ambiguous_keys_and_lists_of_different_lengths_raise():
    """Boxes aren't paired with the classes of other objects."""
    feature = {**DICT_OF_LISTS, "label": List(NUMBER)}
    rows = [{"bbox": [[1, 1, 9, 9]], "category": [1], "label": [0]}]
    with pytest.raises(ValueError, match=r"row 0 has objects with \['category', 'label'\]"):
        read_hf_dataset(make(rows, feature), "coco_xywh")
    rows = [{"bbox": [[1, 1, 9, 9]], "category": [1, 0]}]
    with pytest.raises(ValueError, match="row 0 has lists of different lengths"):
        read_hf_dataset(make(rows, DICT_OF_LISTS), "coco_xywh")


def test_dict_of_splits_raises():
    """The error explains a call of load_dataset without split."""
    splits = datasets.DatasetDict({"train": make(ROWS, DICT_OF_LISTS)})
    with pytest.raises(TypeError, match="DatasetDict; expected one split"):
        read_hf_dataset(splits, "coco_xywh")


def test_error_of_invalid_image_has_the_row():
    """The error names the row of an image that can't be read."""
    stream = io.BytesIO()
    make_image().save(stream, "PNG")
    images = [{"bytes": stream.getvalue(), "path": None}, {"bytes": b"not an image", "path": None}]
    features = Features({"image": Image(), "objects": DICT_OF_LISTS})
    data = datasets.Dataset.from_dict({"image": images, "objects": ROWS}, features=features)
    with pytest.warns(UserWarning, match="can't be read"):
        dataset = read_hf_dataset(data, "coco_xywh")
    assert len(boxes_of(dataset)) == 2
    with pytest.raises(ValueError, match="row 1"):
        dataset[1]


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
        {"image": [make_image()], "label": [label], "segments_info": [[stuff, thing]]},
        features=Features({"image": Image(), "label": Image(), "segments_info": List(feature)}),
    )


@pytest.mark.parametrize("mode", ["RGB", "L"])
@pytest.mark.parametrize("boxes", [True, False])
def test_segments_have_masks_and_boxes(mode: str, boxes: bool):
    """The panoptic layout can be read with RGB and gray maps, with and without boxes."""
    dataset = read_hf_segmentation(
        segmentation_data(mode, boxes), id2label={1: "dog", 4: "sky"}, stuff_ids=[4]
    )
    assert dataset.id2label == {0: "dog", 1: "sky"} and dataset.label_ids_of_stuff == {1}
    _, target = dataset[0]
    assert target["class_labels"].tolist() == [1, 0]
    assert target["boxes"].tolist() == [[0, 0, 50, 40], [10, 5, 30, 13]]
    assert target["masks"].sum(dim=(1, 2)).tolist() == [1840, 160]


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A temporary folder for what `datasets` makes of local files."""
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")


def png() -> bytes:
    stream = io.BytesIO()
    make_image().save(stream, "PNG")
    return stream.getvalue()


@pytest.mark.parametrize("image", [png(), {"bytes": png(), "path": None}])
def test_parquet_of_other_programs(image: Any):
    """They have bytes instead of images, and lists that are columns of their own."""
    columns = {"image": [image], "bbox": [[[10, 5, 20, 8]]], "label": [[7]], "width": [50]}
    data = datasets.Dataset.from_dict({**columns, "height": [40], "id": [3]})
    dataset = read_hf_dataset(data, "coco_xywh", id2label={7: "owl"})
    assert boxes_of(dataset) == [[10, 5, 30, 13]] and dataset.image_hw(0) == (40, 50)


def test_bytes_are_never_read_from_a_path(tmp_path: Path):
    """Data of unknown origin can't read other files of the user."""
    make_image().save(tmp_path / "secret.png")
    image = {"bytes": None, "path": str(tmp_path / "secret.png")}
    features = {"image": {"bytes": Value("binary"), "path": TEXT}, "objects": DICT_OF_LISTS}
    data = datasets.Dataset.from_dict(
        {"image": [image], "objects": ROWS[:1]}, features=Features(features)
    )
    with pytest.warns(UserWarning, match="the row has no image"):
        read_hf_dataset(data, "coco_xywh")


def test_labels_of_images_are_not_classes_of_objects():
    """A column of numbers beside `objects`, or without boxes, isn't mistaken for lists."""
    data = make(ROWS, DICT_OF_LISTS, label=([0, 1], NUMBER))
    assert read_hf_dataset(data, "coco_xywh")[0][1]["class_labels"].tolist() == [1, 0]
    with pytest.raises(ValueError, match="no column 'objects'.*or lists 'bbox' and 'category'"):
        read_hf_dataset(data.remove_columns("objects"), "coco_xywh")


@pytest.mark.usefixtures("cache")
def test_image_folder_with_metadata(tmp_path: Path):
    """`metadata.jsonl` has the objects of each image; the names come from the command line."""
    folder = tmp_path / "data" / "train"
    folder.mkdir(parents=True)
    lines = []
    for number in range(2):
        make_image().save(folder / f"{number}.png")
        objects = {"bbox": [[10, 5, 20, 8]], "categories": [number + 7]}
        lines.append(json.dumps({"file_name": f"{number}.png", "objects": objects}))
    (folder / "metadata.jsonl").write_text("\n".join(lines))
    arguments = {"data": str(tmp_path / "data"), "box_format": "coco_xywh"}
    dataset = DataArguments(**arguments, names="7=owl, 8=red kite").read()
    assert dataset.id2label == {0: "owl", 1: "red kite"} and len(boxes_of(dataset, 1)) == 1
    with pytest.raises(ValueError, match=r"numbers without names, .*\(--names on the command"):
        DataArguments(**arguments).read()


def test_sizes_before_exif_orientation():
    """The columns may have the size of the file instead of that of the upright image."""
    exif, stream = PIL.Image.Exif(), io.BytesIO()
    exif[0x0112] = 6
    make_image().save(stream, "JPEG", exif=exif)
    columns = {"image": [stream.getvalue()], "bbox": [[[10, 5, 20, 44]]], "label": [[0]]}
    data = datasets.Dataset.from_dict({**columns, "width": [50], "height": [40]})
    with pytest.warns(UserWarning, match="upright size is used"):
        dataset = read_hf_dataset(data, "coco_xywh", id2label={0: "owl"})
    assert dataset.image_hw(0) == (50, 40) and boxes_of(dataset) == [[10, 5, 30, 49]]
