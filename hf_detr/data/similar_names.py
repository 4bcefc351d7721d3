"""Finds class names that are probably the same name, misspelled in some labels."""

from collections import defaultdict
from collections.abc import Iterator, Mapping
from itertools import combinations

SHORTEST = 5  # letters; shorter names often differ by one, as cat and car
RARE = 0.2  # a misspelled name has at most this share of the other's objects


def similar_names(counts: Mapping[str, int]) -> Iterator[tuple[str, str]]:
    """Yield (rare, frequent) names that differ by one letter, two swapped ones, or case and spaces.

    Names that differ by a digit are different on purpose.

    Args:
        counts: name -> number of objects; names without any are left out.
    """
    groups: dict[str, dict[str, None]] = defaultdict(dict)
    for name in filter(counts.get, counts):
        spelling = "".join(filter(str.isalnum, name.casefold()))
        groups[spelling][name] = None
        if len(spelling) >= SHORTEST:
            for at, letter in enumerate(spelling):
                if not letter.isdigit():
                    groups[spelling[:at] + spelling[at + 1 :]][name] = None
    pairs = {pair: None for names in groups.values() for pair in combinations(names, 2)}
    for one, other in pairs:
        rare, frequent = sorted((one, other), key=lambda name: counts[name])
        if counts[rare] <= RARE * counts[frequent]:
            yield rare, frequent
