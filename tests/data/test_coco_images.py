"""Images of COCO files: ids, names and sizes, decoded by msgspec or by Python's json."""

import json
from typing import Any

import msgspec
import numpy as np
import pytest

from hf_detr.data import coco_images
from hf_detr.data.coco_images import CocoImages, ImageIndex

GOOD = {"id": 1, "file_name": "a.jpg", "height": 40, "width": 50}


@pytest.mark.parametrize(
    ("change", "is_fast", "name", "size_hw"),
    [
        ({}, True, "a.jpg", [40, 50]),
        ({"height": None}, True, "a.jpg", [0, 50]),
        ({"height": -5, "width": 2**63 - 1}, True, "a.jpg", [-5, 2**63 - 1]),
        (
            {"file_name": None, "coco_url": "//x/val2017/b.jpg"},
            True,
            "val2017/b.jpg",
            [40, 50],
        ),
        ({"height": "40"}, False, "a.jpg", [0, 50]),
        ({"height": 40.0, "width": True}, False, "a.jpg", [0, 0]),
        ({"height": 10**30}, False, "a.jpg", [0, 50]),
        ({"coco_url": 7}, False, "a.jpg", [40, 50]),
        ({"file_name": "\ud800"}, False, "\ud800", [40, 50]),
    ],
)
def test_names_and_sizes(
    monkeypatch: pytest.MonkeyPatch,
    change: dict[str, Any],
    is_fast: bool,
    name: str,
    size_hw: list[int],
):
    """Invalid sizes are 0 and are read from the images later; both ways have the same result."""
    records = [GOOD, {**GOOD, **change, "id": 2}]
    if is_fast:
        monkeypatch.setattr(coco_images, "load_part", None)
    part = json.dumps(records).encode()
    try:
        decoded = coco_images.IMAGE_DECODER.decode(part)
    except msgspec.MsgspecError:
        decoded = None
    for found in (
        CocoImages.of_part("f", part, decoded, 0),
        CocoImages.of_records("f", records),
    ):
        assert found.ids.tolist() == [1, 2] and found.names == ["a.jpg", name]
        assert found.sizes_hw.tolist() == [[40, 50], size_hw]


@pytest.mark.parametrize("change", [{"id": "a"}, {"id": 2**63}, {"id": True}, {"file_name": None}])
def test_wrong_images_are_named_by_their_number(change: dict[str, Any]):
    """The number is that in the file, not in its part."""
    part = json.dumps([GOOD, {**GOOD, **change}]).encode()
    with pytest.raises(ValueError, match="f: image 8 is .*; expected an integer 'id' and"):
        CocoImages.of_part("f", part, None, start=7)


def test_repeated_ids_are_found_in_all_parts():
    """Objects couldn't be assigned."""
    parts = [CocoImages.of_records("f", [{**GOOD, "id": i} for i in ids]) for ids in ([9, 4], [4])]
    with pytest.raises(ValueError, match="f: two images have the id 4; ids must be unique"):
        CocoImages.join("f", parts)


def test_image_ids_anywhere_in_64_bits():
    """Sparse ids are found as well as consecutive ones."""
    for ids in ([5, 3, 4], [2**63 - 1, -(2**63), 0], [7], []):
        index = ImageIndex(np.array(ids, dtype=np.int64))
        wanted = np.array([*ids, 6, 2**63 - 2, -(2**63) + 1], dtype=np.int64)
        assert index.find(wanted).tolist() == [*range(len(ids)), -1, -1, -1]
