"""COCO records: checks of values, errors that name the object, and targets."""

import math

import numpy as np
import pytest
import torch

from hf_detr.image_processing.coco_records import (
    ObjectFields,
    checked_box,
    checked_fields,
    checked_record,
    integer_or_none,
    min_box_size,
    prepare_target,
)
from hf_detr.image_processing.coco_targets import normalize_target, resize_target

NAME = "image_id 7, annotation 3"


def test_record_has_id_and_objects():
    """The image's id is `image_id` or `id`; `image_id` has precedence."""
    assert checked_record({"image_id": 7, "things": [1, 2]}, "things", "…") == (7, [1, 2])
    assert checked_record({"id": np.int64(7), "things": ()}, "things", "…") == (7, [])
    assert checked_record({"id": 1, "image_id": 7, "things": []}, "things", "…") == (7, [])


@pytest.mark.parametrize(
    ("record", "error", "message"),
    [
        ([], TypeError, "an annotation is a list; expected a dict per image, EXAMPLE"),
        ({}, ValueError, r"the keys \[\], but no \['image_id', 'things'\]; expected .*EXAMPLE"),
        ({"things": []}, ValueError, r"the keys \['things'\], but no \['image_id'\]"),
        ({"id": 7, "segments_info": []}, ValueError, "'coco_panoptic' requires 'segments_info'"),
        ({"id": "a.jpg", "things": []}, ValueError, "^id is 'a.jpg'; expected an integer"),
        ({"image_id": 7.5, "things": []}, ValueError, "^image_id is 7.5; expected an integer"),
        ({"image_id": 7, "things": None}, TypeError, "image_id 7: 'things' is a NoneType"),
    ],
)
def test_invalid_records_raise(record, error, message):
    """Errors for wrong nesting and for the other format have an example."""
    with pytest.raises(error, match=message):
        checked_record(record, "things", "EXAMPLE")


@pytest.mark.parametrize(
    ("entry", "error", "message"),
    [
        (3, TypeError, "is a int; expected a dict with 'id' and 'category_id'"),
        ({"id": 1}, ValueError, r"has the keys \['id'\], but no 'category_id'"),
        ({"id": None, "category_id": 2}, ValueError, "has the keys .*, but no 'id'"),
    ],
)
def test_incomplete_objects_raise(entry, error, message):
    """None, which tables have for a missing key, is missing too."""
    with pytest.raises(error, match=f"^{NAME} {message}"):
        checked_fields(entry, ("id", "category_id"), NAME)


def test_fields_and_their_defaults():
    """The defaults are no crowd, and an area of NaN, which is computed later."""
    given = {"category_id": 3.0, "area": np.float32(4), "iscrowd": np.int32(1)}
    assert checked_fields(given, ["category_id"], NAME) == ObjectFields(3, 4.0, True)
    for entry in ({"category_id": 3}, {"category_id": 3, "area": None, "iscrowd": None}):
        class_label, area, is_crowd = checked_fields(entry, ["category_id"], NAME)
        assert (class_label, is_crowd) == (3, False) and math.isnan(area)


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        ({"category_id": "3"}, "category_id '3'; expected an integer >= 0"),
        ({"category_id": -1}, "category_id -1; expected an integer >= 0"),
        ({"area": "large"}, "area 'large'; expected a finite number"),
        ({"area": -0.5}, "area -0.5; expected a finite number"),
        ({"iscrowd": -1}, "iscrowd -1; expected 0 or 1"),
        ({"iscrowd": "yes"}, "iscrowd 'yes'; expected 0 or 1"),
        ({"bbox": [1, 2, 3]}, r"bbox \[1, 2, 3\]; expected 4 finite numbers"),
        ({"bbox": [1, 2, 3, None]}, r"bbox \[1, 2, 3, None\]; expected 4 finite numbers"),
        ({"bbox": [5, 5, 1, -1]}, r"bbox \[5, 5, 1, -1\] of negative size"),
    ],
)
def test_invalid_values_raise(bad, message):
    """The error names the object."""
    entry = {"category_id": 3, "bbox": [1, 2, 3, 4], **bad}
    with pytest.raises(ValueError, match=f"^{NAME} has {message}"):
        checked_fields(entry, ["category_id"], NAME)
        checked_box(entry, NAME)


