"""Finds class names that are probably the same name, misspelled in some labels."""

import re
import unicodedata
from collections import Counter
from collections.abc import Iterator, Mapping
from itertools import combinations
from os.path import commonprefix

MOST = 100  # classes; among more, some names are alike by chance, as horse and house
SHORTEST = 4  # letters of the words that differ; shorter ones are often different on purpose
RARE = 0.1  # a misspelled name has at most this share of the other's objects


def similar_names(counts: Mapping[str, int]) -> Iterator[tuple[str, str]]:
    """Yield (rare, frequent) names that differ by one letter, two swapped ones, or case and spaces.

    Names that differ by a digit are different on purpose, and so are several that differ by one
    letter from each other.

    Args:
        counts: name -> number of objects; names without any are left out.
    """
    names = list(filter(counts.get, counts))
    if len(names) > MOST:
        return
    pairs = [pair for pair in combinations(names, 2) if _are_similar(*map(_words, pair))]
    partners = Counter(name for pair in pairs for name in pair)
    for pair in pairs:
        rare, frequent = sorted(pair, key=lambda name: counts[name])
        if partners[rare] == 1 and counts[rare] <= RARE * counts[frequent]:
            yield rare, frequent


def _words(name: str) -> list[str]:
    name = unicodedata.normalize("NFC", name).casefold()
    return re.sub(r"(?<=\w)[-_]+(?=\w)|_", " ", name).split()


def _are_similar(ones: list[str], others: list[str]) -> bool:
    one, other = "".join(ones), "".join(others)
    if one == other:
        return len(one) > 1  # not "A" and "a"
    if len(ones) == len(others):
        differing = [pair for pair in zip(ones, others, strict=True) if pair[0] != pair[1]]
        if len(differing) > 1:
            return False
        one, other = differing[0]
    return min(len(one), len(other)) >= SHORTEST and _differ_by_one_edit(one, other)


def _differ_by_one_edit(one: str, other: str) -> bool:
    start = len(commonprefix([one, other]))
    one, other = one[start:][::-1], other[start:][::-1]
    end = len(commonprefix([one, other]))
    one, other = one[end:], other[end:]
    if any(map(str.isdigit, one + other)):
        return False
    return max(len(one), len(other)) <= 1 or (len(one) == 2 and one == other[::-1])
