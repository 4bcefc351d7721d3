"""Packing of values: any JSON value comes back, small and without decoding it."""

import json
import pickle

import numpy as np
import pytest

from hf_detr.data.packed_values import PackedValues

VALUES = ["ä.jpg", [[1.5, 2, 3]], {"size": [4, 5], "counts": "ab"}, None, [], True, 2**70]


def pack(values: list, kind: str) -> PackedValues:
    if kind == "json":
        return PackedValues.pack_json([json.dumps(value).encode() for value in values])
    return PackedValues.pack(values)


@pytest.mark.parametrize("kind", ["json", "marshal"])
def test_packed_values_are_unpacked_unchanged(kind: str):
    """File names and segmentations of any JSON type are preserved."""
    packed = pack(VALUES, kind)
    assert len(packed) == len(VALUES) and [packed[i] for i in range(len(VALUES))] == VALUES
    assert packed.tolist() == packed.as_json().tolist() == VALUES and packed.as_json().is_json
    assert len(pack([], kind)) == 0 and pack([], kind).tolist() == []


def test_packed_values_pickle_as_arrays():
    """Packed text is little larger than the text itself."""
    packed = PackedValues.pack(["0123456789"] * 1000)
    assert len(pickle.dumps(packed)) < 1000 * (10 + 5 + 8) + 1000
    assert pickle.loads(pickle.dumps(packed))[999] == "0123456789"


@pytest.mark.parametrize("kind", ["json", "marshal"])
@pytest.mark.parametrize("rows", [[3, 0, 3], [], range(7)])
def test_some_of_the_values(kind: str, rows: list[int]):
    """Rows can be repeated and in any order."""
    found = pack(VALUES, kind).take(np.array(rows, dtype=np.int64))
    assert found.tolist() == [VALUES[row] for row in rows]


@pytest.mark.parametrize("kinds", [("json", "json"), ("marshal", "json"), ("marshal",), ()])
def test_joined_values(kinds: tuple[str, ...]):
    """Values of different kinds can be joined, too, as of data sets of different readers."""
    joined = PackedValues.join([pack(VALUES[i:], kind) for i, kind in enumerate(kinds)])
    assert joined.tolist() == [value for i in range(len(kinds)) for value in VALUES[i:]]
