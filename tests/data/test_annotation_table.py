"""Annotation tables: packing of values, sorting of objects by image, numbering of classes."""

import math
import pickle

import numpy as np
import pytest

from hf_detr.data.annotation_table import PackedValues, Problem, RawObjects, make_table


def test_packed_values_are_unpacked_unchanged():
    """File names and segmentations of any JSON type are preserved."""
    values = ["ä.jpg", [[1.5, 2, 3]], {"size": [4, 5], "counts": "ab"}, None, [], True, 2**70]
    packed = PackedValues.pack(values)
    assert len(packed) == len(values) and [packed[i] for i in range(len(values))] == values
    assert len(PackedValues.pack([])) == 0


def test_packed_values_pickle_as_arrays():
    """Packed text is little larger than the text itself."""
    packed = PackedValues.pack(["0123456789"] * 1000)
    assert len(pickle.dumps(packed)) < 1000 * (10 + 5 + 8) + 1000
    assert pickle.loads(pickle.dumps(packed))[999] == "0123456789"


def some_objects() -> RawObjects:
    objects = RawObjects()
    objects.append(2, 90, [1, 2, 3, 4], number=11, area=5.5)
    objects.append(0, 7, [5, 6, 7, 8], number=12, is_crowd=True)
    objects.append(2, 7, [0, 0, 9, 9], number=10)
    return objects


def test_objects_are_sorted_by_image_and_keep_their_columns_together():
    """All columns are permuted equally."""
    table = make_table({90: "b", 7: "a"}, [5, 6, 4], [(40, 50)] * 3, some_objects(), "coco_xywh")
    assert table.category_ids == (7, 90) and table.id2label == {0: "a", 1: "b"}
    assert [list(table.rows(i)) for i in range(3)] == [[0], [], [1, 2]]
    assert table.image_of_rows().tolist() == [0, 2, 2]
    assert table.ids.tolist() == [12, 11, 10]
    assert table.class_labels.tolist() == [0, 1, 0]
    assert table.boxes_xywh[:, 0].tolist() == [5, 1, 0]
    assert table.is_crowd.tolist() == [True, False, False]
    assert math.isnan(table.areas[0]) and table.areas[1] == 5.5
    assert table.image_ids.tolist() == [5, 6, 4]


def test_unknown_category_is_a_fatal_problem_with_a_warning():
    """An object is never trained as another class."""
    with pytest.warns(
        UserWarning,
        match=r"(?s)1 problems that prevent training.*  object 11 has the unknown category id",
    ):
        table = make_table({7: "a"}, [0, 1, 2], [(40, 50)] * 3, some_objects(), "coco_xywh")
    text = "object 11 has the unknown category id 90"
    assert table.problems == (Problem("unknown category id", 2, text, True),)
    assert table.class_labels.tolist() == [0, -1, 0]


def test_suspicious_boxes_are_a_fatal_problem_with_a_warning():
    """All readers check the box format, because all of them call `make_table`."""
    objects = RawObjects()
    for _ in range(5):
        objects.append(0, 7, [0.5, 0.5, 0.2, 0.2])
    with pytest.warns(UserWarning, match="but 5 of 5 boxes are empty or outside"):
        table = make_table({7: "a"}, [0], [(40, 50)], objects, "coco_xywh")
    assert [(p.kind, p.image, p.is_fatal) for p in table.problems] == [("box format", None, True)]


def test_no_objects_and_no_classes_make_a_table():
    """Data sets of background images are valid."""
    table = make_table({}, [3], [(40, 50)], RawObjects(), "xyxy")
    assert len(table) == 1 and len(table.rows(0)) == 0 and table.boxes_xywh.shape == (0, 4)


def test_all_columns_are_flat_arrays():
    """Forked workers share the memory of arrays, but not of Python objects."""
    table = make_table({7: "a", 90: "b"}, [0, 1, 2], [(4, 5)] * 3, some_objects(), "coco_xywh")
    columns = ("image_ids", "image_hw", "offsets", "ids", "class_labels", "boxes_xywh", "areas")
    for name in (*columns, "is_crowd"):
        column = getattr(table, name)
        assert isinstance(column, np.ndarray) and column.dtype != object, name
