"""COCO files: contents of valid files, and errors for invalid ones."""

import codecs
import json
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import pytest
import torch

from hf_detr.data.coco import read_coco, read_coco_panoptic
from hf_detr.data.problems import image_problems

from ..some_data import CATEGORIES, entry, write_coco, write_image


def test_classes_follow_the_files_ids(tmp_path: Path):
    """Class labels follow the sorted category ids, without gaps."""
    dataset = read_coco(*write_coco(tmp_path, [entry(1, category_id=18), entry(2)]))
    assert dataset.id2label == {0: "car", 1: "dog"} and dataset.category_ids == (3, 18)
    assert dataset[0][1]["class_labels"].tolist() == [1, 0]
    assert dataset.label_ids_of_stuff == frozenset()


@pytest.mark.parametrize(
    ("box_format", "bbox"),
    [("xyxy", [10, 5, 30, 13]), ("cxcywh_normalized", [0.4, 0.225, 0.4, 0.2])],
)
def test_other_box_formats_are_converted(tmp_path: Path, box_format: str, bbox: list[float]):
    """Files with COCO's structure can have boxes in other formats."""
    files = write_coco(tmp_path, [entry(1, bbox=bbox)])
    boxes = read_coco(*files, box_format=box_format)[0][1]["boxes"].as_subclass(torch.Tensor)
    torch.testing.assert_close(boxes, torch.tensor([[10.0, 5, 30, 13]]), rtol=1e-6, atol=0)


def test_wrong_box_format_warns(tmp_path: Path):
    """Corners aren't silently read as sizes."""
    entries = [entry(i, bbox=[20, 20, 40 + i, 35]) for i in range(5)]
    with pytest.warns(UserWarning, match="pass box_format='xyxy'"):
        read_coco(*write_coco(tmp_path, entries))


def test_missing_sizes_come_from_the_images(tmp_path: Path):
    """`width` and `height` are optional in the file."""
    images = [{"id": 1, "file_name": "1.png"}]
    file, folder = write_coco(tmp_path, [entry(1)], images=images)
    write_image(folder / "1.png", height=30, width=70)
    assert read_coco(file, folder).image_hw(0) == (30, 70)


def test_annotation_without_image_is_a_problem(tmp_path: Path):
    """Objects aren't dropped silently."""
    with pytest.warns(UserWarning, match="annotation 1 has the unknown image_id 77"):
        dataset = read_coco(*write_coco(tmp_path, [entry(1), entry(2, image_id=77)]))
    assert [p.kind for p in dataset.table.problems] == ["annotation without image"]
    assert len(dataset[0][1]["boxes"]) == 1


def image(image_id: Any = 1, file_name: Any = "1.png") -> dict[str, Any]:
    return {"id": image_id, "file_name": file_name, "height": 40, "width": 50}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"images": [image(file_name="../1.png")]}, "'../1.png' .* not a path inside"),
        ({"images": [image(file_name="/etc/passwd")]}, "'/etc/passwd' .* not a path inside"),
        ({"images": [image(), image()]}, "two images have the id 1"),
        ({"images": [image("1")]}, "image 0 is .*integer 'id'"),
        ({"images": [image(file_name=None)]}, "image 0 is .*'file_name'"),
        ({"images": None}, "no list of objects 'images'"),
        ({"annotations": [1]}, "no list of objects 'annotations'"),
        ({"categories": [{"id": 1}]}, "category 0 is .*'name'"),
        ({"categories": CATEGORIES * 2}, "category 2 is .*unique"),
    ],
)
def test_invalid_structure_raises(tmp_path: Path, changes: dict, message: str):
    """The meaning of invalid files isn't guessed."""
    with pytest.raises(ValueError, match=message):
        read_coco(*write_coco(tmp_path, [entry(1)], **changes))


def test_invalid_json_raises_with_its_line(tmp_path: Path):
    """The error can be found in files of many megabytes."""
    file, folder = write_coco(tmp_path, [entry(1)])
    file.write_text("[" * 200_000)
    with pytest.raises(ValueError, match="annotations.json is not a JSON file"):
        read_coco(file, folder)
    file.write_text('{"images": [],\n "annotations": [,]}')
    with pytest.raises(ValueError, match="annotations.json is not a JSON file: .*line 2 column"):
        read_coco(file, folder)


