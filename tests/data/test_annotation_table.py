"""Annotation tables: sorting of objects by image, numbering of classes."""

import math

import numpy as np
import pytest

from hf_detr.data.annotation_table import AnnotationTable, make_table
from hf_detr.data.object_columns import Problem
from hf_detr.image_processing.coco_targets import prepare_detection_target

SOME_ENTRIES = [
    {"id": 11, "category_id": 90, "bbox": [1, 2, 3, 4], "area": 5.5},
    {"id": 12, "category_id": 7, "bbox": [5, 6, 7, 8], "iscrowd": True},
    {"id": 10, "category_id": 7, "bbox": [0, 0, 9, 9]},
]


def some_table(names: dict[int, str]) -> AnnotationTable:
    sizes = [(40, 50)] * 3
    return make_table(names, [5, 6, 4], sizes, SOME_ENTRIES, [2, 0, 2], "coco_xywh")


def test_objects_are_sorted_by_image_and_keep_their_columns_together():
    """All columns are permuted equally."""
    table = some_table({90: "b", 7: "a"})
    assert table.category_ids == (7, 90) and table.id2label == {0: "a", 1: "b"}
    assert [list(table.rows(i)) for i in range(3)] == [[0], [], [1, 2]]
    assert table.image_of_rows().tolist() == [0, 2, 2]
    assert table.ids.tolist() == [12, 11, 10]
    assert table.class_labels.tolist() == [0, 1, 0]
    assert table.boxes_xywh[:, 0].tolist() == [5, 1, 0]
    assert table.is_crowd.tolist() == [True, False, False]
    assert math.isnan(table.areas[0]) and table.areas[1] == 5.5
    assert table.image_ids.tolist() == [5, 6, 4]


@pytest.mark.filterwarnings("ignore:The annotations have:UserWarning")
def test_trained_objects_are_those_of_targets():
    """The table's answer is that of the reader of targets; unknown image sizes drop nothing."""
    boxes = [[1, 2, 3, 4], [-3, 2, 3, 4], [-3, 2, 4, 4], [49, 39, 9, 9], [50, 2, 3, 4]]
    boxes += [[1, 2, 0, 4], [1, 2, 3, -1], [1, 2, 3, math.nan]]
    entries = [{"category_id": 0, "bbox": box} for box in boxes]
    entries.append({**entries[0], "iscrowd": 1})
    expected = [row in (0, 2, 3) for row in range(9)]
    table = make_table({0: "a"}, [5], [(40, 50)], entries, [0] * 9, "coco_xywh")
    assert table.are_trained().tolist() == expected
    valid = {"image_id": 5, "annotations": [*entries[:6], entries[8]]}
    with pytest.warns(UserWarning, match="3 of 6 boxes dropped"):
        target = prepare_detection_target(valid, (40, 50))
    assert len(target["boxes"]) == sum(expected)
    unknown = make_table({0: "a"}, [5], [(0, 0)], entries, [0] * 9, "coco_xywh")
    assert unknown.are_trained().tolist() == [row in (0, 2, 3, 4) for row in range(9)]


def test_slivers_are_not_trained():
    """Table and targets agree about boxes whose width float32 rounds, at any size of the image."""
    for width, height in ((640, 480), (60_000, 100)):
        left = np.random.default_rng(0).uniform(0, width, 2000)
        widths = np.repeat([1e-14, 3.1e-5, 0.00999, 0.01001, 0.05, 0.06, 1], [285] * 6 + [290])
        boxes = np.stack([left, np.ones(2000), widths, np.full(2000, 9)], axis=1).tolist()
        entries = [{"category_id": 0, "bbox": box} for box in boxes]
        table = make_table({0: "a"}, [5], [(height, width)], entries, [0] * 2000, "coco_xywh")
        entries = [{**entry, "category_id": row} for row, entry in enumerate(entries)]
        record = {"image_id": 5, "annotations": entries}
        with pytest.warns(UserWarning, match="boxes dropped"):
            target = prepare_detection_target(record, (height, width))
        assert np.flatnonzero(table.are_trained()).tolist() == target["class_labels"].tolist()
        assert 250 < len(target["boxes"]) < 1500


def test_unknown_category_is_a_fatal_problem_with_a_warning():
    """An object is never trained as another class."""
    with pytest.warns(
        UserWarning,
        match=r"(?s)1 problems that prevent training.*  object 11 has the unknown category id",
    ):
        table = some_table({7: "a"})
    text = "object 11 has the unknown category id 90"
    assert table.problems == (Problem("unknown category id", 2, text, True),)
    assert table.class_labels.tolist() == [0, -1, 0]


def test_suspicious_boxes_are_a_fatal_problem_with_a_warning():
    """All readers check the box format, because all of them call `make_table`."""
    entries = [{"category_id": 7, "bbox": [0.5, 0.5, 0.2, 0.2]}] * 5
    with pytest.warns(UserWarning, match="but 5 of 5 boxes are empty or outside"):
        table = make_table({7: "a"}, [0], [(40, 50)], entries, [0] * 5, "coco_xywh")
    assert [(p.kind, p.image, p.is_fatal) for p in table.problems] == [("box format", None, True)]


def test_no_objects_and_no_classes_make_a_table():
    """Data sets of background images are valid."""
    table = make_table({}, [3], [(40, 50)], [], [], "xyxy")
    assert len(table) == 1 and len(table.rows(0)) == 0 and table.boxes_xywh.shape == (0, 4)


def test_all_columns_are_flat_arrays():
    """Forked workers share the memory of arrays, but not of Python objects."""
    table = some_table({7: "a", 90: "b"})
    columns = ("image_ids", "image_hw", "offsets", "ids", "class_labels", "boxes_xywh", "areas")
    for name in (*columns, "is_crowd"):
        column = getattr(table, name)
        assert isinstance(column, np.ndarray) and column.dtype != object, name