@pytest.mark.parametrize("value", [5, 5.0, np.uint8(5), np.float64(5), torch.tensor([5])])
def test_integers_of_any_type(value):
    """Data sets may have arrays instead of Python numbers."""
    assert integer_or_none(value) == 5 and type(integer_or_none(value)) is int


@pytest.mark.parametrize("value", [5.5, "5", True, None, math.nan, math.inf, torch.tensor([5, 5])])
def test_other_values_are_not_integers(value):
    """Ids aren't guessed."""
    assert integer_or_none(value) is None


def test_smallest_box():
    """Boxes have to be wider in very large images, whose coordinates are rounded to more."""
    assert min_box_size((480, 640)) == np.float32(0.01) == min_box_size((0, 0))
    sizes = min_box_size(np.array([[480, 640], [2**20, 9]]))
    assert sizes.dtype == np.float32 and sizes.tolist() == [np.float32(0.01), 1]


@pytest.mark.parametrize("image_hw", [(480, 640), (300, 60_000), (200_000, 100)])
def test_kept_boxes_cannot_become_empty(image_hw: tuple[int, int]):
    """The loss refuses boxes without area: no flip and resize leads to one."""
    height, width = image_hw
    left = torch.rand(20_000, generator=torch.Generator().manual_seed(0)) * width
    sizes = float(min_box_size(image_hw)) * torch.linspace(0.1, 3, 20_000)
    corners = torch.stack([left, left * 0, left + sizes, left * 0 + height], dim=1)
    corners[:, 2].clamp_(max=width)
    fields = [ObjectFields(0, math.nan, False)] * 20_000
    with pytest.warns(UserWarning, match="boxes dropped"):
        target, _ = prepare_target(1, image_hw, fields, corners, corners[:, 0], "REASON")
    assert len(target["boxes"]) > 10_000
    flipped = target["boxes"][:, [2, 1, 0, 3]]
    flipped[:, ::2] = width - flipped[:, ::2]
    for boxes in (target["boxes"], flipped):
        for ratio in (0.01, 0.3, 0.6, 0.999, 1.7):
            new_hw = round(height * ratio), round(width * ratio)
            resized = resize_target({**target, "boxes": boxes}, new_hw)
            assert (normalize_target(resized)["boxes"][:, 2:] > 0).all()


def test_target_by_hand():
    """Given areas are kept, and objects without area are dropped with one warning."""
    fields = [ObjectFields(3, 9.5, True), ObjectFields(4, 1.0, False), ObjectFields(5, math.nan, 0)]
    boxes = torch.tensor([[1.0, 2.0, 3.0, 4.0], [5.0, 5.0, 5.0, 9.0], [0.0, 0.0, 2.0, 1.0]])
    areas = torch.tensor([4.0, 0.0, 2.0])
    with pytest.warns(UserWarning, match="image_id 7: 1 of 3 boxes .* no area REASON") as caught:
        target, keep = prepare_target(7, (10, 20), fields, boxes, areas, "REASON")
    assert len(caught) == 1 and keep.tolist() == [True, False, True]
    expected = {
        "image_id": torch.tensor([7]),
        "class_labels": torch.tensor([3, 5]),
        "boxes": boxes[[0, 2]],
        "area": torch.tensor([9.5, 2.0]),
        "iscrowd": torch.tensor([1, 0]),
        "orig_size": torch.tensor([10, 20]),
        "size": torch.tensor([10, 20]),
    }
    torch.testing.assert_close(target, expected, rtol=0, atol=0)