def write_panoptic(folder: Path, segments: list[dict], **changes: Any) -> tuple[Path, Path, Path]:
    """Write a thing (id 300) on stuff (id 70000) in image 1, and an empty image 2."""
    map_file = folder / "segments" / "one.png"
    ids = np.full((40, 50), 70000)
    ids[5:13, 10:30] = 300
    map_file.parent.mkdir(parents=True)
    pixels = np.stack([ids % 256, ids // 256 % 256, ids // 65536], axis=-1).astype(np.uint8)
    PIL.Image.fromarray(pixels).save(map_file)
    annotation = {"image_id": 1, "file_name": "one.png", "segments_info": segments, **changes}
    categories = [{"id": 9, "name": "sky", "isthing": 0}, {"id": 2, "name": "dog", "isthing": 1}]
    file, images = write_coco(folder, [annotation], categories=categories)
    return file, images, map_file.parent


SEGMENTS = [
    {"id": 70000, "category_id": 9, "area": 1840, "bbox": [0, 0, 50, 40], "iscrowd": 0},
    {"id": 300, "category_id": 2, "area": 160, "bbox": [10, 5, 20, 8], "iscrowd": 0},
]


@pytest.mark.parametrize("with_boxes", [True, False])
def test_panoptic_segments_have_masks_and_boxes(tmp_path: Path, with_boxes: bool):
    """Things and stuff get masks from the PNG file, and boxes from either file."""
    segments = [s if with_boxes else {k: s[k] for k in s if k != "bbox"} for s in SEGMENTS]
    dataset = read_coco_panoptic(*write_panoptic(tmp_path, segments))
    assert dataset.id2label == {0: "dog", 1: "sky"} and dataset.label_ids_of_stuff == {1}
    _, target = dataset[0]
    assert target["class_labels"].tolist() == [1, 0]
    assert target["boxes"].tolist() == [[0, 0, 50, 40], [10, 5, 30, 13]]
    thing = torch.zeros(40, 50, dtype=torch.bool)
    thing[5:13, 10:30] = True
    assert torch.equal(target["masks"].as_subclass(torch.Tensor), torch.stack([~thing, thing]))
    assert dataset[1][1]["masks"].shape == (0, 40, 50)
    truth = dataset.ground_truth()["annotations"]
    assert [sum(e["segmentation"]["counts"][1::2]) for e in truth] == [1840, 160]


def test_parts_of_panoptic_data_keep_their_maps(tmp_path: Path):
    """Masks of a subset and of joined data sets are those of their images."""
    dataset = read_coco_panoptic(*write_panoptic(tmp_path, SEGMENTS))
    for part, index in ((dataset.subset([1, 0]), 1), (dataset + dataset, 2)):
        assert torch.equal(part[index][1]["masks"], dataset[0][1]["masks"])
        assert part.label_ids_of_stuff == {1}


def test_panoptic_file_names_outside_the_folder_raise(tmp_path: Path):
    """Untrusted data sets can't read other files of the user."""
    files = write_panoptic(tmp_path, SEGMENTS, file_name="../../one.png")
    with pytest.raises(ValueError, match="not a path inside"):
        read_coco_panoptic(*files)


def test_detection_file_read_as_panoptic_raises(tmp_path: Path):
    """The error names the right reader."""
    file, images = write_coco(tmp_path, [entry(1)])
    with pytest.raises(ValueError, match="use read_coco for files in COCO's detection format"):
        read_coco_panoptic(file, images, images)


def test_segment_without_pixels_or_box_is_named(tmp_path: Path):
    """Boxes of NaN are an error."""
    files = write_panoptic(tmp_path, [{"id": 5, "category_id": 2}])
    with pytest.warns(UserWarning, match="object 5 has bbox"):
        dataset = read_coco_panoptic(*files)
    with pytest.raises(ValueError, match="object 5 has bbox"):
        dataset[0]


def test_map_of_another_size_raises(tmp_path: Path):
    """Masks have to fit their image."""
    file, images, maps = write_panoptic(tmp_path, SEGMENTS)
    PIL.Image.new("RGB", (20, 20)).save(maps / "one.png")
    with pytest.raises(ValueError, match=r"one.png has \(20, 20\) pixels"):
        read_coco_panoptic(file, images, maps)[0]


@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")
def test_ground_truth_can_be_read_by_pycocotools(tmp_path: Path):
    """The dict can be written as JSON, and pycocotools decodes the same masks."""
    mask = pytest.importorskip("pycocotools.mask")
    dataset = read_coco(*write_coco(tmp_path, [entry(1)]), masks=True)
    truth = json.loads(json.dumps(dataset.ground_truth()))
    (found,) = truth["annotations"]
    decoded = mask.decode(mask.merge(mask.frPyObjects(found["segmentation"], 40, 50)))
    assert np.array_equal(decoded.astype(bool), dataset[0][1]["masks"][0].numpy())


def test_roboflows_root_category_is_dropped(tmp_path: Path):
    """Two classes of one name can't be trained; the empty one isn't a class."""
    root = {"id": 0, "name": "car", "supercategory": "none"}
    car, dog = ({**record, "supercategory": "car"} for record in CATEGORIES[::-1])
    with pytest.warns(UserWarning, match="category 0 is dropped: it has no objects .*'car'"):
        dataset = read_coco(*write_coco(tmp_path, [entry(1)], categories=[root, car, dog]))
    assert dataset.id2label == {0: "car", 1: "dog"}
    assert [p.is_fatal for p in dataset.table.problems] == [False]
    # A root that is used, or of another name, is a class.
    used = [entry(1), entry(2, category_id=0)]
    assert len(read_coco(*write_coco(tmp_path, used, categories=[root, car])).id2label) == 2
    file, *folders = write_panoptic(tmp_path / "panoptic", SEGMENTS)
    content = json.loads(file.read_text())
    content["categories"].append({"id": 0, "name": "dog", "supercategory": "none"})
    file.write_text(json.dumps(content))
    with pytest.warns(UserWarning, match="category 0 is dropped"):
        assert read_coco_panoptic(file, *folders).label_ids_of_stuff == {1}
    other = {**root, "name": "vehicles"}
    assert len(read_coco(*write_coco(tmp_path, [entry(1)], categories=[other, car])).id2label) == 2


@pytest.mark.filterwarnings("ignore:1 of 1 file names:UserWarning")
@pytest.mark.parametrize("folder", ["coco", "coco/train2017"])
def test_lvis_has_urls_instead_of_names(tmp_path: Path, folder: str):
    """The image folder may be that of all splits, or that of one."""
    url = "http://images.cocodataset.org/train2017/000000000001.jpg"
    images = [{"id": 1, "coco_url": url, "height": 40, "width": 50}]
    file, _ = write_coco(tmp_path, [entry(1)], images=images)
    folder = tmp_path / folder
    write_image(folder / "train2017" / "000000000001.jpg")
    if folder.name == "train2017":
        (folder / "train2017" / "000000000001.jpg").rename(folder / "000000000001.jpg")
    assert len(read_coco(file, folder)[0][1]["boxes"]) == 1


def turned_photo(path: Path) -> None:
    """Write a photo that is stored with 40 x 50 pixels (height, width) and upright 50 x 40."""
    exif = PIL.Image.Exif()
    exif[0x0112] = 6
    PIL.Image.new("RGB", (50, 40)).save(path, exif=exif)


@pytest.mark.parametrize(
    ("bbox", "is_upright"),
    [([10, 5, 20, 44], True), ([10, 5, 39, 8], False), ([10, 5, 20, 8], False)],
)
@pytest.mark.parametrize("ending", ["jpg", "tif"])
def test_sizes_before_exif_orientation(
    tmp_path: Path, bbox: list[int], is_upright: bool, ending: str
):
    """The upright size is used where the boxes fit only it; otherwise the error explains it."""
    images = [{**image(), "file_name": f"turned.{ending}"}, image(2)]
    files = write_coco(tmp_path, [entry(1, bbox=bbox), entry(2, 2)], images=images)
    turned_photo(tmp_path / "images" / f"turned.{ending}")
    if not is_upright:
        dataset = read_coco(*files)
        with pytest.raises(ValueError, match="EXIF orientation turns it .* swap width and height"):
            dataset[0]
        (problem,) = image_problems(dataset, 0, decode=False)
        assert problem.is_fatal and "EXIF orientation turns it" in problem.text
        return
    with pytest.warns(UserWarning, match="1 images, such as image 0, .*upright size is used"):
        dataset = read_coco(*files)
    assert dataset.image_hw(0) == (50, 40) and dataset.image_hw(1) == (40, 50)
    assert dataset[0][1]["boxes"].tolist() == [[10, 5, 30, 49]]
    assert not image_problems(dataset, 0, decode=True)


def test_boxes_outside_without_exif_orientation_are_no_reason_to_turn(tmp_path: Path):
    """Sizes are only swapped if the file says so."""
    dataset = read_coco(*write_coco(tmp_path, [entry(1, bbox=[10, 5, 20, 44])]))
    assert dataset.image_hw(0) == (40, 50) and not dataset.table.problems


def test_byte_order_mark(tmp_path: Path):
    """Editors on Windows write it."""
    file, folder = write_coco(tmp_path, [entry(1)])
    file.write_bytes(codecs.BOM_UTF8 + file.read_bytes())
    assert len(read_coco(file, folder)[0][1]["boxes"]) == 1
