"""What error messages have in common."""

from collections.abc import Sequence
from typing import Any


def some_of(items: Sequence[Any], most: int = 5, separator: str = ", ") -> str:
    """The first items in words, and how many more there are."""
    more = f" and {len(items) - most} more" if len(items) > most else ""
    return separator.join(map(str, items[:most])) + more
