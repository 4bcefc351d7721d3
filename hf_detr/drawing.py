"""Pictures of what a model found: boxes, names, scores and segments."""

import colorsys
from collections.abc import Mapping
from typing import Any

import numpy as np
import PIL.Image
import torch
from PIL import ImageDraw, ImageFont
from torch import Tensor

from .image_reading import read_images

GOLDEN_RATIO = 0.618034  # its multiples spread over the circle of hues, however many there are
SHADES = (1.0, 0.7, 0.45)  # tell segments of one class apart
LEAST_FONT_SIZE = 10  # pixels; smaller letters can't be read


def draw_predictions(
    image: Any, result: Mapping[str, Any], id2label: Mapping[int, str]
) -> PIL.Image.Image:
    """A copy of an image with a box, name and score for every object, and its segments.

    Lines and letters grow with the image. Each class has its colour, the same in every picture.

    Args:
        image: anything that holds one image; files and PIL images are turned upright.
        result: as `predict` returns it for this image.
        id2label: names of the labels; those without a name are shown by number.

    Returns:
        RGB, of the upright image's size.
    """
    picture = make_picture(image)
    if result.get("segments_info"):
        _paint_segments(picture, result["segmentation"], result["segments_info"])
    canvas, short_side = ImageDraw.Draw(picture), min(picture.size)
    pen = max(round(short_side / 200), 1)
    font = ImageFont.load_default(max(short_side / 30, LEAST_FONT_SIZE))
    corner = picture.width - 1, picture.height - 1
    limits = torch.tensor(corner * 2, dtype=torch.float32)
    order = result["scores"].argsort().tolist()  # the best ones on top
    for index in order:
        label, score = int(result["labels"][index]), float(result["scores"][index])
        # An edge beyond the image would not be seen.
        box = torch.minimum(result["boxes"][index].float().clamp(min=0), limits).tolist()
        color = _color(label)
        canvas.rectangle(box, outline=color, width=pen)
        _write(canvas, f"{id2label.get(label, label)} {score:.2f}", box, font, color)
    return picture


def make_picture(image: Any) -> PIL.Image.Image:
    """Anything that holds one image as an upright RGB image.

    Raises:
        ValueError, TypeError: if it can't be read.
    """
    (pixels,) = read_images([image], blend_alpha=True)
    if pixels.is_floating_point():
        pixels = (pixels * 255).round().to(torch.uint8)
    return PIL.Image.fromarray(pixels.permute(1, 2, 0).contiguous().numpy())


def _color(label: int, shade: float = SHADES[0]) -> tuple[int, int, int]:
    red, green, blue = colorsys.hsv_to_rgb(label * GOLDEN_RATIO % 1, 0.85, 0.95 * shade)
    return round(255 * red), round(255 * green), round(255 * blue)


def _paint_segments(
    picture: PIL.Image.Image, segmentation: Tensor, segments: list[dict[str, Any]]
) -> None:
    """Tint the pixels of every segment, half through."""
    # A palette has 256 places, the first for pixels of no segment.
    places, palette = np.zeros(int(segmentation.max()) + 1, dtype=np.uint8), [0, 0, 0]
    for index, segment in enumerate(segments):
        places[int(segment["id"])] = index % 255 + 1
        if index < 255:
            palette += _color(segment["label_id"], SHADES[index % len(SHADES)])
    tint = PIL.Image.fromarray(places[segmentation.numpy()])
    strength = tint.point([0] + [128] * 255)
    tint.putpalette(palette)
    picture.paste(tint.convert("RGB"), mask=strength)


def _write(
    canvas: ImageDraw.ImageDraw,
    text: str,
    box: list[float],
    font: ImageFont.FreeTypeFont,
    color: tuple[int, int, int],
) -> None:
    """Write on a plate above a box (x0, y0, x1, y1), or within it at the image's top."""
    left, top, right, bottom = canvas.textbbox((0, 0), text, font)
    width, height = right + left, bottom + top  # as much margin on the other sides
    image_width, image_height = canvas.im.size
    x = max(min(box[0], image_width - width), 0)
    y = box[1] - height if box[1] >= height else min(box[1], max(image_height - height, 0))
    canvas.rectangle((x, y, x + width, y + height), fill=color)
    red, green, blue = color
    is_bright = 0.299 * red + 0.587 * green + 0.114 * blue > 128
    canvas.text((x, y), text, fill="black" if is_bright else "white", font=font)
