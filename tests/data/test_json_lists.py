"""Reading of lists in parts: what is divided, and what isn't."""

import json
import weakref
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from hf_detr.data import json_lists
from hf_detr.data.json_lists import CannotDivideError, read_lists

TEXT = st.text(st.sampled_from('a}]{[,":\\\\ \né'), max_size=6)
NUMBERS = st.integers() | st.floats(allow_nan=False, allow_infinity=False)
VALUES = st.recursive(
    st.none() | st.booleans() | NUMBERS | TEXT,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXT, inner, max_size=3),
    max_leaves=6,
)
OBJECTS = st.lists(st.dictionaries(TEXT, VALUES, max_size=3), max_size=12)
FORMATS = st.sampled_from(
    [{}, {"indent": 1}, {"separators": (",", ":")}, {"ensure_ascii": False, "indent": "\t"}]
)


def read(file: Path) -> dict[str, list]:
    """Return the lists that `read_lists` reads."""
    found: dict[str, list] = {}
    for name, part, _ in read_lists(file, {}):
        found.setdefault(name, []).extend(json.loads(part))
    return found


@pytest.fixture
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Blocks of a few objects."""
    monkeypatch.setattr(json_lists, "BLOCK", 400)
    monkeypatch.setattr(json_lists, "LOOK_AHEAD", 100)


@settings(
    max_examples=40,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(lists=st.dictionaries(st.sampled_from("abc"), OBJECTS), other=VALUES, written=FORMATS)
def test_parts_are_the_whole(
    tmp_path: Path, small_blocks: None, lists: dict[str, list], other: Any, written: dict[str, Any]
):
    """Brackets in text, nested lists of objects and white space don't move the borders."""
    file = tmp_path / "some.json"
    content = dict(list(lists.items())[:1], other=other, **dict(list(lists.items())[1:]))
    file.write_text(json.dumps(content, **written), encoding="utf-8")
    is_mixed = isinstance(other, list) and len({isinstance(value, dict) for value in other}) > 1
    expected = dict(lists)
    if isinstance(other, list) and all(isinstance(value, dict) for value in other):
        expected["other"] = other
    try:
        assert read(file) == expected
    except CannotDivideError:  # other values than objects, or more bytes than a block
        values = [other, *(value for found in lists.values() for value in found)]
        assert is_mixed or max(len(json.dumps(value, **written)) for value in values) > 90
    else:
        assert not is_mixed or not isinstance(other[0], dict)


def test_a_list_of_many_blocks(tmp_path: Path, small_blocks: None):
    """No object is lost or read twice, and parts are short."""
    values = [{"n": n, "s": "}, {" * (n % 3), "o": [{"x": 1}, {"y": []}]} for n in range(300)]
    file = tmp_path / "some.json"
    file.write_text(json.dumps({"info": {"a": [1]}, "values": values, "empty": []}))
    parts = [part for name, part, _ in read_lists(file, {}) if name == "values"]
    assert len(parts) > 30 and max(map(len, parts)) <= 802
    assert [value for part in parts for value in json.loads(part)] == values
    assert read(file)["empty"] == []


def test_decoded_by_the_decoder_of_the_list(tmp_path: Path, small_blocks: None):
    """A part with a value of another type is complete, but isn't decoded."""
    values = [{"n": n, "s": "}, {" * (n % 3)} for n in range(300)]
    values[150]["n"] = "150"
    file = tmp_path / "some.json"
    file.write_text(json.dumps({"values": values, "others": values}))
    kind = msgspec.defstruct("Kind", [("n", int)])
    found = list(read_lists(file, {"values": msgspec.json.Decoder(list[kind])}))
    assert [value for _, part, _ in found for value in json.loads(part)] == 2 * values
    decoded = [(json.loads(part), objects) for name, part, objects in found if name == "values"]
    failed = [part for part, objects in decoded if objects is None]
    assert len(failed) == 1 and values[150] in failed[0]
    for part, objects in decoded:
        assert objects is None or [one.n for one in objects] == [value["n"] for value in part]


def test_one_part_in_memory(tmp_path: Path, small_blocks: None):
    """Protects memory: the objects of a part are freed before the next part is decoded."""

    class Objects(list):
        """A list that weak references can refer to."""

    class Decoder:
        decoded: list[weakref.ref] = []

        def decode(self, part: bytes) -> Objects:
            assert not any(reference() for reference in self.decoded)
            objects = Objects(json.loads(part))
            self.decoded.append(weakref.ref(objects))
            return objects

    file = tmp_path / "some.json"
    file.write_text(json.dumps({"values": [{"n": n} for n in range(300)]}))
    for _, _, objects in read_lists(file, {"values": Decoder()}):
        assert objects
        del objects
    assert len(Decoder.decoded) > 5


@pytest.mark.parametrize(
    "text",
    [
        *("", "[]", "{", '{"a"}', '{"a": [', '{"a": [{}', '{"a": [{}], }', '{"a": [{}]} 1', "{}{}"),
        *('{"a": [{},]}', '{"a": [{}, 1]}', '{"a": [{}],, "b": []}', '{"a": [{"b": NaN}]}'),
        *(
            '{"a": [], "a": []}',
            '{"a" []}',
            '{"a": [{"b": tru}]}',
            '{"a": [{"b": "x}]}',
            '{,"a": 1}',
        ),
        *('{"a": ' + "[" * 100_000, '{"a": [' + '{"a":' * 100_000),
    ],
)
def test_what_cannot_be_divided_is_an_error(tmp_path: Path, text: str):
    """Invalid files aren't read in part."""
    file = tmp_path / "some.json"
    file.write_text(text)
    with pytest.raises(CannotDivideError):
        read(file)


def test_invalid_text_in_skipped_values(tmp_path: Path):
    """The encoding of all objects is checked."""
    file = tmp_path / "some.json"
    file.write_bytes(b'{"a": [{"b": "\xff"}]}')
    with pytest.raises(CannotDivideError, match="utf-8"):
        read(file)
