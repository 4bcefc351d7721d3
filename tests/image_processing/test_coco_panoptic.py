"""Conversion of panoptic records to targets: ids, boxes, and file names inside the folder."""

import re
from pathlib import Path

import numpy as np
import PIL.Image
import pytest
import torch
from transformers.models.detr.image_processing_detr import prepare_coco_panoptic_annotation

from hf_detr.image_processing.coco_panoptic import prepare_panoptic_target

HW = (4, 6)
LARGE = 2 + 256 * 3 + 65536 * 4
# Void, a block of 2 x 3, a block with a large id, and an id that isn't in the record.
IDS = np.array(
    [
        [0, 7, 7, 7, 0, 0],
        [0, 7, 7, 7, 0, 9],
        [0, 0, 0, LARGE, LARGE, 9],
        [0, 0, 0, LARGE, LARGE, 9],
    ]
)


def write_png(path: Path, ids: np.ndarray) -> None:
    """Write ids (H, W) as COCO's colors."""
    colors = np.stack([ids % 256, ids // 256 % 256, ids // 65536], axis=-1)
    PIL.Image.fromarray(colors.astype(np.uint8)).save(path)


def segment(id: object = 7, category_id: object = 3, **more: object) -> dict:
    return {"id": id, "category_id": category_id, **more}


def record(*segments: object, **more: object) -> dict:
    return {"image_id": 40, "file_name": "a.png", "segments_info": list(segments), **more}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    path = tmp_path / "masks"
    path.mkdir()
    write_png(path / "a.png", IDS)
    return path


def test_target_by_hand(folder):
    """Boxes, given and computed areas and crowds are in the order of the segments."""
    annotation = record(segment(LARGE, 5, iscrowd=1), segment(area=99, iscrowd=0))
    target = prepare_panoptic_target(annotation, HW, folder)
    expected = {
        "image_id": torch.tensor([40]),
        "class_labels": torch.tensor([5, 3]),
        "boxes": torch.tensor([[3.0, 2.0, 4.0, 3.0], [1.0, 0.0, 3.0, 1.0]]),
        "area": torch.tensor([4.0, 99.0]),
        "iscrowd": torch.tensor([1, 0]),
        "orig_size": torch.tensor([4, 6]),
        "size": torch.tensor([4, 6]),
        "masks": torch.from_numpy(np.stack([IDS == LARGE, IDS == 7])),
    }
    assert set(target) == set(expected)
    torch.testing.assert_close(target, expected, rtol=0, atol=0)
    without = prepare_panoptic_target(annotation, HW, str(folder), return_masks=False)
    del expected["masks"]
    torch.testing.assert_close(without, expected, rtol=0, atol=0)


@pytest.mark.filterwarnings("ignore:.*decoding and encoding.*:DeprecationWarning")  # torchvision
def test_same_as_transformers(folder):
    """Random maps with ids up to the largest give the same target."""
    generator = np.random.default_rng(0)
    for height, width in ((9, 9), (30, 50), (61, 40)):
        names = generator.choice(2**24 - 1, 5, replace=False) + 1
        blocks = generator.integers(0, 6, (-(-height // 3), -(-width // 3))).repeat(3, 0)
        ids = np.append(0, names)[blocks.repeat(3, 1)[:height, :width]]
        write_png(folder / "b.png", ids)
        segments = [
            segment(int(name), index, iscrowd=index % 2, area=7 * index + 0.5)
            for index, name in enumerate(names)
            if (ids == name).any()
        ]
        annotation = record(*segments, file_name="b.png")
        ours = prepare_panoptic_target(annotation, (height, width), folder)
        image = torch.zeros(3, height, width)
        peer = prepare_coco_panoptic_annotation(image, annotation, folder, True, "channels_first")
        assert len(segments) > 2
        torch.testing.assert_close(ours, peer, rtol=0, atol=0)


def test_no_segments(folder):
    """Images with only void have tensors of shape (0, …)."""
    target = prepare_panoptic_target(record(), HW, folder)
    assert target["masks"].shape == (0, 4, 6) and target["masks"].dtype == torch.bool
    assert target["boxes"].shape == (0, 4) and target["boxes"].dtype == torch.float32
    assert target["area"].shape == (0,) and target["class_labels"].dtype == torch.int64


def test_segments_without_box_area_are_dropped_with_a_warning(folder):
    """The masks and classes of these segments are dropped too."""
    annotation = record(segment(9), segment(7, 4))
    with pytest.warns(UserWarning, match="image_id 40: 1 of 2 boxes .* one pixel wide") as caught:
        target = prepare_panoptic_target(annotation, HW, folder)
    assert len(caught) == 1 and target["class_labels"].tolist() == [4]
    assert torch.equal(target["masks"], torch.from_numpy(IDS == 7)[None])


def test_subfolders_and_links_are_valid(folder):
    """Files in the Hub's cache are links; the image id may be `id`."""
    (folder / "train").mkdir()
    write_png(folder / "train" / "b.png", IDS)
    write_png(folder.parent / "blob.png", IDS)
    (folder / "c.png").symlink_to("../blob.png")
    (folder.parent / "alias").symlink_to(folder)
    for masks_path in (folder, folder.parent / "alias"):
        for file_name in ("train/b.png", "c.png"):
            annotation = {"id": 1, "file_name": file_name, "segments_info": [segment()]}
            target = prepare_panoptic_target(annotation, HW, masks_path)
            assert target["boxes"].tolist() == [[1, 0, 3, 1]] and target["image_id"].item() == 1


# Errors.


def test_file_names_outside_the_folder_raise(folder):
    """Untrusted records can't read other files of the user."""
    outside = folder.parent / "secret.png"
    write_png(outside, IDS)
    (folder.parent / "masks2").mkdir()
    write_png(folder.parent / "masks2" / "a.png", IDS)
    for file_name in (
        "../secret.png",
        "../masks2/a.png",
        "up/../../secret.png",
        "../masks/a.png",
        str(outside),
        str(folder / "a.png"),
    ):
        message = re.escape(f"image_id 40 has file_name {file_name!r}, which is outside of")
        with pytest.raises(ValueError, match=f"^{message}"):
            prepare_panoptic_target(record(segment(), file_name=file_name), HW, folder)


@pytest.mark.parametrize("file_name", [None, 5, "", "a\0.png"])
def test_invalid_file_names_raise(folder, file_name):
    """Each record requires a PNG file."""
    with pytest.raises(
        ValueError, match="image_id 40 has file_name .*; expected that of its PNG file"
    ):
        prepare_panoptic_target(record(segment(), file_name=file_name), HW, folder)


def test_missing_folder_raises(folder):
    """The error is about `masks_path`, not about a record."""
    with pytest.raises(ValueError, match=r"masks_path '.*nowhere' is not a folder"):
        prepare_panoptic_target(record(segment()), HW, folder / "nowhere")


def test_circular_links_raise(folder):
    """Links aren't followed endlessly."""
    (folder / "one.png").symlink_to("two.png")
    (folder / "two.png").symlink_to("one.png")
    with pytest.raises(ValueError, match="image_id 40.*one.png"):
        prepare_panoptic_target(record(segment(), file_name="one.png"), HW, folder)


def invalid_files(folder: Path) -> dict[str, str]:
    """Write invalid files; return their names and error messages."""
    image = PIL.Image.open(folder / "a.png")
    image.convert("L").save(folder / "gray.png")
    image.convert("P").save(folder / "palette.png")
    image.convert("RGBA").save(folder / "alpha.png")
    image.save(folder / "jpeg.png", format="JPEG")
    write_png(folder / "turned.png", IDS.T)
    noise = np.random.default_rng(0).integers(0, 2**24, HW)
    write_png(folder / "noise.png", noise)
    (folder / "cut.png").write_bytes((folder / "noise.png").read_bytes()[:90])
    (folder / "empty.png").write_bytes(b"")
    return {
        "missing.png": "the file doesn't exist; file_name must be relative to masks_path",
        "gray.png": "its mode is 'L'; expected 'RGB'",
        "palette.png": "its mode is 'P'; expected 'RGB'",
        "alpha.png": "its mode is 'RGBA'; expected 'RGB'",
        "jpeg.png": "cannot identify image file",
        "turned.png": "it is 4 x 6 pixels, but the upright image is 6 x 4 (width x height)",
        "cut.png": "truncated",
        "empty.png": "cannot identify image file",
        ".": "the file doesn't exist",
    }


def test_invalid_files_raise(folder):
    """The error has the image id and the file."""
    for file_name, message in invalid_files(folder).items():
        with pytest.raises(ValueError) as error:
            prepare_panoptic_target(record(segment(), file_name=file_name), HW, folder)
        path = str((folder / file_name).resolve())
        assert str(error.value).startswith(f"image_id 40: {path!r} can't be used: "), file_name
        assert message in str(error.value), error.value


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        (segment(0), "has id 0; expected an integer from 1 to 16777215"),
        (segment(2**24), "has id 16777216; expected an integer from 1"),
        (segment("7"), "has id '7'; expected an integer"),
        (segment(7), "has the id 7 of an earlier segment; ids must be unique"),
        (segment(8), "has id 8, but no pixel; the ids in the PNG file are [0, 7, 9, 262914]"),
        (segment(9, -1), "has category_id -1; expected an integer >= 0"),
        (segment(9, iscrowd=2), "has iscrowd 2; expected 0 or 1"),
        (segment(9, area=-1), "has area -1; expected a finite number"),
        ({"id": 9}, "has the keys ['id'], but no 'category_id'"),
        ({"category_id": 9}, "has the keys ['category_id'], but no 'id'"),
    ],
)
def test_invalid_segments_raise(folder, bad, message):
    """Void as an object, repeated ids and PNG files of other records raise."""
    with pytest.raises(ValueError) as error:
        prepare_panoptic_target(record(segment(), bad), HW, folder)
    assert re.match(r"image_id 40( \(a.png\))?, segments_info\[1\] ", str(error.value))
    assert message in str(error.value)


@pytest.mark.parametrize(
    ("bad", "error", "message"),
    [
        ([record()], TypeError, "an annotation is a list; expected a dict per image"),
        (
            {"image_id": 40, "annotations": []},
            ValueError,
            "'coco_detection' requires 'annotations'",
        ),
        (
            record(7),
            TypeError,
            r"image_id 40, segments_info\[0\] is a int; expected a dict with 'id'",
        ),
        ({**record(), "segments_info": None}, TypeError, "image_id 40: 'segments_info' is a None"),
    ],
)
def test_invalid_records_raise(folder, bad, error, message):
    """Wrong nesting and detection records are explained."""
    with pytest.raises(error, match=message):
        prepare_panoptic_target(bad, HW, folder)
