"""Draws what a model found on the image: boxes, names, scores and segments."""

import colorsys
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import PIL.Image
import torch
from PIL import ImageDraw, ImageFont
from torch import Tensor

from ..image_processing.image_reading import read_images
from .label_font import label_font

GOLDEN_RATIO = 0.618034  # its multiples spread over the circle of hues, however many there are
GREY = (128, 128, 128)
SHADES = (1.0, 0.7, 0.45)  # for segments of one class
INK, OUTLINE = "white", "black"  # of letters
SMALLEST_FONT_SIZE = 11  # pixels; smaller letters are unreadable
MARGIN = 2  # pixels left and right of a label's text
LEAST_SIDE = 640  # pixels of a picture on a page or in a plot, for sharp lines and letters
MOST_HIDDEN = 0.1  # of a label's area that may overlap other labels

Size = tuple[int, int]  # width, height
Edges = tuple[float, float, float, float]  # x0, y0, x1, y1
Color = tuple[int, int, int]  # red, green, blue


def draw_predictions(
    image: Any, result: Mapping[str, Any], id2label: Mapping[int, str]
) -> PIL.Image.Image:
    """A copy of an image with a box, name and score for every object, and its segments.

    Lines and letters grow with the image, letters less if there are many objects. Labels avoid each
    other; one that could only hide a label of a higher score is left out. A class has the same
    colour in every image; tracked objects have their id and its colour, or grey before they have
    one.

    Args:
        image: anything that holds one image; files and PIL images are turned upright.
        result: as `predict` or `ObjectTracker` returns it for this image. Without `scores`, as for
            targets, names stand alone.
        id2label: names of the labels; labels without a name are shown as numbers.

    Returns:
        RGB, of the upright image's size.
    """
    picture = make_picture(image)
    if result.get("segments_info"):
        _paint_segments(picture, result["segmentation"], result["segments_info"])
    canvas, short_side = ImageDraw.Draw(picture), min(picture.size)
    pen = max(round(short_side / 200), 1)
    boxes, colors, texts = _best_first(result, id2label, picture.size)
    of_each = math.sqrt(picture.width * picture.height / max(len(boxes), 1))
    font_size = max(min(short_side / 26, of_each / 3), SMALLEST_FONT_SIZE)
    font = label_font(font_size, texts)
    places = place_labels(boxes, [_plate_size(canvas, text, font) for text in texts], picture.size)
    drawings = list(zip(boxes, colors, texts, places, strict=True))[::-1]  # the best ones on top
    for box, color, _, _ in drawings:
        canvas.rectangle(box, outline=color, width=pen)
    for _, color, text, place in drawings:
        if place is not None:
            _write(canvas, text, place, font, color)
    return picture


def place_labels(
    boxes_xyxy: Sequence[Sequence[float]], sizes: Sequence[Size], image_wh: Size
) -> list[Edges | None]:
    """A rectangle for the label of every box: within the image, and free of other labels.

    Each label takes the first place that earlier labels leave free: above its box, below it, or
    inside it from top to bottom; if none is free, the one that overlaps them least. If that is more
    than a tenth of the label, it has no place.

    Args:
        boxes_xyxy: in pixels, the most important first.
        sizes: width and height of each label.
        image_wh: width and height of the image.

    Returns:
        (x0, y0, x1, y1) of each label, or None.
    """
    chosen: list[Edges | None] = []
    taken = np.zeros((0, 4))
    for box, size in zip(boxes_xyxy, sizes, strict=True):
        places = np.array(list(_possible_places(box, size, image_wh)))
        overlaps = _overlaps(places, taken).sum(1)
        best = int(overlaps.argmin())  # the first of equal ones
        is_free = overlaps[best] <= MOST_HIDDEN * size[0] * size[1]
        chosen.append(tuple(places[best].tolist()) if is_free else None)
        if is_free:
            taken = np.concatenate([taken, places[best, None]])
    return chosen


def _possible_places(box: Sequence[float], size: Size, image_wh: Size) -> Iterator[Edges]:
    """Places of a label near its box (x0, y0, x1, y1), the best first, all within the image."""
    x0, y0, x1, y1 = box
    width, height = size
    rows = [y0 - height, y1 + 1, *(y0 + height * row for row in range(int((y1 - y0) / height) + 1))]
    for y in rows:
        for x in (x0, x1 - width):
            left = max(min(x, image_wh[0] - 1 - width), 0)
            top = max(min(y, image_wh[1] - 1 - height), 0)
            yield left, top, left + width, top + height


