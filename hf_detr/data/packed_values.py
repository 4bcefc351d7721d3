"""Lists of plain Python values in flat arrays, which processes can share."""

import json
import marshal
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np

BLOCK = 4096  # values that are copied at once: many views would slow down the garbage collector


@dataclass(frozen=True)
class PackedValues:
    """A read-only list of plain Python values (numbers, text, lists, dicts) in two flat arrays."""

    data: np.ndarray  # (bytes,) uint8
    ends: np.ndarray  # (n + 1,) int64
    is_json: bool = False  # the bytes of a value are JSON, as in the data set, else marshal's

    @classmethod
    def pack(cls, values: Iterable[Any]) -> "PackedValues":
        """Pack values of types that `marshal` supports."""
        # marshal is ten times faster than JSON, and only this program and its workers read the
        # bytes. Version 2 has no references, so equal values have equal bytes.
        return cls._of_bytes([marshal.dumps(value, 2) for value in values], is_json=False)

    @classmethod
    def pack_json(cls, texts: Sequence[bytes]) -> "PackedValues":
        """Pack values by their JSON texts, without decoding them."""
        return cls._of_bytes(texts, is_json=True)

    @classmethod
    def _of_bytes(cls, packed: Sequence[bytes], is_json: bool) -> "PackedValues":
        ends = np.cumsum([0, *map(len, packed)], dtype=np.int64)
        return cls(np.frombuffer(b"".join(packed), dtype=np.uint8), ends, is_json)

    @classmethod
    def join(cls, parts: Sequence["PackedValues"]) -> "PackedValues":
        """Return the values of all parts."""
        if len({part.is_json for part in parts}) > 1:
            return cls.pack(value for part in parts for value in part)
        lengths = [np.zeros(1, dtype=np.int64), *(np.diff(part.ends) for part in parts)]
        data = np.concatenate([np.zeros(0, dtype=np.uint8), *(part.data for part in parts)])
        is_json = any(part.is_json for part in parts)
        return cls(data, np.cumsum(np.concatenate(lengths)), is_json)

    def as_json(self) -> "PackedValues":
        """Return the values as JSON, which is safe to read from files."""
        if self.is_json:
            return self
        encode = json.JSONEncoder().encode  # faster than `json.dumps`
        return self.pack_json([encode(value).encode() for value in self.tolist()])

    def take(self, rows: np.ndarray) -> "PackedValues":
        """Return the values of some rows, without decoding them."""
        view, lengths = memoryview(self.data), np.diff(self.ends)[rows]
        data, starts, filled = np.empty(lengths.sum(), dtype=np.uint8), self.ends[rows], 0
        for block in range(0, len(rows), BLOCK):
            some = slice(block, block + BLOCK)
            pairs = zip(starts[some].tolist(), lengths[some].tolist(), strict=True)
            text = b"".join([view[start : start + length] for start, length in pairs])
            data[filled : filled + len(text)] = np.frombuffer(text, dtype=np.uint8)
            filled += len(text)
        return PackedValues(data, np.concatenate([[0], np.cumsum(lengths)]), self.is_json)

    def __len__(self) -> int:
        return len(self.ends) - 1

    def __getitem__(self, index: int) -> Any:
        packed = self.data[self.ends[index] : self.ends[index + 1]]
        return json.loads(packed.tobytes()) if self.is_json else marshal.loads(packed)

    def tolist(self) -> list[Any]:
        """Return all values."""
        view, load = memoryview(self.data), marshal.loads
        if self.is_json:
            return [self[index] for index in range(len(self))]
        return [load(view[start:end]) for start, end in pairwise(self.ends.tolist())]
