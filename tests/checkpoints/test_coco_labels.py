"""Tests the names of COCO's classes."""

import pytest

from hf_detr.checkpoints.coco_labels import NO_CATEGORY, coco_id2label


def test_detection() -> None:
    """91 labels are COCO's category ids: 80 categories and 11 unused ids."""
    names = coco_id2label(91)
    assert list(names) == list(range(91))
    gaps = [label for label, name in names.items() if name == NO_CATEGORY]
    assert gaps == [0, 12, 26, 29, 30, 45, 66, 68, 69, 71, 83]
    assert len(set(names.values())) == 81
    known = {
        1: "person",
        13: "stop sign",
        17: "cat",
        27: "backpack",
        46: "wine glass",
        90: "toothbrush",
    }
    assert {label: names[label] for label in known} == known


def test_panoptic() -> None:
    """250 labels add 53 kinds of stuff."""
    names = coco_id2label(250)
    assert {label: names[label] for label in range(91)} == coco_id2label(91)
    assert sum(name != NO_CATEGORY for name in names.values()) == 133
    assert (names[92], names[149], names[200]) == ("banner", "road", "rug-merged")


def test_without_gaps() -> None:
    """80 labels are the things in order."""
    names = coco_id2label(80)
    assert list(names) == list(range(80)) and NO_CATEGORY not in names.values()
    assert (names[0], names[11], names[79]) == ("person", "stop sign", "toothbrush")


@pytest.mark.parametrize("num_labels", [1, 20, 90, 92, 251])
def test_other_numbers(num_labels: int) -> None:
    """Other numbers of classes don't get COCO's names."""
    assert coco_id2label(num_labels) is None
