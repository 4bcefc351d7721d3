"""Conversion of COCO records to targets, and errors for invalid records."""

import math
import re
import warnings

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from hf_detr.image_processing.coco_targets import (
    normalize_target,
    pad_target,
    prepare_detection_target,
    resize_target,
)

IMAGE_HW = (40, 50)


def record(*entries: dict, image_id: int = 7) -> dict:
    return {"image_id": image_id, "annotations": list(entries)}


def entry(bbox: object = (10, 5, 20, 8), category_id: object = 3, **more: object) -> dict:
    return {"bbox": bbox, "category_id": category_id, **more}


def test_box_becomes_corners_and_all_keys_are_there():
    """Keys, shapes and types are those that model and loss expect."""
    target = prepare_detection_target(record(entry(area=99.5, iscrowd=0)), IMAGE_HW)
    expected = {
        "image_id": torch.tensor([7]),
        "class_labels": torch.tensor([3]),
        "boxes": torch.tensor([[10.0, 5.0, 30.0, 13.0]]),
        "area": torch.tensor([99.5]),
        "iscrowd": torch.tensor([0]),
        "orig_size": torch.tensor([40, 50]),
        "size": torch.tensor([40, 50]),
    }
    assert set(target) == set(expected)
    torch.testing.assert_close(target, expected, rtol=0, atol=0)


def test_missing_area_is_that_of_the_clipped_box():
    """`area` is optional."""
    target = prepare_detection_target(
        record(entry(), entry([40, 30, 100, 100]), entry(area=None)), IMAGE_HW
    )
    expected = torch.tensor([20.0 * 8, 10.0 * 10, 20.0 * 8])
    torch.testing.assert_close(target["area"], expected, rtol=0, atol=0)


def test_boxes_are_clipped_to_the_image():
    """The loss gets no boxes beyond the border."""
    target = prepare_detection_target(
        record(entry([-5, -6, 20, 10]), entry([45, 35, 100, 100])), IMAGE_HW
    )
    expected = torch.tensor([[0.0, 0.0, 15.0, 4.0], [45.0, 35.0, 50.0, 40.0]])
    torch.testing.assert_close(target["boxes"], expected, rtol=0, atol=0)


@pytest.mark.parametrize(
    "bbox", [[60, 5, 10, 10], [-20, 5, 20, 10], [5, 5, 0, 10], [5, 5, 10, 0], [5, 40, 5, 5]]
)
def test_degenerate_boxes_are_dropped_with_one_warning(bbox):
    """The warning has the image and the number of boxes."""
    annotation = record(entry(bbox), entry(category_id=5, area=1.5), entry(bbox))
    with pytest.warns(UserWarning, match="image_id 7: 2 of 3 boxes dropped") as caught:
        target = prepare_detection_target(annotation, IMAGE_HW)
    assert len(caught) == 1
    for key, value in (("class_labels", 5), ("area", 1.5), ("iscrowd", 0)):
        assert target[key].tolist() == [value]
    assert target["boxes"].shape == (1, 4)


def test_crowd_regions_are_removed_without_warning():
    """Boxes around groups aren't used for training, as in the official code."""
    annotation = record(entry(iscrowd=1), entry(category_id=2, iscrowd=False), entry(iscrowd=True))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        target = prepare_detection_target(annotation, IMAGE_HW)
    assert target["class_labels"].tolist() == [2]


def test_image_without_objects_gives_empty_tensors():
    """Shapes are (0,) and (0, 4) and types are unchanged after every step."""
    target = prepare_detection_target(record(), IMAGE_HW)
    target = pad_target(normalize_target(resize_target(target, (80, 100))), (90, 100))
    assert target["boxes"].shape == (0, 4) and target["boxes"].dtype == torch.float32
    assert target["class_labels"].shape == (0,) and target["class_labels"].dtype == torch.int64
    assert target["area"].shape == (0,) and target["area"].dtype == torch.float32


