"""Tests data sets of tiles."""

import json
import pickle
from pathlib import Path

import numpy as np
import PIL.Image
import pytest
import torch
from torch.testing import assert_close

from hf_detr import read_coco, read_coco_panoptic
from hf_detr.data.dataset import DetectionDataset
from hf_detr.data.tiles import tile_dataset

from ..some_data import write_image

SIZES_HW = {1: (90, 100), 2: (40, 50)}  # of the upright images
BOXES = [
    *([2, 3, 20, 20], [30, 30, 30, 30], [55, 5, 20, 10]),
    *([0, 10, 100, 70], [95, 85, 20, 20]),
]


@pytest.fixture
def dataset(tmp_path: Path) -> DetectionDataset:
    """A large image, which its EXIF data turn, and a small one."""
    write_image(tmp_path / "images" / "1.png", 100, 90)
    with PIL.Image.open(tmp_path / "images" / "1.png") as image:
        exif = image.getexif()
        exif[0x0112] = 6
        image.save(tmp_path / "images" / "1.png", exif=exif)
    write_image(tmp_path / "images" / "2.png", 40, 50)
    images = [
        {"id": number, "file_name": f"{number}.png", "height": height, "width": width}
        for number, (height, width) in SIZES_HW.items()
    ]
    annotations = [
        {"id": 10 + n, "image_id": 1, "category_id": n % 2, "bbox": box, "iscrowd": 0, "area": 50}
        for n, box in enumerate(BOXES)
    ]
    small = {"id": 7, "image_id": 2, "category_id": 1, "bbox": [5, 5, 60, 10], "iscrowd": 0}
    content = {"images": images, "annotations": [*annotations, {**small, "area": 3}]}
    content["categories"] = [{"id": 0, "name": "red"}, {"id": 1, "name": "green"}]
    (tmp_path / "annotations.json").write_text(json.dumps(content))
    return read_coco(tmp_path / "annotations.json", tmp_path / "images")


def test_tiles_are_examples(dataset: DetectionDataset) -> None:
    """Pixels are those of the image, boxes are clipped and belong where half of them is."""
    with pytest.warns(UserWarning, match="No tile shows half of 1 of 6 objects"):
        cut, places = tile_dataset(dataset, 60, 0.2)
    assert [(image_id, number) for image_id, number, _ in places] == [
        *((1, number) for number in range(4)),
        (2, 0),
    ]
    windows = places[0][2].tolist()
    assert windows == [[0, 0, 60, 60], [40, 0, 100, 60], [0, 30, 60, 90], [40, 30, 100, 90]]
    whole, _ = dataset[0]
    assert len(cut) == 5 and cut.id2label == dataset.id2label
    boxes = []
    for index, (x0, y0, x1, y1) in enumerate(windows):
        image, target = cut[index]
        assert torch.equal(image, whole[:, y0:y1, x0:x1])
        assert target["image_id"].item() == index and target["orig_size"].tolist() == [60, 60]
        assert cut.image_hw(index) == (60, 60)
        boxes.append(target["boxes"].tolist())
    # The second box is on all four tiles, the last one is half outside the image.
    assert boxes[0] == [[2, 3, 22, 23], [30, 30, 60, 60]]
    assert boxes[1] == [[0, 30, 20, 60], [15, 5, 35, 15]]
    assert boxes[2] == [[30, 0, 60, 30]]
    assert boxes[3] == [[0, 0, 20, 30], [55, 55, 60, 60]]
    areas = [cut[index][1]["area"].tolist() for index in range(4)]
    assert_close(areas[1], [50 * 2 / 3, 50.0])
    (small, expected), (image, target) = dataset[1], cut[4]
    assert torch.equal(small, image) and torch.equal(target["boxes"], expected["boxes"])
    assert cut.images.name(4) == dataset.images.name(1)
    assert cut.images.name(1).endswith("1.png, tile at x 40, y 0")
    assert cut.images.stamp(0) != cut.images.stamp(1)