def _overlaps(ones: np.ndarray, others: np.ndarray) -> np.ndarray:
    """Areas (n, m) in square pixels that rectangles (n, 4) and (m, 4) share."""
    low = np.maximum(ones[:, None, :2], others[:, :2])
    high = np.minimum(ones[:, None, 2:], others[:, 2:])
    return (high - low).clip(0).prod(2)


def make_picture(image: Any) -> PIL.Image.Image:
    """An upright RGB image from anything that holds one image.

    Raises:
        ValueError, TypeError: if it can't be read.
    """
    (pixels,) = read_images([image], blend_alpha=True)
    if pixels.is_floating_point():
        pixels = (pixels * 255).round().to(torch.uint8)
    return PIL.Image.fromarray(pixels.permute(1, 2, 0).contiguous().numpy())


def _best_first(
    result: Mapping[str, Any], id2label: Mapping[int, str], image_wh: Size
) -> tuple[list[list[float]], list[Color], list[str]]:
    """Boxes (x0, y0, x1, y1) within the image, colours and texts, the highest scores first."""
    order = torch.arange(len(result["labels"]))
    if (scores := result.get("scores")) is not None:
        order = scores.argsort(descending=True)
    labels = result["labels"][order].tolist()
    numbers = (
        [""] * len(labels) if scores is None else [f" {s:.2f}" for s in scores[order].tolist()]
    )
    corner = torch.tensor([image_wh[0] - 1, image_wh[1] - 1] * 2)
    # An edge beyond the image would be invisible.
    boxes = result["boxes"][order].float().clamp(min=0).minimum(corner).tolist()
    named = zip(labels, numbers, strict=True)
    texts = [f"{id2label.get(label, label)}{number}" for label, number in named]
    if "track_ids" not in result:
        return boxes, [_color(label) for label in labels], texts
    tracks = result["track_ids"][order].tolist()
    texts = [f"#{track} {t}" if track >= 0 else t for track, t in zip(tracks, texts, strict=True)]
    return boxes, [_color(track) if track >= 0 else GREY for track in tracks], texts


def _color(label: int, shade: float = SHADES[0]) -> Color:
    red, green, blue = colorsys.hsv_to_rgb(label * GOLDEN_RATIO % 1, 0.85, 0.95 * shade)
    return round(255 * red), round(255 * green), round(255 * blue)


def _paint_segments(
    picture: PIL.Image.Image, segmentation: Tensor, segments: list[dict[str, Any]]
) -> None:
    """Tint the pixels of every segment with half opacity."""
    tints = np.zeros((int(segmentation.max()) + 1, 4), dtype=np.uint8)  # red, green, blue, opacity
    for index, segment in enumerate(segments):
        tints[segment["id"]] = *_color(segment["label_id"], SHADES[index % len(SHADES)]), 128
    tint = PIL.Image.fromarray(tints[segmentation.numpy()])
    picture.paste(tint, mask=tint)


def _plate_size(canvas: ImageDraw.ImageDraw, text: str, font: ImageFont.FreeTypeFont) -> Size:
    left, top, right, bottom = canvas.textbbox((0, 0), text, font)  # without the outline
    height = max(round(bottom + top), 1)  # equal margins on all sides; without text, it is zero
    return round(right + left) + 2 * (MARGIN + _outline(font)), height


def _write(
    canvas: ImageDraw.ImageDraw,
    text: str,
    place: Edges,
    font: ImageFont.FreeTypeFont,
    color: Color,
) -> None:
    """Write on a coloured plate (x0, y0, x1, y1), with an outline readable on any colour."""
    canvas.rectangle(place, fill=color)
    width = _outline(font)
    start = place[0] + MARGIN + width, place[1]
    canvas.text(start, text, INK, font, stroke_width=width, stroke_fill=OUTLINE)


def _outline(font: ImageFont.FreeTypeFont) -> int:
    """Width of the letters' outline in pixels."""
    return max(round(font.size / 12), 1)
