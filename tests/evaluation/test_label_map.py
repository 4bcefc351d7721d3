"""Labels of a model and of a data set."""

import pytest

from hf_detr.evaluation.label_map import label_map


def test_label_map() -> None:
    """Labels are mapped by name, or are equal if the model has no names."""
    data = {0: "cat", 1: "dog"}
    assert label_map({0: "cat", 1: "dog"}, data) == {0: 0, 1: 1}
    assert label_map({17: "cat", 18: "dog", 12: "N/A"}, data) == {17: 0, 18: 1}
    assert label_map({0: "LABEL_0", 1: "LABEL_1", 2: "LABEL_2"}, data) == {0: 0, 1: 1}
    with pytest.raises(ValueError, match=r"\['car'\] .*\['cat', 'dog'\] .*no name in common"):
        label_map({0: "car"}, data)