def test_an_image_is_decoded_once_for_its_tiles(
    dataset: DetectionDataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Tiles that follow each other share the decoded image, which isn't sent to workers."""
    cut, _ = tile_dataset(dataset, 60, 0.2, with_objects=False)
    opened, source = [], dataset.images
    monkeypatch.setattr(type(source), "open", lambda self, i: opened.append(i) or opening(self, i))
    for index in (0, 1, 2, 3, 4):
        assert len(cut[index][1]["boxes"]) == 0
    assert opened == [0, 1]
    assert pickle.loads(pickle.dumps(cut.images))._kept == {}


def test_decoded_images_are_kept_within_a_number_of_bytes(tmp_path: Path) -> None:
    """Tiles in any order share decoded images, of which the latest ones that fit are kept."""
    images = [
        {"id": number, "file_name": f"{number}.png", "height": 40, "width": 60}
        for number in range(4)
    ]
    for image in images:
        write_image(tmp_path / image["file_name"], 40, 60, seed=image["id"])
    content = {"images": images, "annotations": [], "categories": [{"id": 0, "name": "red"}]}
    (tmp_path / "a.json").write_text(json.dumps(content))
    whole = read_coco(tmp_path / "a.json", tmp_path)
    size = 4 * 40 * 60  # PIL has four bytes for a pixel
    for kept_bytes, expected in [
        (0, [0, 1, 2, 0, 1, 2, 0]),
        (3 * size - 1, [0, 1, 2, 0, 1, 2, 0]),
        (3 * size, [0, 1, 2]),
    ]:
        cut, _ = tile_dataset(whole, 40, 0, kept_bytes=kept_bytes)
        assert len(cut) == 8
        decoded, decode = [], cut.images._decoded
        cut.images._decoded = lambda i, seen=decoded, decode=decode: seen.append(i) or decode(i)
        for index in (0, 2, 4, 1, 3, 5, 0):  # two tiles of each image
            x0, y0, x1, y1 = cut.images._windows[index].tolist()
            pixels = whole[index // 2][0][:, y0:y1, x0:x1]
            assert torch.equal(cut[index][0], pixels)
        assert decoded == expected
    cut[6], cut[2]  # the oldest one is dropped
    assert list(cut.images._kept) == [0, 3, 1]


def test_images_must_have_the_annotated_size(dataset: DetectionDataset, tmp_path: Path) -> None:
    """Tiles outside a smaller image would be black, and those of a larger one miss a part."""
    cut, _ = tile_dataset(dataset, 60, 0.2, with_objects=False)
    for size in ((50, 40), (200, 180)):
        write_image(tmp_path / "images" / "1.png", *size)
        with pytest.raises(ValueError, match="but its annotations are for 100 x 90"):
            cut[1]
    write_image(tmp_path / "images" / "1.png", 90, 100)
    with PIL.Image.open(tmp_path / "images" / "1.png") as image:
        exif = image.getexif()
        exif[0x0112] = 6
        image.save(tmp_path / "images" / "1.png", exif=exif)
    with pytest.raises(ValueError, match="its EXIF orientation turns it"):
        cut[1]


def opening(source: object, index: int) -> PIL.Image.Image:
    return PIL.Image.open(source.name(index))


def test_segment_maps_are_cut(tmp_path: Path) -> None:
    """Masks of panoptic data are those of the tile; other masks are refused."""
    random = np.random.default_rng(0)
    write_image(tmp_path / "images" / "1.png", 64, 100)
    ids = np.zeros((64, 100, 3), np.uint8)
    ids[10:30, 30:60, 0] = 9
    (tmp_path / "segments").mkdir()
    PIL.Image.fromarray(ids).save(tmp_path / "segments" / "1.png")
    box = [30, 10, 30, 20]
    segment = {"id": 9, "category_id": 3, "iscrowd": 0, "bbox": box, "area": 600}
    content = {
        "images": [{"id": 1, "file_name": "1.png", "height": 64, "width": 100}],
        "annotations": [{"image_id": 1, "file_name": "1.png", "segments_info": [segment]}],
        "categories": [{"id": 3, "name": "car", "isthing": 1}],
    }
    (tmp_path / "panoptic.json").write_text(json.dumps(content))
    folders = tmp_path / "images", tmp_path / "segments"
    data = read_coco_panoptic(tmp_path / "panoptic.json", *folders, masks=True)
    whole = data[0][1]["masks"]
    cut, _ = tile_dataset(data, 64, 0.2)
    assert len(cut) == 2
    for index, x0 in enumerate((0, 36)):
        masks = cut[index][1]["masks"]
        assert masks.any() and torch.equal(masks, whole[:, :, x0 : x0 + 64])
    polygons = [{**segment, "image_id": 1, "segmentation": [random.uniform(10, 30, 6).tolist()]}]
    (tmp_path / "some.json").write_text(json.dumps({**content, "annotations": polygons}))
    data = read_coco(tmp_path / "some.json", folders[0], masks=True)
    with pytest.raises(ValueError, match="Only masks of segment maps can be cut into tiles"):
        tile_dataset(data, 64, 0.2)
    tile_dataset(data, 64, 0.2, with_objects=False)


def test_problems_stay_with_their_image(dataset: DetectionDataset, tmp_path: Path) -> None:
    """Errors of an image that follows large ones are those of its tile."""
    content = json.loads((tmp_path / "annotations.json").read_text())
    content["annotations"][-1]["bbox"] = None
    (tmp_path / "annotations.json").write_text(json.dumps(content))
    with pytest.warns(UserWarning, match="problems that prevent training"):
        broken = read_coco(tmp_path / "annotations.json", tmp_path / "images")
    cut, _ = tile_dataset(broken, 90, 0.2)
    assert len(cut) == 3
    with pytest.raises(ValueError, match="2.png: "):
        cut[2]
    cut[0]
