"""Misspelled classes are found, and classes that only look alike aren't."""

import pytest

from hf_detr.data.similar_names import similar_names


@pytest.mark.parametrize(
    "name", ["cofee mug", "coffee mugs", "coffee  mug", "Coffee_Mug", "cofffee mug", "coffee muk"]
)
def test_misspelled_names(name: str) -> None:
    """A letter is missing, added or another one, or case and spaces differ."""
    assert list(similar_names({"coffee mug": 25, name: 2, "spoon": 9})) == [(name, "coffee mug")]


def test_swapped_letters() -> None:
    assert list(similar_names({"spoon": 25, "spono": 1})) == [("spono", "spoon")]


@pytest.mark.parametrize(
    "counts",
    [
        {"cat": 90, "car": 2},  # short
        {"player 1": 90, "player 2": 2, "player 12": 1},  # numbered
        {"truck": 90, "truce": 40},  # frequent both
        {"spoon": 90, "spool": 0},  # a class without objects
        {"coffee mug": 90, "coffee machine": 2},
    ],
)
def test_different_names(counts: dict[str, int]) -> None:
    assert not list(similar_names(counts))
