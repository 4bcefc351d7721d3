"""Which of a data set's splits are training and validation data."""

import warnings
from collections.abc import Iterable, Mapping, Sequence

from .layouts import SPLITS

TRAINING = (SPLITS[0], "trainval")  # Pascal VOC's name, where there is no "train"
VALIDATION, TEST = SPLITS[1:-1], SPLITS[-1]


def checked_split(splits: Sequence[str] | None, split: str, data: object) -> str:
    """Return `split` as the data spell it, with capitals or without.

    Args:
        splits: names of the data's splits; None if they have none.
        split: the name that was asked for.
        data: their name, for messages.

    Raises:
        ValueError: if there is no such split.
    """
    if splits is None:
        raise ValueError(f"{data} has no splits, but is one; omit --split {split}.")
    found = _spelled(splits, [split])
    if not found:
        raise ValueError(f"{data} has no split {split!r}; its splits are {list(splits)}.")
    return found[0]


def _spelled(splits: Sequence[str] | None, names: Iterable[str]) -> list[str]:
    """Return the names that are splits, as they are spelled there."""
    spelled = {split.lower(): split for split in splits or ()}
    spelled |= {split: split for split in splits or ()}
    found = (spelled.get(name, spelled.get(name.lower())) for name in names)
    return [name for name in found if name is not None]


def training_split(splits: Sequence[str], data: object) -> str:
    """Return "train", or else "trainval".

    Raises:
        ValueError: if there is neither.
    """
    found = _spelled(splits, TRAINING)
    if not found:
        raise ValueError(
            f"{data} has no split {TRAINING[0]!r} or {TRAINING[1]!r}; its splits are "
            f"{list(splits)}. Give --split NAME."
        )
    return found[0]


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
    found = [name for name in _spelled(splits, (*VALIDATION, TEST)) if name != training]
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
    if split.lower() == TEST:
        text = f"{data} has no validation split; its split {split!r} is used for validation."
        warnings.warn(text, stacklevel=4)


def check_can_be_divided(splits: Sequence[str] | None, data: object, training: str) -> None:
    """Check that there is no validation split, if a part of the training data shall be one.

    Raises:
        ValueError: if there is one.
    """
    found = [name for name in _spelled(splits, VALIDATION) if name != training]
    if found:
        raise ValueError(
            f"{data} has the validation split {found[0]!r}; omit --val-fraction, which divides "
            "training data without one."
        )


def training_splits(
    splits: Sequence[str] | None, data: object, split: str | None, val_fraction: float | None
) -> tuple[str, str | None]:
    """Return the names of the training and of the validation split, None for a part of the former.

    Args:
        splits: names of the data's splits; None if they have none.
        data: their name, for messages.
        split: the training split that was asked for, by default that of `training_split`.
        val_fraction: part of the training images for validation, None for a split.

    Raises:
        ValueError: if there is no such split, or no validation data, or both a validation split and
            `val_fraction`.
    """
    if split:
        train = checked_split(splits, split, data)
    else:
        train = TRAINING[0] if splits is None else training_split(splits, data)
    if val_fraction is None:
        return train, validation_split(splits, data, train)
    check_can_be_divided(splits, data, train)
    return train, None


def evaluation_split(splits: Sequence[str] | None, data: object, split: str | None) -> str:
    """Return the split that was asked for, or else the validation split; "train" without splits.

    Raises:
        ValueError: if there is no such split.
    """
    if split:
        return checked_split(splits, split, data)
    return "train" if splits is None else validation_split(splits, data)


def all_splits(splits: Sequence[str], data: object, split: str | None) -> list[str]:
    """Return the split that was asked for, or else those of training and, if any, of validation.

    Raises:
        ValueError: if there is no such split.
    """
    if split:
        return [checked_split(splits, split, data)]
    return [training_split(splits, data), *_spelled(splits, (*VALIDATION, TEST))[:1]]


def other_splits(splits: Sequence[str] | None, names: Sequence[str]) -> list[str]:
    """Return the splits of training and validation that exist and aren't among `names`."""
    used = [*_spelled(splits, TRAINING)[:1], *_spelled(splits, (*VALIDATION, TEST))[:1]]
    return [name for name in used if name not in names]


def check_same_classes(train: Mapping[int, str], val: Mapping[int, str]) -> None:
    """Check that training and validation data have the same classes, label -> name.

    Raises:
        ValueError: if they differ.
    """
    if train != val:
        raise ValueError(
            f"the classes of train and val differ: {train} and {val}; expected the same names, "
            "with the same numbers, in both."
        )
