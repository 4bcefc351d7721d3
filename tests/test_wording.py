"""Helpers for error messages and warnings."""

import pytest

from hf_detr.wording import aligned, some_of, warn_about_misspelt


def test_some_of() -> None:
    """Items beyond the limit are counted."""
    assert some_of([]) == ""
    assert some_of([1, 2, 3, 4, 5]) == "1, 2, 3, 4, 5"
    assert some_of(list("abcdefg")) == "a, b, c, d, e and 2 more"
    assert some_of(["a", "b", "c"], most=2, separator="; ") == "a; b and 1 more"


def test_aligned() -> None:
    """Numbers are right-aligned, and a long title beside the columns doesn't widen them."""
    rows = [["", "AP"], ["boxes", "1.0"], ["a title without values"], ["b", "12.5"]]
    expected = ["         AP", "boxes   1.0", "a title without values", "b      12.5"]
    assert aligned(rows).splitlines() == expected


def test_warn_about_misspelt() -> None:
    """Only a name that is close to another field is named; equal and unknown ones are not."""
    warn_about_misspelt(["num_queries", "purpose"], ["num_queries", "d_model"], "A thing")
    with pytest.warns(UserWarning, match="A thing has no field 'num_querys'.*mean 'num_queries'"):
        warn_about_misspelt(["num_querys"], ["num_queries", "d_model"], "A thing")
