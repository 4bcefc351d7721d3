"""Columns of COCO files: what msgspec decodes equals what Python's json decodes."""

import gc
import json
import math
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from hf_detr.data import coco_columns, json_lists
from hf_detr.data.coco_columns import CocoColumns, read_coco_columns, read_json
from hf_detr.data.object_columns import COLUMNS

from ..some_data import CATEGORIES, entry

LARGE = [2**53 + 1, 2**63 - 1, 2**63, 2**64, -(2**63), -(2**63) - 1, 10**400]
INTEGERS = st.integers(-3, 9) | st.sampled_from(LARGE)
FLOATS = st.floats(0, 1e3) | st.sampled_from([-1.5, -0.0, 1.0, 5e-324, 1e308, math.nan, math.inf])
ANYTHING = st.none() | st.booleans() | INTEGERS | FLOATS | st.text("1é\ud800", max_size=2)
NUMBERS = st.integers(0, 500) | st.floats(0, 500)
BOXES = st.lists(NUMBERS, min_size=4, max_size=4)
GOOD = {
    "id": st.none() | st.integers(0, 10**6),
    "image_id": st.integers(1, 4),
    "category_id": st.sampled_from([3, 18]),
    "bbox": BOXES,
    "area": st.none() | NUMBERS,
    "iscrowd": st.none() | st.sampled_from([0, 1, True, False]),
    "segmentation": st.none() | st.just([[1, 2.5, 3, 4, 5, 6]]) | st.just({"counts": "}]é"}),
    "caption": st.text(max_size=3),
}
BAD = {**dict.fromkeys(GOOD, ANYTHING), "bbox": st.lists(ANYTHING, max_size=5) | ANYTHING}
NEEDED = ("image_id", "category_id", "bbox")
OBJECTS = st.fixed_dictionaries(
    {key: GOOD[key] for key in NEEDED},
    optional={key: GOOD[key] for key in GOOD if key not in NEEDED},
)
WRONG = st.tuples(OBJECTS, st.fixed_dictionaries({}, optional=BAD)).map(lambda p: {**p[0], **p[1]})
SIZES = st.integers(1, 900) | st.none() | ANYTHING
ORDERS = st.permutations(["images", "annotations", "categories", "licenses"])
FORMATS = st.sampled_from([{}, {"indent": 1}, {"separators": (",", ":"), "ensure_ascii": False}])


def images(sizes: list[Any]) -> list[dict[str, Any]]:
    return [
        {"id": i, "file_name": f"{i}é.jpg", "height": size, "width": 7}
        for i, size in enumerate(sizes, 1)
    ]


def described(columns: CocoColumns) -> dict[str, Any]:
    """Everything that was read, in a form that can be compared."""
    objects, packed = columns.objects, columns.objects.segmentations
    arrays = [columns.images.ids, columns.images.sizes_hw, *(getattr(objects, n) for n in COLUMNS)]
    return {
        "arrays": [(array.dtype, array.shape, array.tobytes()) for array in arrays],
        "names": columns.images.names,
        "categories": columns.categories,
        "segmentations": None if packed is None else repr(packed.tolist()),
        # By parts of the file, then by values.
        "problems": sorted(map(str, [*columns.problems, *objects.problems])),
    }


