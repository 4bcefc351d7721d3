"""Columns of objects: defaults, and errors in the values."""

import math
from typing import Any

import pytest

from hf_detr.data.annotation_table import AnnotationTable, make_table
from hf_detr.data.object_columns import ObjectColumns

from ..some_data import entry


def table_of(*entries: dict[str, Any]) -> AnnotationTable:
    """Make a table of objects in the images 0, 3, 3, ... of ten."""
    images = [0, *[3] * (len(entries) - 1)]
    return make_table({3: "a"}, range(10), [(40, 50)] * 10, entries, images, "coco_xywh")


def test_missing_values_have_defaults():
    """The index as id, NaN as area, False as iscrowd."""
    table = table_of(entry(5, iscrowd=1), entry(None, area=None, bbox=[0, 1.5, 2, 3], iscrowd=None))
    assert not table.problems and table.ids.tolist() == [5, 1]
    assert table.boxes_xywh.tolist() == [[10, 5, 20, 8], [0, 1.5, 2, 3]]
    assert table.areas[0] == 99.5 and math.isnan(table.areas[1])
    assert table.is_crowd.tolist() == [True, False]


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
        ("category_id", -(2**63)),
        ("area", -1),
        ("area", "big"),
        ("iscrowd", 2),
    ],
)
def test_each_error_is_reported_and_fatal(key: str, value: Any):
    """Annotations are never repaired silently."""
    wrong = {"id": 8, **entry(8), key: value}
    with pytest.warns(UserWarning, match="problems that prevent training"):
        (problem,) = table_of(entry(1), wrong, entry(2)).problems
    assert (problem.kind, problem.image, problem.is_fatal) == (f"wrong {key}", 3, True)
    assert f"object 8 has {key} {value!r}; expected " in problem.text


@pytest.mark.parametrize("number", ["7", 2**64, 1.5])
def test_invalid_ids_are_reported_and_replaced(number: Any):
    """Data sets with text ids can be read: ids are only used in messages."""
    table = table_of(entry(1), entry(number))
    assert table.ids.tolist() == [1, 1]
    assert [(p.kind, p.is_fatal) for p in table.problems] == [("wrong id", False)]


@pytest.mark.parametrize("ids", [{}, {"id": None}])
def test_objects_without_id_have_their_index_in_messages(ids: dict[str, None]):
    """Rows of the Hub have None for an id that they lack."""
    entries = [{**ids, "bbox": "nothing", "category_id": 0}]
    (problem,) = ObjectColumns.of_entries(entries, [0], start=5).problems
    assert problem.text == "object 5 has bbox 'nothing'; expected 4 finite numbers"
