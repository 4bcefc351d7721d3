"""Which of a data set's splits are training and validation data."""

import warnings
from collections.abc import Mapping, Sequence

from .layouts import SPLITS

VALIDATION, TEST = SPLITS[1:-1], SPLITS[-1]


def checked_split(splits: Sequence[str] | None, split: str, data: object) -> str:
    """Return `split` if it is one of the data's.

    Args:
        splits: names of the data's splits; None if they have none.
        split: the name that was asked for.
        data: their name, for messages.

    Raises:
        ValueError: if there is no such split.
    """
    if splits is None:
        raise ValueError(f"{data} has no splits, but is one; omit --split {split}.")
    if split not in splits:
        raise ValueError(f"{data} has no split {split!r}; its splits are {list(splits)}.")
    return split


def validation_split(
    splits: Sequence[str] | None, data: object, training: str | None = None
) -> str:
    """Return the first of val, valid, validation and test.

    Args:
        splits: names of the data's splits; None if they have none.
        data: their name, for messages.
        training: the split of the training data, which isn't used for validation.

    Raises:
        ValueError: if there is none.
    """
    found = [name for name in (*VALIDATION, TEST) if name in (splits or ()) and name != training]
    if not found and splits is None:
        raise ValueError(
            f"{data} has no splits; give --val-fraction 0.2 to divide its images into training and "
            "validation data."
        )
    if not found:
        fix = "--split NAME" if training is None else "--val-fraction 0.2 to divide its images"
        raise ValueError(
            f"{data} has no validation split, one of {', '.join(VALIDATION)} and {TEST}; its "
            f"splits are {list(splits)}. Give {fix}."
        )
    return found[0]


def warn_of_test_split(split: str, data: object) -> None:
    """Warn if the split for validation is `test`, which nobody named."""
    if split == TEST:
        text = f"{data} has no validation split; its split 'test' is used for validation."
        warnings.warn(text, stacklevel=4)


def check_can_be_divided(splits: Sequence[str] | None, data: object, training: str) -> None:
    """Check that there is no validation split, if a part of the training data shall be one.

    Raises:
        ValueError: if there is one.
    """
    found = next((name for name in VALIDATION if name in (splits or ()) and name != training), None)
    if found:
        raise ValueError(
            f"{data} has the validation split {found!r}; omit --val-fraction, which divides "
            "training data without one."
        )


def check_same_classes(train: Mapping[int, str], val: Mapping[int, str]) -> None:
    """Check that training and validation data have the same classes, label -> name.

    Raises:
        ValueError: if they differ.
    """
    if train != val:
        raise ValueError(
            f"the classes of train and val differ: {train} and {val}; expected the same categories "
            "in both files."
        )
