"""Helpers for error messages and warnings."""

import difflib
import warnings
from collections.abc import Iterable, Sequence
from typing import Any


def some_of(items: Sequence[Any], most: int = 5, separator: str = ", ") -> str:
    """Return the first `most` items as text, and the number of the others."""
    more = f" and {len(items) - most} more" if len(items) > most else ""
    return separator.join(map(str, items[:most])) + more


def warn_about_misspelt(
    names: Iterable[str], fields: Sequence[str], owner: str, stacklevel: int = 2
) -> None:
    """Warn about names that are similar to one of `fields`, where `owner` accepts any name."""
    for name in names:
        close = difflib.get_close_matches(name, fields, n=1, cutoff=0.85)
        if close and name != close[0]:
            warnings.warn(
                f"{owner} has no field {name!r}, so it has no effect; did you mean {close[0]!r}?",
                stacklevel=stacklevel,
            )