def test_numbers_of_numpy_and_torch_are_numbers():
    """Data sets may have arrays instead of Python numbers."""
    annotation = record(
        entry(np.array([10, 5, 20, 8]), np.int64(3), iscrowd=np.int32(0), area=np.float32(4)),
        entry(torch.tensor([10, 5, 20, 8]), torch.tensor(3)),
        entry((10, 5, 20, 8), 3.0),
        image_id=np.int64(9),
    )
    target = prepare_detection_target(annotation, IMAGE_HW)
    assert target["class_labels"].tolist() == [3, 3, 3] and target["image_id"].tolist() == [9]
    assert (target["boxes"] == torch.tensor([10.0, 5.0, 30.0, 13.0])).all()


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        (entry([1, 2, math.nan, 4]), "finite"),
        (entry([1, 2, math.inf, 4]), "finite"),
        (entry([1, 2, 1e300, 4]), "finite"),
        (entry([1, 2, "3", 4]), "finite"),
        (entry([30, 20, -5, 4]), "negative size"),
        (entry([30, 20, 5, -4]), "negative size"),
        (entry([1, 2, 3]), "4 finite numbers"),
        (entry([[1, 2, 3, 4]]), "4 finite numbers"),
        (entry("1234"), "4 finite numbers"),
        (entry(category_id="cat"), "category_id 'cat'"),
        (entry(category_id=1.5), "category_id 1.5"),
        (entry(category_id=-1), "category_id -1"),
        (entry(category_id=True), "category_id True"),
        (entry(area=-1.0), "area -1.0"),
        (entry(area=math.nan), "area nan"),
        (entry(iscrowd=2), "iscrowd 2"),
        ({"category_id": 1}, "no 'bbox'"),
        ({"bbox": [1, 2, 3, 4]}, "no 'category_id'"),
    ],
)
def test_invalid_entries_raise(bad, message):
    """The error has the image id and the index of the entry."""
    with pytest.raises(ValueError, match=r"image_id 7, annotation 1 ") as error:
        prepare_detection_target(record(entry(), bad), IMAGE_HW)
    assert message in str(error.value)


@pytest.mark.parametrize(
    ("bad", "exception", "message"),
    [
        ([entry()], TypeError, "a dict per image"),
        ({"annotations": []}, ValueError, "image_id"),
        ({"image_id": 3}, ValueError, "annotations"),
        ({"image_id": "a.jpg", "annotations": []}, ValueError, "integer"),
        ({"image_id": 3, "annotations": {"bbox": []}}, TypeError, "image_id 3"),
        ({"image_id": 3, "annotations": [[1, 2, 3, 4]]}, TypeError, "image_id 3, annotation 0"),
    ],
)
def test_invalid_records_raise(bad, exception, message):
    """Common errors of nesting are explained."""
    with pytest.raises(exception, match=message):
        prepare_detection_target(bad, IMAGE_HW)


def test_resize_scales_boxes_and_area_by_axis():
    """x and y are scaled by different ratios."""
    target = prepare_detection_target(record(entry(area=10.0)), IMAGE_HW)
    resized = resize_target(target, (80, 150))
    expected = torch.tensor([[30.0, 10.0, 90.0, 26.0]])
    torch.testing.assert_close(resized["boxes"], expected, rtol=0, atol=1e-5)
    torch.testing.assert_close(resized["area"], torch.tensor([60.0]), rtol=0, atol=1e-5)
    assert resized["size"].tolist() == [80, 150] and resized["orig_size"].tolist() == [40, 50]
    assert target["size"].tolist() == [40, 50]  # the argument isn't modified


def test_normalized_boxes_are_relative_to_the_image_and_not_the_canvas():
    """Padding doesn't change boxes, unlike in transformers."""
    target = normalize_target(prepare_detection_target(record(entry()), IMAGE_HW))
    expected = torch.tensor([[20 / 50, 9 / 40, 20 / 50, 8 / 40]])
    torch.testing.assert_close(target["boxes"], expected, rtol=0, atol=1e-6)
    padded = pad_target(target, (100, 100))
    torch.testing.assert_close(padded, target, rtol=0, atol=0)


