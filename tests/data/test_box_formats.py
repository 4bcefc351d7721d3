"""Box formats: conversion, and detection of a wrongly declared format."""

import numpy as np
import pytest

from hf_detr.data.box_formats import (
    BOX_FORMATS,
    box_format_suspicion,
    boxes_to_coco_xywh,
    find_box_format,
    images_that_fit_turned,
)

IMAGE_HW = np.array([[40, 50]])


def random_boxes(count: int = 500) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """The same boxes in many formats, and the sizes of their images."""
    random = np.random.default_rng(0)
    image_hw = random.integers(300, 700, (count, 2))
    wh = image_hw[:, ::-1]
    corners = np.sort(random.uniform(0, 1, (count, 2, 2)), axis=1) * wh[:, None]
    low, high = corners[:, 0], corners[:, 1]
    boxes = {
        "coco_xywh": np.hstack([low, high - low]),
        "xyxy": np.hstack([low, high]),
        "cxcywh_normalized": np.hstack([(low + high) / 2 / wh, (high - low) / wh]),
        "cxcywh": np.hstack([(low + high) / 2, high - low]),
        "xyxy_normalized": np.hstack([low / wh, high / wh]),
        "coco_xywh_normalized": np.hstack([low / wh, (high - low) / wh]),
    }
    return boxes, image_hw


@pytest.mark.parametrize(
    ("box_format", "box"),
    [
        ("coco_xywh", [10, 5, 20, 8]),
        ("xyxy", [10, 5, 30, 13]),
        ("cxcywh_normalized", [20 / 50, 9 / 40, 20 / 50, 8 / 40]),
    ],
)
def test_every_format_is_converted_to_coco(box_format: str, box: list[float]):
    """The result is (left, top, width, height) in pixels, as computed by hand."""
    found = boxes_to_coco_xywh(np.array([box]), box_format, IMAGE_HW)
    np.testing.assert_allclose(found, [[10, 5, 20, 8]], rtol=1e-12)


def test_unknown_format_raises_with_the_known_ones():
    """Formats are never guessed."""
    with pytest.raises(
        ValueError, match="'yolo'; expected 'coco_xywh' .*'xyxy'.*'cxcywh_normalized'"
    ):
        boxes_to_coco_xywh(np.zeros((1, 4)), "yolo", IMAGE_HW)


@pytest.mark.parametrize("said", BOX_FORMATS)
@pytest.mark.parametrize("true", random_boxes()[0])
def test_only_a_wrong_format_is_suspected(said: str, true: str):
    """A wrong box format, the most common error, is detected for all pairs of formats."""
    boxes, image_hw = random_boxes()
    suspicion = box_format_suspicion(boxes[true], said, image_hw)
    assert (suspicion is None) == (said == true)
    if said != true:
        assert f"box_format is {said!r}" in suspicion and "of 500 boxes" in suspicion


@pytest.mark.parametrize(("true", "said"), [("xyxy", "coco_xywh"), ("coco_xywh", "xyxy")])
def test_suspicion_names_the_format_that_fits(true: str, said: str):
    """The message says which format to pass."""
    boxes, image_hw = random_boxes()
    assert f"pass box_format='{true}'" in box_format_suspicion(boxes[true], said, image_hw)


@pytest.mark.parametrize("said", BOX_FORMATS)
def test_no_other_format_is_advised_where_it_is_fixed(said: str):
    """Pixels have to be divided, and other boxes converted, where no format can be passed."""
    boxes, image_hw = random_boxes()
    for true in set(boxes) - {said}:
        suspicion = box_format_suspicion(boxes[true], said, image_hw, is_fixed=True)
        are_pixels = said.endswith("_normalized") and not true.endswith("_normalized")
        assert ("look like pixels; divide" if are_pixels else "; convert the") in suspicion
        assert "pass box_format" not in suspicion


def test_a_few_boxes_beyond_the_border_are_not_suspicious():
    """Objects that extend beyond the image are common in real data."""
    boxes, image_hw = random_boxes()
    boxes["coco_xywh"][:50, 2:] += 400
    assert box_format_suspicion(boxes["coco_xywh"], "coco_xywh", image_hw) is None
    assert box_format_suspicion(np.array([[30.0, 30, 40, 40]]), "coco_xywh", IMAGE_HW) is None


def test_no_boxes_nan_and_unknown_sizes_are_not_suspicious():
    """Empty data sets and other problems are reported elsewhere."""
    assert box_format_suspicion(np.zeros((0, 4)), "xyxy", np.zeros((0, 2))) is None
    assert box_format_suspicion(np.full((9, 4), np.nan), "xyxy", np.full((9, 2), 50)) is None
    assert box_format_suspicion(np.ones((9, 4)), "xyxy", np.zeros((9, 2))) is None


