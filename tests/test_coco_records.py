"""COCO records: what may come in, what is refused and by which name, what becomes of an object."""

import math

import numpy as np
import pytest
import torch

from hf_detr.coco_records import (
    ObjectFields,
    check_entry,
    checked_box,
    checked_fields,
    checked_record,
    integer_or_none,
    prepare_target,
)

NAME = "image_id 7, annotation 3"


def test_record_gives_id_and_objects():
    """Protects both names that COCO has for the image's id; `image_id` is the stronger one."""
    assert checked_record({"image_id": 7, "things": [1, 2]}, "things", "…") == (7, [1, 2])
    assert checked_record({"id": np.int64(7), "things": ()}, "things", "…") == (7, [])
    assert checked_record({"id": 1, "image_id": 7, "things": []}, "things", "…") == (7, [])


@pytest.mark.parametrize(
    ("record", "error", "message"),
    [
        ([], TypeError, "an annotation is a list; give one dict per image: EXAMPLE"),
        ({}, ValueError, r"has no \['image_id', 'things'\], only \[\]; give .*EXAMPLE"),
        ({"things": []}, ValueError, r"has no \['image_id'\], only \['things'\]"),
        ({"id": 7, "segments_info": []}, ValueError, "'coco_panoptic' reads 'segments_info'"),
        ({"id": "a.jpg", "things": []}, ValueError, "^id is 'a.jpg'; give an integer"),
        ({"image_id": 7.5, "things": []}, ValueError, "^image_id is 7.5; give an integer"),
        ({"image_id": 7, "things": None}, TypeError, "image_id 7: 'things' is a NoneType"),
    ],
)
def test_bad_records_are_refused(record, error, message):
    """Protects from wrong nesting and from the other format, with an example of a good record."""
    with pytest.raises(error, match=message):
        checked_record(record, "things", "EXAMPLE")


@pytest.mark.parametrize(
    ("entry", "error", "message"),
    [
        (3, TypeError, "is a int; give a dict with 'id' and 'category_id'"),
        ({"id": 1}, ValueError, r"has no 'category_id', only \['id'\]"),
        ({"id": None, "category_id": 2}, ValueError, "has no 'id'"),
    ],
)
def test_incomplete_objects_are_refused_by_name(entry, error, message):
    """Protects tables, too, which hold None where a key was missing."""
    with pytest.raises(error, match=f"^{NAME} {message}"):
        check_entry(entry, ("id", "category_id"), NAME)


def test_fields_and_their_defaults():
    """Protects the meaning of absent values: no crowd, and an area to be computed."""
    given = {"category_id": 3.0, "area": np.float32(4), "iscrowd": np.int32(1)}
    assert checked_fields(given, NAME) == ObjectFields(3, 4.0, True)
    for entry in ({"category_id": 3}, {"category_id": 3, "area": None, "iscrowd": None}):
        class_label, area, is_crowd = checked_fields(entry, NAME)
        assert (class_label, is_crowd) == (3, False) and math.isnan(area)


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        ({"category_id": "3"}, "category_id '3'; give an integer from 0"),
        ({"category_id": -1}, "category_id -1; give an integer from 0"),
        ({"area": "large"}, "area 'large'; give a finite number"),
        ({"area": -0.5}, "area -0.5; give a finite number"),
        ({"iscrowd": -1}, "iscrowd -1; give 0 or 1"),
        ({"iscrowd": "yes"}, "iscrowd 'yes'; give 0 or 1"),
        ({"bbox": [1, 2, 3]}, r"bbox \[1, 2, 3\]; give 4 numbers"),
        ({"bbox": [1, 2, 3, None]}, r"bbox \[1, 2, 3, None\]; all 4 values must be finite"),
        ({"bbox": [5, 5, 1, -1]}, r"bbox \[5, 5, 1, -1\] of negative size"),
    ],
)
def test_bad_values_are_refused_by_name(bad, message):
    """Protects people from searching a data set for the one bad object."""
    entry = {"category_id": 3, "bbox": [1, 2, 3, 4], **bad}
    with pytest.raises(ValueError, match=f"^{NAME} has {message}"):
        checked_fields(entry, NAME)
        checked_box(entry, NAME)


@pytest.mark.parametrize("value", [5, 5.0, np.uint8(5), np.float64(5), torch.tensor([5])])
def test_whole_numbers_of_any_type(value):
    """Protects data sets that hand out arrays instead of JSON."""
    assert integer_or_none(value) == 5 and type(integer_or_none(value)) is int


@pytest.mark.parametrize("value", [5.5, "5", True, None, math.nan, math.inf, torch.tensor([5, 5])])
def test_other_things_are_no_whole_numbers(value):
    """Protects ids from being guessed."""
    assert integer_or_none(value) is None


def test_target_by_hand():
    """Protects the target: own areas where given, objects without area out, one warning."""
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
