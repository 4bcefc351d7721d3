"""Labels of a model and of a data set."""

import pytest

from hf_detr.evaluation.label_map import label_map, names_of_model


def test_label_map() -> None:
    """Labels are mapped by name, or are equal if the model has no names."""
    data = {0: "cat", 1: "dog"}
    assert label_map({0: "cat", 1: "dog"}, data) == {0: 0, 1: 1}
    assert label_map({17: "cat", 18: "dog", 12: "N/A"}, data) == {17: 0, 18: 1}
    assert label_map({0: "LABEL_0", 1: "LABEL_1", 2: "LABEL_2"}, data) == {0: 0, 1: 1}
    with pytest.raises(ValueError, match=r"\['car'\] .*\['cat', 'dog'\] .*no name in common"):
        label_map({0: "car"}, data)


def test_names_of_a_model() -> None:
    """Values by the data's names become values by the model's, which can be LABEL_0, …"""
    values, data = {"cat": 0.3, "bird": 0.4}, {0: "cat", 1: "dog", 2: "bird"}
    assert names_of_model(values, {17: "cat", 18: "dog"}, data) == {"cat": 0.3}
    unnamed = {0: "LABEL_0", 1: "LABEL_1", 2: "LABEL_2"}
    assert names_of_model(values, unnamed, data) == {"LABEL_0": 0.3, "LABEL_2": 0.4}
