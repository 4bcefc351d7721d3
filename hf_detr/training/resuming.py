"""Checks that a training is resumed with the same options and data."""

from itertools import zip_longest
from typing import Any

from .options import PLAIN, TrainingOptions

NEWER = ("classes", "val_images")  # of the data; earlier versions didn't record them


def check_same_options(before: dict[str, Any], now: dict[str, Any]) -> None:
    """Check that the recorded options and data of a training to resume haven't changed.

    An option that didn't exist when the training began had its default, or its value in `PLAIN`.
    Data that weren't recorded then aren't compared.

    Raises:
        ValueError: if one has.
    """
    unknown = {name: now.get(name) for name in NEWER}
    before = {**TrainingOptions().recorded(), **PLAIN, **unknown, **before}
    changed = [
        _change(name, before.get(name), now[name]) for name in now if now[name] != before.get(name)
    ]
    if changed:
        raise ValueError(
            "Options or data differ from those of the training to resume: "
            f"{', '.join(changed)}. Use the old values, or another --output."
        )


def _change(name: str, before: Any, now: Any) -> str:
    """What an option was and is; of classes, which may be thousands, the first that differs."""
    if name == "classes":
        pairs = enumerate(zip_longest(before, now))
        label, (before, now) = next((label, pair) for label, pair in pairs if pair[0] != pair[1])
        name = f"class {label}"
    return f"{name} was {before!r}, is {now!r}"
