"""Helpers for error messages and warnings."""

import difflib
import warnings
from collections.abc import Iterable, Sequence
from typing import Any


def some_of(items: Sequence[Any], most: int = 5, separator: str = ", ") -> str:
    """Return the first `most` items as text, and the number of the others."""
    more = f" and {len(items) - most} more" if len(items) > most else ""
    return separator.join(map(str, items[:most])) + more


def aligned(rows: Sequence[Sequence[str]]) -> str:
    """Align the columns of a table, the first one left and the others right.

    A row of one text, as of a title, is written beside the columns.
    """
    full = [row for row in rows if len(row) > 1]
    widths = [max(map(len, column)) for column in zip(*full, strict=True)]
    lines = []
    for title, *values in rows:
        cells = [value.rjust(width) for value, width in zip(values, widths[1:], strict=False)]
        lines.append("  ".join([title.ljust(widths[0]), *cells]).rstrip())
    return "\n".join(lines)


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