def test_masks_are_resized_and_padded_with_their_image():
    """Masks are resized to the nearest pixel, and padded at the bottom and the right."""
    target = prepare_detection_target(record(entry([0, 0, 1, 1])), (2, 2))
    target["masks"] = torch.tensor([[[True, False], [False, True]]])
    target = pad_target(resize_target(target, (4, 2)), (5, 3))
    expected = torch.tensor([[[1, 0, 0], [1, 0, 0], [0, 1, 0], [0, 1, 0], [0, 0, 0]]]).bool()
    assert target["masks"].dtype == torch.bool and torch.equal(target["masks"], expected)


# --- masks ----------------------------------------------------------------------------------------

# Pixel columns 1 and 2 of rows 1 to 3 of (4, 5) as polygon, and the same as run lengths.
BLOCK = [[1, 1, 3, 1, 3, 4, 1, 4]]
RUNS = {"size": [4, 5], "counts": [5, 3, 1, 3, 8]}
PACKED = {"size": [4, 5], "counts": "53107"}


def drawn(*rows: str) -> torch.Tensor:
    """Make a mask (H, W) from rows with '#' inside and '.' outside."""
    return torch.tensor([[pixel == "#" for pixel in row] for row in rows])


def test_masks_of_all_three_kinds_by_hand():
    """Polygons, run lengths and packed run lengths are converted in the order of objects."""
    corner = [[0, 0, 1, 0, 1, 1, 0, 1]]
    entries = [entry([1, 1, 2, 3], 3, segmentation=kind) for kind in (BLOCK, RUNS, PACKED)]
    entries.insert(1, entry([0, 0, 1, 1], 4, segmentation=corner + BLOCK))
    target = prepare_detection_target(record(*entries), (4, 5), return_masks=True)
    block = drawn(".....", ".##..", ".##..", ".##..")
    both = drawn("#....", ".##..", ".##..", ".##..")
    assert target["masks"].dtype == torch.bool
    assert torch.equal(target["masks"], torch.stack([block, both, block, block]))
    assert "masks" not in prepare_detection_target(record(*entries), (4, 5))


def test_masks_are_those_of_the_kept_objects():
    """The masks of crowds and of boxes without area are dropped too."""
    top = [[0, 0, 5, 0, 5, 1, 0, 1]]
    annotation = record(
        entry([0, 0, 5, 1], 1, segmentation=top, iscrowd=1),
        entry([0, 0, 0, 9], 2, segmentation=top),
        entry([1, 1, 2, 3], 3, segmentation=BLOCK),
        entry([9, 9, 2, 3], 4),  # dropped, so the missing segmentation isn't an error
        entry([0, 0, 5, 1], 5, segmentation=top),
    )
    with pytest.warns(UserWarning, match="2 of 4 boxes dropped"):
        target = prepare_detection_target(annotation, (4, 5), return_masks=True)
    assert target["class_labels"].tolist() == [3, 5]
    expected = [drawn(".....", *[".##.."] * 3), drawn("#####", *["....."] * 3)]
    assert torch.equal(target["masks"], torch.stack(expected))


def test_no_objects_give_no_masks():
    """Masks of images without objects are empty after every step."""
    target = prepare_detection_target(record(), (4, 5), return_masks=True)
    target = pad_target(resize_target(target, (8, 10)), (9, 12))
    assert target["masks"].shape == (0, 9, 12) and target["masks"].dtype == torch.bool


