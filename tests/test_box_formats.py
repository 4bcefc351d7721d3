"""Box formats: right conversion, and loud when the numbers look like another format."""

import numpy as np
import pytest

from hf_detr.box_formats import BOX_FORMATS, box_format_suspicion, boxes_to_coco_xywh

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
def test_every_format_becomes_cocos(box_format: str, box: list[float]):
    """Protects every reader: left, top, width, height in pixels, checked by hand."""
    found = boxes_to_coco_xywh(np.array([box]), box_format, IMAGE_HW)
    np.testing.assert_allclose(found, [[10, 5, 20, 8]], rtol=1e-12)


def test_unknown_format_is_refused_with_the_known_ones():
    """Protects against guessing."""
    with pytest.raises(ValueError, match="'yolo'; give 'coco_xywh' .*'xyxy'.*'cxcywh_normalized'"):
        boxes_to_coco_xywh(np.zeros((1, 4)), "yolo", IMAGE_HW)


@pytest.mark.parametrize("said", BOX_FORMATS)
@pytest.mark.parametrize("true", random_boxes()[0])
def test_wrong_format_is_suspected_and_the_right_one_is_not(said: str, true: str):
    """Protects from the commonest mistake; all pairs, except those that can't be told apart."""
    boxes, image_hw = random_boxes()
    suspicion = box_format_suspicion(boxes[true], said, image_hw)
    assert (suspicion is None) == (said == true)
    if said != true:
        assert f"box_format is {said!r}" in suspicion and "of 500 boxes" in suspicion


@pytest.mark.parametrize(("true", "said"), [("xyxy", "coco_xywh"), ("coco_xywh", "xyxy")])
def test_suspicion_names_the_format_that_fits(true: str, said: str):
    """Protects the remedy in the message."""
    boxes, image_hw = random_boxes()
    assert f"give box_format='{true}'" in box_format_suspicion(boxes[true], said, image_hw)


def test_a_few_boxes_beyond_the_border_are_no_suspicion():
    """Protects real data, where objects reach beyond the image, from false alarms."""
    boxes, image_hw = random_boxes()
    boxes["coco_xywh"][:50, 2:] += 400
    assert box_format_suspicion(boxes["coco_xywh"], "coco_xywh", image_hw) is None
    assert box_format_suspicion(np.array([[30.0, 30, 40, 40]]), "coco_xywh", IMAGE_HW) is None


def test_no_boxes_nan_and_unknown_sizes_are_no_suspicion():
    """Protects data sets that are empty or have other problems, named elsewhere."""
    assert box_format_suspicion(np.zeros((0, 4)), "xyxy", np.zeros((0, 2))) is None
    assert box_format_suspicion(np.full((9, 4), np.nan), "xyxy", np.full((9, 2), 50)) is None
    assert box_format_suspicion(np.ones((9, 4)), "xyxy", np.zeros((9, 2))) is None
