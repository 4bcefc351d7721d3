"""Helpers for error messages."""

from hf_detr.wording import some_of


def test_some_of() -> None:
    """Items beyond the limit are counted."""
    assert some_of([]) == ""
    assert some_of([1, 2, 3, 4, 5]) == "1, 2, 3, 4, 5"
    assert some_of(list("abcdefg")) == "a, b, c, d, e and 2 more"
    assert some_of(["a", "b", "c"], most=2, separator="; ") == "a; b and 1 more"
