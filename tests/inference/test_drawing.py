"""Drawn predictions: the right size, visible, upright, with labels that can be read."""

from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import pytest
import torch

from hf_detr.inference.drawing import draw_predictions, make_picture, place_labels

NAMES = {0: "cat", 3: "a dog with quite a long name"}


def result_of(*boxes: list[float], labels: tuple[int, ...] = (0, 3)) -> dict[str, Any]:
    return {
        "scores": torch.tensor([0.9, 0.6][: len(boxes)]),
        "labels": torch.tensor(labels[: len(boxes)]),
        "boxes": torch.tensor(boxes).reshape(-1, 4),
    }


def changed(picture: PIL.Image.Image, background: int = 100) -> np.ndarray:
    """(H, W) bool: pixels that aren't the gray that they were."""
    return (np.asarray(picture) != background).any(-1)


@pytest.mark.parametrize("size", [(64, 48), (640, 480), (2000, 1500)])
def test_boxes_and_names_at_any_size(size: tuple[int, int]) -> None:
    """Lines stay a two-hundredth of the image, labels about a 25th; all stays inside it."""
    image = PIL.Image.new("RGB", size, (100,) * 3)
    width, height = size
    box = [width * 0.25, height * 0.5, width * 0.75, height * 0.9]
    drawn = changed(draw_predictions(image, result_of(box), NAMES))
    assert drawn.shape == (height, width)
    assert not changed(image).any()  # a copy was drawn on
    row = drawn[int(height * 0.85)]  # both vertical edges, and nothing within
    pen = max(round(height / 200), 1)
    assert row.sum() == 2 * pen and row[int(box[0])] and row[int(box[2])]
    plate = drawn[: int(box[1]), int(box[0]) + pen]
    assert min(height / 3, 10) <= plate.sum() <= max(height / 15, 16)


def test_boxes_beyond_the_image_have_edges_in_it() -> None:
    """A box that leaves the image is drawn along the image's border."""
    image = PIL.Image.new("RGB", (80, 60), (100,) * 3)
    drawn = changed(draw_predictions(image, result_of([-20.0, 30, 200, 90]), NAMES))
    assert drawn[40, 0] and drawn[40, 79] and drawn[59, 40] and not drawn[45, 40]


@pytest.mark.parametrize("size", [(40, 10), (70, 14)])
def test_labels_leave_each_other_visible(size: tuple[int, int]) -> None:
    """Labels of equal, nested and neighbouring boxes don't overlap and are within the image."""
    image_wh = 200, 120
    boxes = [
        *([60.0, 40, 110, 100], [60.0, 40, 110, 100], [62.0, 42, 108, 98]),
        *([0.0, 0, 30, 20], [150.0, 0, 199, 119], [120.0, 100, 199, 119]),
    ]
    places = place_labels(boxes, [size] * len(boxes), image_wh)
    width, height = size
    for number, (x0, y0, x1, y1) in enumerate(places):
        assert (x1 - x0, y1 - y0) == size
        assert min(x0, y0) >= 0 and x1 < image_wh[0] and y1 < image_wh[1]
        for other_x, other_y, _, _ in places[:number]:
            assert abs(x0 - other_x) >= width or abs(y0 - other_y) >= height
    assert places[0][:2] == (60, 40 - height)  # above its box, if there is room


def test_labels_without_any_room() -> None:
    """A label wider than the image is drawn, but others don't hide it."""
    places = place_labels([[0.0, 0, 20, 10]] * 3, [(50, 12)] * 3, (40, 16))
    assert places == [(0, 0, 50, 12), None, None]


def test_crowds_keep_the_best_labels() -> None:
    """Among hundreds of boxes, labels that are drawn can be read, the best one among them."""
    generator = torch.Generator().manual_seed(0)
    corners = torch.rand(300, 2, generator=generator) * 280
    boxes = torch.cat([corners, corners + 20], dim=1).tolist()
    places = place_labels(boxes, [(60, 12)] * 300, (300, 300))
    drawn = [place for place in places if place is not None]
    assert places[0] is not None and 60 < len(drawn) < 300
    for number, (x0, y0, x1, y1) in enumerate(drawn):
        hidden = 0.0
        for left, top, right, bottom in drawn[:number]:
            width, height = min(x1, right) - max(x0, left), min(y1, bottom) - max(y0, top)
            hidden += max(width, 0) * max(height, 0)
        assert hidden <= 60 * 12 / 10


def test_targets_have_names_alone() -> None:
    """Without scores, which targets don't have, a label is the name."""
    image = PIL.Image.new("RGB", (640, 480), (100,) * 3)
    result = result_of([100.0, 100, 300, 300], labels=(3,))
    scored = changed(draw_predictions(image, result, NAMES))
    del result["scores"]
    named = changed(draw_predictions(image, result, NAMES))
    assert named.sum() < scored.sum() and not (named & ~scored).any()


def test_nothing_found_changes_nothing() -> None:
    """No detections, no segments: the image as it was."""
    image = PIL.Image.new("RGB", (80, 60), (100,) * 3)
    empty = {**result_of(), "segmentation": torch.full((60, 80), -1.0), "segments_info": []}
    assert not changed(draw_predictions(image, empty, NAMES)).any()


def test_segments_are_tinted() -> None:
    """Each segment's pixels get one colour, which differs among segments of a class."""
    image = PIL.Image.new("RGB", (80, 60), (100,) * 3)
    segmentation = torch.zeros(60, 80, dtype=torch.int32)
    segmentation[:20], segmentation[40:] = 1, 4
    segments = [{"id": 1, "label_id": 3}, {"id": 2, "label_id": 0}, {"id": 4, "label_id": 3}]
    result = {**result_of(), "segmentation": segmentation, "segments_info": segments}
    pixels = np.asarray(draw_predictions(image, result, NAMES))
    top, middle, bottom = pixels[:20], pixels[20:40], pixels[40:]
    assert (middle == 100).all()
    for part in (top, bottom):
        assert (part == part[0, 0]).all() and (part[0, 0] != 100).any()
    assert (top[0, 0] != bottom[0, 0]).any()


def test_pictures_are_upright_and_have_three_channels(tmp_path: Path) -> None:
    """EXIF turns files as it does for the model; floats and transparency come out as RGB."""
    exif = PIL.Image.Exif()
    exif[0x0112] = 6
    PIL.Image.new("L", (80, 60)).save(tmp_path / "turned.jpg", exif=exif)
    picture = make_picture(tmp_path / "turned.jpg")
    assert picture.size == (60, 80) and picture.mode == "RGB"
    assert make_picture(np.full((4, 5), 0.5)).getpixel((0, 0)) == (128, 128, 128)
    assert make_picture(PIL.Image.new("RGBA", (5, 4))).getpixel((0, 0)) == (255, 255, 255)


def test_label_without_text() -> None:
    """A class may have an empty name, as targets have no score beside it."""
    image = PIL.Image.new("RGB", (80, 60), (100,) * 3)
    result = {"labels": torch.tensor([0]), "boxes": torch.tensor([[10.0, 10, 40, 40]])}
    assert changed(draw_predictions(image, result, {0: ""})).any()
