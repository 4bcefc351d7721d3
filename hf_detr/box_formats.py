"""The box formats of data sets, and whether boxes look like another one than was said.

- `coco_xywh`: (left, top, width, height) in pixels.
- `xyxy`: (left, top, right, bottom) in pixels.
- `cxcywh_normalized`: (centre x, centre y, width, height), divided by the image's size.
"""

import numpy as np

BOX_FORMATS = ("coco_xywh", "xyxy", "cxcywh_normalized")
# Formats that data are found in, in words; the last three have to be converted first.
LOOKS = {
    "coco_xywh": "coco_xywh",
    "xyxy": "xyxy",
    "cxcywh_normalized": "cxcywh_normalized",
    "cxcywh": "(cx, cy, w, h) in pixels",
    "xyxy_normalized": "(x0, y0, x1, y1) divided by the image's size",
    "coco_xywh_normalized": "(left, top, width, height) divided by the image's size",
}
TOLERANCE = 0.01  # of the image, and a pixel: annotations are rounded
MOST_MISFITS = 0.2  # share of boxes that real data sets, in the format they are said to be in, lack
FEWEST_MISFITS = 3  # one box beyond the border proves nothing


def checked_box_format(box_format: str) -> str:
    """Return the format's name.

    Raises:
        ValueError: if there is no such format.
    """
    if box_format not in BOX_FORMATS:
        raise ValueError(
            f"box_format is {box_format!r}; give 'coco_xywh' (left, top, width, height in pixels), "
            "'xyxy' (corners in pixels) or 'cxcywh_normalized' (centre and size divided by the "
            "image's)."
        )
    return box_format


def boxes_to_coco_xywh(boxes: np.ndarray, box_format: str, image_hw: np.ndarray) -> np.ndarray:
    """Turn boxes (n, 4) of a format into (left, top, width, height) in pixels.

    Args:
        boxes: (n, 4) float64.
        box_format: one of `BOX_FORMATS`.
        image_hw: (n, 2) height and width in pixels of each box's image.

    Returns:
        (n, 4) float64; NaN and negative sizes stay what they are.
    """
    if checked_box_format(box_format) == "coco_xywh":
        return boxes
    return _from_corners(_corners(boxes, box_format, image_hw))


def box_format_suspicion(boxes: np.ndarray, box_format: str, image_hw: np.ndarray) -> str | None:
    """Say why boxes look like another format, or None if they don't.

    A box fits a format if, read that way, it has an area and lies in its image. Boxes look like
    another format if too many don't fit their own and nearly all fit the other.

    Args:
        boxes: (n, 4) as they stand in the data.
        box_format: what they are said to be.
        image_hw: (n, 2) height and width in pixels of each box's image.
    """
    is_known = np.isfinite(boxes).all(-1) & (image_hw > 0).all(-1)
    boxes, image_hw = boxes[is_known], image_hw[is_known]
    fits = _fits(boxes, box_format, image_hw)
    misfits = len(boxes) - int(fits.sum())
    if misfits < FEWEST_MISFITS or misfits <= MOST_MISFITS * len(boxes):
        return None
    shares = {look: _fits(boxes, look, image_hw).mean() for look in LOOKS if look != box_format}
    look = max(shares, key=shares.__getitem__)
    if shares[look] < 1 - MOST_MISFITS / 2 or shares[look] <= fits.mean():
        return None
    remedy = f"box_format={look!r}" if look in BOX_FORMATS else "the converted boxes"
    return (
        f"box_format is {box_format!r}, but read that way {misfits} of {len(boxes)} boxes are "
        f"empty or lie outside their image, such as {boxes[~fits][0].tolist()}; read as "
        f"{LOOKS[look]}, {shares[look]:.1%} of them fit: give {remedy} if that is what they are."
    )


def _fits(boxes: np.ndarray, look: str, image_hw: np.ndarray) -> np.ndarray:
    """(n,) whether boxes, read as a format, have an area and lie in their image."""
    corners = _corners(boxes, look, image_hw)
    margin = TOLERANCE * image_hw + 1
    low, high = corners[:, [1, 0]], corners[:, [3, 2]]  # as (y, x)
    is_inside = ((low >= -margin) & (high <= image_hw + margin) & (high > low)).all(-1)
    # Numbers up to 1 would be a speck of the top left pixel.
    is_speck = (boxes <= 1).all(-1) & (boxes % 1 != 0).any(-1)
    return is_inside if look.endswith("_normalized") else is_inside & ~is_speck


def _corners(boxes: np.ndarray, look: str, image_hw: np.ndarray) -> np.ndarray:
    """(n, 4) corners in pixels."""
    if look.endswith("_normalized"):
        boxes = boxes * image_hw[:, [1, 0, 1, 0]]
    first, second = boxes[:, :2], boxes[:, 2:]
    match look.removesuffix("_normalized"):
        case "xyxy":
            return boxes
        case "cxcywh":
            return np.concatenate([first - second / 2, first + second / 2], axis=1)
        case _:
            return np.concatenate([first, first + second], axis=1)


def _from_corners(corners: np.ndarray) -> np.ndarray:
    return np.concatenate([corners[:, :2], corners[:, 2:] - corners[:, :2]], axis=1)
