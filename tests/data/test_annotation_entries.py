"""Conversion of COCO's dicts to columns: nothing is guessed, every error names its object."""

import math
from typing import Any

import PIL.Image
import pytest
import torch

from hf_detr.data.annotation_entries import objects_from_entries, segment_boxes, with_boxes
from hf_detr.data.image_source import ImageFolder

from ..some_data import entry


def test_valid_entries_become_columns():
    """Missing values have defaults: the index as id, NaN as area, False as iscrowd."""
    problems: list = []
    entries = [entry(5, iscrowd=1), entry(None, area=None, iscrowd=None, bbox=[0, 1.5, 2, 3])]
    objects = objects_from_entries(entries, [0, 4], problems)
    assert not problems
    assert objects.ids == [5, 1] and objects.images == [0, 4]
    assert objects.boxes == [[10, 5, 20, 8], [0, 1.5, 2, 3]]
    assert objects.areas[0] == 99.5 and math.isnan(objects.areas[1])
    assert [bool(flag) for flag in objects.is_crowd] == [True, False]


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("bbox", None),
        ("bbox", [1, 2, 3]),
        ("bbox", [1, 2, 3, "4"]),
        ("bbox", [1, 2, 3, math.nan]),
        ("bbox", [1, 2, math.inf, 4]),
        ("bbox", {"x": 1}),
        ("category_id", None),
        ("category_id", "car"),
        ("category_id", True),
        ("category_id", 1.5),
        ("area", -1),
        ("area", "big"),
        ("iscrowd", 2),
    ],
)
def test_each_error_is_reported_and_fatal(key: str, value: Any):
    """Annotations are never repaired silently."""
    problems: list = []
    wrong = {"id": 8, **entry(8), key: value}
    objects_from_entries([entry(1), wrong, entry(2)], [0, 3, 3], problems)
    assert [(p.kind, p.image, p.is_fatal) for p in problems] == [(f"wrong {key}", 3, True)]
    assert f"has {key} {value!r}; expected " in problems[0].text


@pytest.mark.parametrize("number", ["7", 2**64, 1.5])
def test_invalid_ids_are_reported_and_replaced(number: Any):
    """Data sets with text ids can be read: ids are only used in messages."""
    problems: list = []
    assert objects_from_entries([entry(1), entry(number)], [0, 3], problems).ids == [1, 1]
    assert [(p.kind, p.is_fatal) for p in problems] == [("wrong id", False)]


def test_boxes_of_segments_are_tight():
    """Boxes of panoptic data come from the map; a segment without pixels has no box."""
    segment_ids = torch.zeros(6, 8, dtype=torch.int64)
    segment_ids[1:3, 2:7] = 9
    segment_ids[5, 7] = 9
    boxes = segment_boxes(segment_ids, [9, 4])
    assert boxes[0] == [2, 1, 6, 5]
    assert all(map(math.isnan, boxes[1]))


def test_only_missing_boxes_are_filled_in(tmp_path):
    """Existing boxes are kept, and formats are never mixed."""
    image = PIL.Image.new("L", (8, 6))
    image.paste(9, (2, 1, 7, 3))
    image.save(tmp_path / "1.png")
    maps = ImageFolder(tmp_path, ["1.png"])
    segments = [{"id": 9}, {"id": 9, "bbox": [1, 1, 1, 1]}]
    found = with_boxes(segments, maps, 0, "coco_xywh")
    assert [segment["bbox"] for segment in found] == [[2, 1, 5, 2], [1, 1, 1, 1]]
    with pytest.raises(ValueError, match="box_format is 'xyxy'; add the missing boxes"):
        with_boxes(segments, maps, 0, "xyxy")
    for broken in ({"bbox": [1, 1, 1, 1]}, {"id": None}, {"id": "9"}, 9):
        with pytest.raises(
            ValueError, match="1.png has the segment .*expected a dict with the integer 'id'"
        ):
            with_boxes([broken], maps, 0, "coco_xywh")