@pytest.mark.parametrize(
    ("segmentation", "error", "message"),
    [
        (
            None,
            ValueError,
            "no 'segmentation', which return_segmentation_masks=True requires; expected [[",
        ),
        ([], ValueError, "no polygons"),
        (
            [[1, 1, 3, 1]],
            ValueError,
            "polygon 0 of 4 numbers; expected x and y of at least 3 points",
        ),
        ([[1, 1, 3, 1, 3, math.nan]], ValueError, "coordinates [nan]; expected finite numbers"),
        ({**RUNS, "counts": [5, 3, 1, 3]}, ValueError, "the sum height * width = 20"),
        ({**PACKED, "counts": "5310"}, ValueError, "the sum height * width = 20"),
        ({**PACKED, "counts": "5310P"}, ValueError, "are truncated"),
        (
            {**RUNS, "size": [5, 4]},
            ValueError,
            "size [5, 4]; expected the size of the image, [4, 5]",
        ),
        ("polygons.json", TypeError, "a segmentation of type str"),
    ],
)
def test_invalid_segmentations_raise(segmentation, error, message):
    """Truncated masks and masks of another image raise."""
    good = entry([1, 1, 2, 3], segmentation=BLOCK)
    bad = entry([1, 1, 2, 3], segmentation=segmentation)
    crowd = entry(iscrowd=1)
    with pytest.raises(error, match=f"^image_id 7, annotation 2 has .*{re.escape(message)}"):
        prepare_detection_target(record(good, crowd, bad), (4, 5), return_masks=True)


def test_resized_masks_are_centred():
    """Resized masks aren't shifted: the pixel at the centre is used."""
    target = prepare_detection_target(record(entry([0, 0, 3, 1])), (1, 3))
    target["masks"] = drawn("..#")[None]
    assert torch.equal(resize_target(target, (1, 2))["masks"][0], drawn(".#"))
    assert torch.equal(resize_target(target, (2, 4))["masks"][0], drawn("...#", "...#"))


def test_masks_are_resized_as_floats_would_be():
    """Resizing of bytes gives the same pixels as resizing of floats."""
    generator = torch.Generator().manual_seed(0)
    for old_hw, new_hw in (((37, 50), (64, 86)), ((97, 61), (13, 200)), ((480, 640), (800, 1066))):
        target = prepare_detection_target(record(*[entry([0, 0, 9, 9])] * 3), old_hw)
        target["masks"] = torch.rand(3, *old_hw, generator=generator) < 0.5
        expected = F.interpolate(target["masks"][:, None].float(), new_hw, mode="nearest-exact")
        resized = resize_target(target, new_hw)["masks"]
        assert resized.dtype == torch.bool and torch.equal(resized, expected[:, 0] > 0.5)


@pytest.mark.parametrize(
    "keypoints", [[[1, 2, 2], None], [[1, 2, 2], [1, 2, 2, 3, 4, 2]], [[1, 2], [3, 4]], ["a", "b"]]
)
def test_keypoints_that_cannot_be_stacked_warn(keypoints: list) -> None:
    """Objects without keypoints, or with other numbers of them, don't end a training."""
    entries = [
        {"bbox": [1, 2, 20, 18], "category_id": 1, "keypoints": values} for values in keypoints
    ]
    with pytest.warns(UserWarning, match="'keypoints' are left out of the labels of an image"):
        target = prepare_detection_target({"image_id": 1, "annotations": entries}, (30, 40))
    assert "keypoints" not in target and len(target["boxes"]) == 2


def test_keypoints_of_dropped_objects_are_dropped() -> None:
    """Keypoints stay with their objects."""
    entries = [
        {"bbox": [1, 2, 0, 18], "category_id": 1, "keypoints": [1, 1, 1]},
        {"bbox": [1, 2, 5, 18], "category_id": 1, "keypoints": (2, 2, 2)},
        {"bbox": [1, 2, 5, 18], "category_id": 1, "keypoints": [3, 3, 3]},
    ]
    with pytest.warns(UserWarning, match="1 of 3 boxes dropped"):
        target = prepare_detection_target({"image_id": 1, "annotations": entries}, (30, 40))
    assert target["keypoints"].tolist() == [[2, 2, 2], [3, 3, 3]]
    entries = [{"bbox": [1, 2, 5, 18], "category_id": 1, "keypoints": None}]  # from a table
    target = prepare_detection_target({"image_id": 1, "annotations": entries}, (30, 40))
    assert "keypoints" not in target
