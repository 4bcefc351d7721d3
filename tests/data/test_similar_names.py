"""Misspelled classes are found, and classes that only look alike aren't."""

import pytest

from hf_detr.data.similar_names import MOST, similar_names


@pytest.mark.parametrize(
    "name",
    [
        *("cofee mug", "cofffee mug", "cofefe mug", "coffea mug"),
        *("coffee  mug", "Coffee_Mug", "coffee-mug", "coffeemug"),
    ],
)
def test_misspelled_names(name: str) -> None:
    """A letter is missing, added, swapped or another one, or case and spaces differ."""
    assert list(similar_names({"coffee mug": 25, name: 2, "spoon": 9})) == [(name, "coffee mug")]


def test_two_misspellings_of_one_name() -> None:
    """Each is reported with the name that it should be."""
    counts = {"coffee mug": 90, "cofee mug": 1, "coffeee mug": 2}
    names = [(name, "coffee mug") for name in ("cofee mug", "coffeee mug")]
    assert list(similar_names(counts)) == names


@pytest.mark.parametrize(
    "counts",
    [
        {"cat": 90, "car": 2},  # short
        {"player 1": 90, "player 2": 2, "player 12": 1},  # numbered
        {"stage I": 90, "stage II": 2, "stage III": 1, "stage IV": 1},
        {"type A": 90, "type B": 2},
        {"A": 90, "a": 2},
        {"C++": 90, "C#": 2, "R+": 90, "R-": 2, "gram +": 90, "gram -": 2},
        {"NPN transistor": 90, "PNP transistor": 2},
        {"红色信号灯": 90, "绿色信号灯": 2, "黄色信号灯": 1},  # three that differ by one letter
        {"truck": 90, "truce": 40},  # frequent both
        {"spoon": 90, "spool": 0},  # a class without objects
        {"coffee mug": 90, "coffee machine": 2},
        {"oyster": 90, "poster": 2},  # two letters differ
        {"house": 90, "horse": 2, **{f"class {i}": 1 for i in range(MOST)}},  # many classes
    ],
)
def test_different_names(counts: dict[str, int]) -> None:
    assert not list(similar_names(counts))