@pytest.mark.parametrize("true", BOX_FORMATS)
def test_the_only_format_that_fits_is_found(true: str):
    """Boxes tell their format if they are many, and areas do if they are the boxes'."""
    boxes, image_hw = random_boxes()
    unknown, areas = np.full(500, np.nan), boxes["coco_xywh"][:, 2:].prod(-1)
    assert find_box_format(boxes[true], unknown, image_hw)[0] == true
    found, reason = find_box_format(boxes[true], areas, image_hw)
    assert found == true and "area is the width times height" in reason
    # Boxes may be beyond their images then, and areas of masks say nothing.
    outside = boxes["coco_xywh"] + [0, 0, 900, 900]
    assert find_box_format(outside, outside[:, 2:].prod(-1), image_hw)[0] == "coco_xywh"
    found, reason = find_box_format(boxes[true], areas * 0.7, image_hw)
    assert found == true and "inside their image" in reason


def test_no_format_is_found_without_sizes():
    """Boxes of images that can't be read say nothing."""
    with pytest.raises(ValueError, match="The box format isn't clear: all 0 boxes fit coco_xywh"):
        find_box_format(np.ones((2, 4)), np.ones(2), np.zeros((2, 2)))


@pytest.mark.parametrize("true", ["xyxy_normalized", "coco_xywh_normalized"])
def test_no_format_is_found_for_others(true: str):
    """Formats that have to be converted aren't taken for similar ones, even of small boxes."""
    boxes, image_hw = random_boxes()
    with pytest.raises(ValueError, match="but not all of them any format. Pass box_format"):
        find_box_format(boxes[true], np.full(500, np.nan), image_hw)
    small = np.array([[0.45, 0.45, 0.05, 0.05]])
    with pytest.raises(ValueError, match="cxcywh_normalized and coco_xywh_normalized"):
        find_box_format(small, np.full(1, np.nan), IMAGE_HW)


def test_several_formats_that_fit_are_named():
    """A few boxes that fit several formats need an answer of the user."""
    with pytest.raises(ValueError, match="all 1 boxes fit coco_xywh and xyxy. Pass box_format"):
        find_box_format(np.array([[5.0, 5, 20, 8]]), np.full(1, np.nan), IMAGE_HW)


def test_a_box_without_area_says_nothing():
    """One box without area doesn't exclude the true format, or settle another one."""
    boxes = np.array([[10.0, 10, 60, 40], [100, 50, 130, 90], [20, 20, 20, 60]])
    image_hw, unknown = np.full((3, 2), [480, 640]), np.full(3, np.nan)
    with pytest.raises(ValueError, match="all 3 boxes fit coco_xywh and xyxy. Pass box_format"):
        find_box_format(boxes, unknown, image_hw)
    assert find_box_format(boxes, np.array([1500.0, 1200, 0]), image_hw)[0] == "xyxy"
    many, image_hw = random_boxes()
    for true in BOX_FORMATS:
        boxes = many[true].copy()
        boxes[0, 2] = boxes[0, 0] if true == "xyxy" else 0
        assert find_box_format(boxes, np.full(500, np.nan), image_hw)[0] == true
    nothing = np.array([[20.0, 20, 20, 60]] * 3), unknown, np.full((3, 2), 70)
    with pytest.raises(ValueError, match="any format. Pass box_format"):
        find_box_format(*nothing)


@pytest.mark.parametrize("block", [1, 3, 1000])
def test_boxes_are_computed_with_in_blocks(monkeypatch: pytest.MonkeyPatch, block: int):
    """The result doesn't depend on the size of the blocks."""
    monkeypatch.setattr("hf_detr.data.box_formats.BLOCK", block)
    boxes, image_hw = random_boxes()
    assert box_format_suspicion(boxes["coco_xywh"], "coco_xywh", image_hw) is None
    assert "of 500 boxes" in box_format_suspicion(boxes["xyxy"], "coco_xywh", image_hw)


def test_images_fit_turned_only_if_all_boxes_do():
    """One box that needs the annotated size, or fits neither, is a reason not to turn."""
    tall, wide, huge = [10, 5, 20, 44], [10, 5, 39, 8], [0, 0, 90, 90]
    boxes = np.array([tall, tall, wide, tall, huge, wide, [10, 5, 20, 8], tall], dtype=float)
    images = np.array([3, 0, 0, 1, 1, 2, 3, 5])
    image_hw = np.array([[40, 50]] * 6)
    assert images_that_fit_turned(boxes, images, "coco_xywh", image_hw).tolist() == [3, 5]
    assert images_that_fit_turned(boxes, images, "cxcywh_normalized", image_hw).tolist() == []
