"""Helpers for error messages."""

from collections.abc import Sequence
from typing import Any


def some_of(items: Sequence[Any], most: int = 5, separator: str = ", ") -> str:
    """Return the first `most` items as text, and the number of the others."""
    more = f" and {len(items) - most} more" if len(items) > most else ""
    return separator.join(map(str, items[:most])) + more
