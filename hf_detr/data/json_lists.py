"""Read a large JSON file of lists in parts, with little memory."""

import json
import os
import re
from collections.abc import Iterator, Mapping
from typing import Any, BinaryIO

import msgspec

BLOCK = 2**23  # bytes that are read at once; parts are shorter than two blocks
LOOK_AHEAD = 2**16  # bytes for white space and a name
OPEN, CLOSE = re.compile(rb"[ \t\r\n]*\{[ \t\r\n]*"), re.compile(rb"[ \t\r\n]*\}[ \t\r\n]*")
NAME = re.compile(rb'"([^"\\]*)"[ \t\r\n]*:[ \t\r\n]*')
NEXT_NAME = re.compile(rb'[ \t\r\n]*,[ \t\r\n]*(?=")')
OPEN_LIST = re.compile(rb"\[[ \t\r\n]*(?=[]{])")
CLOSE_LIST = re.compile(rb"[ \t\r\n]*\]")
BETWEEN = re.compile(rb"[ \t\r\n]*,[ \t\r\n]*(?=\{)")
CUT = re.compile(rb"\}(?=[ \t\r\n]*,[ \t\r\n]*\{)")
CUT_AT_CLOSE = re.compile(rb"\}(?=[ \t\r\n]*\][ \t\r\n]*[,}])")
TOKEN = re.compile(rb'"(?:[^"\\]|\\.)*"|[][{}"]', re.DOTALL)


class CannotDivideError(ValueError):
    """A JSON file is invalid or has another structure than `read_lists` reads."""


def read_lists(
    file: str | os.PathLike[str], decoders: Mapping[str, msgspec.json.Decoder[list[Any]]]
) -> Iterator[tuple[str, bytes, list[Any] | None]]:
    """Yield the lists of objects in a JSON object in parts, in the order of the file.

    Other values are skipped.

    Args:
        file: the JSON file.
        decoders: of the objects of some lists, by name.

    Yields:
        The name of a list; the JSON text `[...]` of some of its objects, `[]` of an empty list; and
        these objects as the list's decoder returns them, None if it can't.

    Raises:
        CannotDivideError: if the file isn't a JSON object in UTF-8, or has a name twice, a name
            with escapes, a list of objects and other values, or an object longer than a block.
    """
    try:
        yield from _read_lists(file, decoders)
    except (ValueError, RecursionError) as error:
        raise CannotDivideError(f"{file} can't be read in parts: {error}") from error


def load_part(part: bytes) -> list[dict[str, Any]]:
    """Decode a part by Python's `json`.

    Raises:
        CannotDivideError: if that isn't possible, for example because a number is too long.
    """
    try:
        return json.loads(part)
    except (ValueError, RecursionError) as error:
        raise CannotDivideError(str(error)) from error


def _read_lists(
    file: str | os.PathLike[str], decoders: Mapping[str, msgspec.json.Decoder[list[Any]]]
) -> Iterator[tuple[str, bytes, list[Any] | None]]:
    with open(file, "rb") as opened:
        text = _Text(opened)
        text.take(OPEN)
        names: set[bytes] = set()
        while not text.skip(CLOSE):
            if names:
                text.take(NEXT_NAME)
            name = text.take(NAME)[1]
            if name in names:
                raise ValueError(f"the name {name!r} is repeated")
            names.add(name)
            if text.skip(OPEN_LIST):
                key = name.decode()
                for part, decoded in text.parts(decoders.get(key, _objects)):
                    yield key, part, decoded
                    del part, decoded  # before the next part is decoded
            else:
                text.skip_value()
        if text.is_left():
            raise ValueError("there is text after the object")


class _Text:
    """The rest of a file, of which some is in memory."""

    def __init__(self, opened: BinaryIO) -> None:
        self._opened, self._data, self._start = opened, b"", 0

    def _need(self, number: int) -> None:
        """Read so much that `number` bytes are in memory, or all."""
        if len(self._data) - self._start < number:
            new = self._opened.read(max(number, BLOCK))
            self._data, self._start = self._data[self._start :] + new, 0

    def is_left(self) -> bool:
        self._need(1)
        return self._start < len(self._data)

    def skip(self, pattern: re.Pattern[bytes]) -> re.Match[bytes] | None:
        """Skip a pattern if it is next."""
        self._need(LOOK_AHEAD)
        match = pattern.match(self._data, self._start)
        if match:
            self._start = match.end()
        return match

    def take(self, pattern: re.Pattern[bytes]) -> re.Match[bytes]:
        """Skip a pattern that has to be next."""
        match = self.skip(pattern)
        if match is None:
            raise ValueError(f"unexpected text {self._data[self._start :][:20]!r}")
        return match

    def skip_value(self) -> None:
        self._need(BLOCK)
        # As Latin-1 a character is a byte, and the syntax is the same.
        rest = str(self._data[self._start :], "latin-1")
        self._start += json.JSONDecoder().raw_decode(rest)[1]

    def parts(
        self, decoder: msgspec.json.Decoder[list[Any]]
    ) -> Iterator[tuple[bytes, list[Any] | None]]:
        """Yield the text of a list's objects in parts, and what `decoder` returns; and skip it."""
        if self.skip(CLOSE_LIST):
            yield b"[]", []
            return
        while True:
            self._need(BLOCK)
            end, part, decoded = self._next_part(decoder)
            if not part.isascii():
                part.decode()  # msgspec doesn't check the encoding of what it skips
            yield part, decoded
            del decoded  # before the next part is decoded
            self._start = end
            if self.skip(CLOSE_LIST):
                return
            self.take(BETWEEN)

    def _next_part(
        self, decoder: msgspec.json.Decoder[list[Any]]
    ) -> tuple[int, bytes, list[Any] | None]:
        """Return the end, the text and `decoder`'s result of complete objects of a list."""
        for cut in self._cuts():
            part = b"[" + self._data[self._start : cut.end()] + b"]"
            # A text that begins with an object of the list, but doesn't end with one, has brackets
            # or a string without end, which no decoder accepts.
            decoded = _decoded(part, decoder)
            if decoded is not None or _decoded(part, _objects) is not None:
                return cut.end(), part, decoded
        end = self._complete_objects()
        part = b"[" + self._data[self._start : end] + b"]"
        if _decoded(part, _objects) is None:
            raise ValueError("there are other values than objects in a list of objects")
        return end, part, _decoded(part, decoder)

    def _cuts(self) -> Iterator[re.Match[bytes]]:
        """Yield where an object seems to end: near the end of the data, and at that of the list."""
        last = max(self._start, len(self._data) - LOOK_AHEAD)
        yield from list(CUT.finditer(self._data, last))[-1:]
        yield from filter(None, [CUT_AT_CLOSE.search(self._data, self._start)])

    def _complete_objects(self) -> int:
        """Return the end of the list's last object that is complete in memory."""
        depth, end = 0, None
        for token in TOKEN.finditer(self._data, self._start):
            symbol = token[0]
            if symbol in (b"{", b"["):
                depth += 1
            elif symbol in (b"}", b"]"):
                depth -= 1
                if depth < 0:
                    break
                end = token.end() if depth == 0 else end
            elif symbol == b'"':
                break  # a string whose end isn't in memory
        if end is None:
            raise ValueError("an object is too long or has no end")
        return end


class _AnyObject(msgspec.Struct, gc=False):
    pass


_objects = msgspec.json.Decoder(list[_AnyObject])


def _decoded(part: bytes, decoder: msgspec.json.Decoder[list[Any]]) -> list[Any] | None:
    try:
        return decoder.decode(part)
    except msgspec.MsgspecError:
        return None