@settings(
    max_examples=40,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(
    good=st.lists(OBJECTS, max_size=15),
    wrong=st.lists(WRONG, max_size=2),
    sizes=st.lists(SIZES, min_size=4, max_size=6),
    order=ORDERS,
    written=FORMATS,
    masks=st.booleans(),
)
@example([], [{"image_id": 1, "category_id": 3, "bbox": [0, 0, 2**63, 1]}], [1] * 4, (), {}, True)
def test_both_ways_of_reading_are_equal(
    tmp_path: Path, good: list, wrong: list, sizes: list, order: list, written: dict, masks: bool
):
    """Right and wrong values of all kinds give the same columns and the same problems."""
    content = {"annotations": [*good, *wrong, *good], "images": images(sizes)}
    content |= {"categories": CATEGORIES, "licenses": [{"id": 1}, {}]}
    content = {key: content[key] for key in (order or content)}
    file = tmp_path / "some.json"
    file.write_text(json.dumps(content, **written), encoding="utf-8", errors="surrogatepass")
    expected = described(coco_columns._read_whole(file, masks))
    for block in (2**20, 500):
        with pytest.MonkeyPatch.context() as patched:
            patched.setattr(json_lists, "BLOCK", block)
            patched.setattr(json_lists, "LOOK_AHEAD", min(block, 200))
            try:
                assert described(coco_columns._read_parts(file, masks)) == expected
            except json_lists.CannotDivideError:
                text = repr(file.read_bytes().decode("utf-8", "surrogatepass"))
                assert block < 2**20 or any(t in text for t in ("NaN", "Infinity", "ud800"))


def write(folder: Path, **changes: Any) -> Path:
    content = {"images": images([5, 5]), "annotations": [entry(1), entry(2)]}
    folder.mkdir(exist_ok=True)
    file = folder / "some.json"
    file.write_text(json.dumps({**content, "categories": CATEGORIES, **changes}))
    return file


def test_a_wrong_value_only_affects_its_part(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """A large file with an error is still read in parts, and the message is today's."""
    entries = [entry(n) for n in range(200)]
    entries[150]["area"] = "big"
    file = write(tmp_path, annotations=entries)
    monkeypatch.setattr(json_lists, "BLOCK", 2000)
    monkeypatch.setattr(coco_columns, "_read_whole", None)
    decoded: list[int] = []
    loads = coco_columns.load_part
    monkeypatch.setattr(coco_columns, "load_part", lambda part: decoded.append(1) or loads(part))
    found = read_coco_columns(file, masks=False)
    assert len(found.objects) == 200 and found.objects.ids.tolist() == list(range(200))
    assert [p.text for p in found.objects.problems] == [
        "object 150 has area 'big'; expected a finite number >= 0"
    ]
    assert len(decoded) < 5  # the part, and the categories


@pytest.mark.parametrize("block", [300, 2**20])
def test_numbers_of_objects_and_annotations(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, block: int
):
    """Missing ids are indices of objects, messages have indices of annotations, in any part."""
    entries = [entry(None, image_id=1 + n % 3) for n in range(30)]
    monkeypatch.setattr(json_lists, "BLOCK", block)
    monkeypatch.setattr(json_lists, "LOOK_AHEAD", 200)
    found = read_coco_columns(write(tmp_path, annotations=entries), masks=False)
    assert found.objects.ids.tolist() == list(range(20))
    texts = [f"annotation {n} has the unknown image_id 3" for n in range(2, 30, 3)]
    assert [problem.text for problem in found.problems] == texts


def test_segmentations_are_kept_only_for_masks(tmp_path: Path):
    """They are most of the file, and aren't decoded before they are used."""
    file = write(tmp_path)
    assert read_coco_columns(file, masks=False).objects.segmentations is None
    kept = read_coco_columns(file, masks=True).objects.segmentations
    assert kept.is_json and kept[1] == entry(2)["segmentation"]


def test_whole_file_is_refused_with_its_reason(tmp_path: Path):
    """What can't be read in parts is read as a whole, with the message of Python's json."""
    file = write(tmp_path)
    file.write_text(file.read_text().replace('"area": 99.5', '"area": nan', 1))
    with pytest.raises(ValueError, match="is not a JSON file: .*line 1 column"):
        read_coco_columns(file, masks=False)
    with pytest.raises(ValueError, match="has no list of objects 'images'"):
        read_json(write(tmp_path, images=[1]))
    file.write_text(write(tmp_path).read_text().replace("99.5", "NaN"))
    found = read_coco_columns(file, masks=False)
    assert [p.kind for p in found.objects.problems] == ["wrong area"] * 2


@pytest.mark.parametrize("is_enabled", [True, False])
def test_garbage_collection_is_as_before(tmp_path: Path, is_enabled: bool):
    """It pauses while a file is read, also if that fails."""
    broken = write(tmp_path / "broken", images=[{"id": "a", "file_name": "1.png"}])
    try:
        gc.enable() if is_enabled else gc.disable()
        read_coco_columns(write(tmp_path), masks=False)
        assert gc.isenabled() == is_enabled
        with pytest.raises(ValueError, match="image 0 is"):
            read_coco_columns(broken, masks=False)
        assert gc.isenabled() == is_enabled
    finally:
        gc.enable()
