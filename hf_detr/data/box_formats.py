"""Box formats of data sets: conversion, and detection of a wrongly declared format.

- `coco_xywh`: (left, top, width, height) in pixels.
- `xyxy`: (left, top, right, bottom) in pixels.
- `cxcywh_normalized`: (centre x, centre y, width, height), divided by the image's size.
"""

from collections.abc import Iterator

import numpy as np

BOX_FORMATS = ("coco_xywh", "xyxy", "cxcywh_normalized")
DESCRIPTION = (
    "'coco_xywh' (left, top, width, height in pixels), 'xyxy' (corners in pixels) or "
    "'cxcywh_normalized' (centre and size divided by the image's size)"
)
# Formats found in data sets, which have to be converted first.
OTHER_FORMATS = {
    "cxcywh": "(cx, cy, w, h) in pixels",
    "xyxy_normalized": "(x0, y0, x1, y1) divided by the image's size",
    "coco_xywh_normalized": "(left, top, width, height) divided by the image's size",
}
TOLERANCE = 0.01  # fraction of the image size, plus one pixel, because annotations are rounded
MAX_MISFIT_RATIO = 0.2  # real data sets in the declared format have fewer misfits
MIN_MISFITS = 3  # a single box beyond the image's border is common
BLOCK = 2**15  # boxes that are computed with at once, to save memory


def blocks(number: int) -> Iterator[slice]:
    """Divide the rows of `number` boxes into slices, one after the other."""
    return (slice(start, start + BLOCK) for start in range(0, number, BLOCK))


def checked_box_format(box_format: str) -> str:
    """Return `box_format` if it is one of `BOX_FORMATS`.

    Raises:
        ValueError: if it isn't.
    """
    if box_format not in BOX_FORMATS:
        raise ValueError(f"box_format is {box_format!r}; expected {DESCRIPTION}.")
    return box_format


def find_box_format(boxes: np.ndarray, areas: np.ndarray, image_hw: np.ndarray) -> tuple[str, str]:
    """Find the only format that fits all boxes.

    Areas that are width times height in one format only settle it. Otherwise every box has to be
    inside its image and have no negative size. Single boxes without area are errors that say
    nothing, but not all boxes can have none.

    Args:
        boxes: (n, 4) as in the data set.
        areas: (n,) in square pixels, or divided by the image's; NaN if unknown.
        image_hw: (n, 2) height and width in pixels of each box's image.

    Returns:
        One of `BOX_FORMATS`, and the reason.

    Raises:
        ValueError: if several formats fit all boxes, or none.
    """
    is_known = np.isfinite(boxes).all(-1) & (image_hw > 0).all(-1)
    boxes, areas, image_hw = boxes[is_known], areas[is_known], image_hw[is_known]
    has_areas = [name for name in BOX_FORMATS if _have_areas(boxes, areas, name, image_hw)]
    if len(has_areas) == 1:
        return has_areas[0], "only then each object's area is the width times height of its box"
    fitting = [name for name in has_areas or BOX_FORMATS if _fit_all(boxes, name, image_hw)]
    if fitting == ["cxcywh_normalized"]:  # small boxes could be of another normalized format
        others = [name for name in OTHER_FORMATS if name.endswith("_normalized")]
        fitting += [name for name in others if _fit_all(boxes, name, image_hw)]
    if len(fitting) == 1:
        return fitting[0], "only then all boxes are inside their image, without negative sizes"
    if fitting:
        problem = f"all {len(boxes)} boxes fit {' and '.join(fitting)}"
    else:
        fits = {name: _fits(boxes, name, image_hw).mean() for name in BOX_FORMATS}
        ratios = ", ".join(f"{ratio:.1%} {name}" for name, ratio in fits.items())
        problem = f"of {len(boxes)} boxes, {ratios} fit, but not all of them any format"
    raise ValueError(
        f"The box format isn't clear: {problem}. Pass box_format (--box-format): {DESCRIPTION}."
    )


def _fit_all(boxes: np.ndarray, box_format: str, image_hw: np.ndarray) -> bool:
    """Whether all boxes are inside their image, without negative sizes, and some have an area."""
    parts = [(boxes[rows], box_format, image_hw[rows]) for rows in blocks(len(boxes))]
    if not all(_block_fits(*part, may_be_empty=True).all() for part in parts):
        return False
    return not len(boxes) or any(_block_fits(*part).any() for part in parts)


def _have_areas(
    boxes: np.ndarray, areas: np.ndarray, box_format: str, image_hw: np.ndarray
) -> bool:
    """Whether all areas are width times height of the boxes, read in a format."""
    if not len(boxes) or not np.isfinite(areas).all():
        return False
    sizes = boxes_to_coco_xywh(boxes, box_format, image_hw)[:, 2:]
    products, units = sizes.prod(-1), [np.ones(len(boxes))]
    if box_format.endswith("_normalized"):
        if (boxes > 1 + TOLERANCE).any():
            return False
        units.append(image_hw.prod(-1))
    elif _are_fractions(boxes).any():
        return False
    close = [np.abs(areas * unit - products) <= TOLERANCE * products + 1 for unit in units]
    return bool((sizes >= 0).all() and products.any() and any(one.all() for one in close))


def boxes_to_coco_xywh(boxes: np.ndarray, box_format: str, image_hw: np.ndarray) -> np.ndarray:
    """Convert boxes (n, 4) to (left, top, width, height) in pixels.

    Args:
        boxes: (n, 4) float64.
        box_format: one of `BOX_FORMATS`.
        image_hw: (n, 2) height and width in pixels of each box's image.

    Returns:
        (n, 4) float64; NaN and negative sizes are kept.
    """
    if checked_box_format(box_format) == "coco_xywh":
        return boxes
    corners = _corners(boxes, box_format, image_hw)
    return np.concatenate([corners[:, :2], corners[:, 2:] - corners[:, :2]], axis=1)


def box_format_suspicion(
    boxes: np.ndarray, box_format: str, image_hw: np.ndarray, is_fixed: bool = False
) -> str | None:
    """Describe why boxes seem to have another format than `box_format`; None if they don't.

    A box fits a format if, read in that format, it has an area and is inside its image. Boxes seem
    to have another format if too many don't fit `box_format` and nearly all fit the other one.

    Args:
        boxes: (n, 4) as in the data set.
        box_format: the declared format.
        image_hw: (n, 2) height and width in pixels of each box's image.
        is_fixed: whether the data's format has this box format only, as that of YOLO.
    """
    is_known = np.isfinite(boxes).all(-1) & (image_hw > 0).all(-1)
    if not is_known.all():
        boxes, image_hw = boxes[is_known], image_hw[is_known]
    fits = _fits(boxes, box_format, image_hw)
    misfits = len(boxes) - int(fits.sum())
    if misfits < MIN_MISFITS or misfits <= MAX_MISFIT_RATIO * len(boxes):
        return None
    ratios = {
        other: _fits(boxes, other, image_hw).mean()
        for other in (*BOX_FORMATS, *OTHER_FORMATS)
        if other != box_format
    }
    best = max(ratios, key=ratios.__getitem__)
    if ratios[best] < 1 - MAX_MISFIT_RATIO / 2 or ratios[best] <= fits.mean():
        return None
    example = boxes[~fits][0].tolist()
    if is_fixed and box_format.endswith("_normalized") and not best.endswith("_normalized"):
        return (
            f"{misfits} of {len(boxes)} boxes are empty or outside their image, such as {example}: "
            "the values look like pixels; divide them by the image's width and height."
        )
    can_pass = best in BOX_FORMATS and not is_fixed
    fix = f"pass box_format={best!r}" if can_pass else "convert the boxes"
    return (
        f"box_format is {box_format!r}, but {misfits} of {len(boxes)} boxes are empty or outside "
        f"their image in this format, such as {example}, and {ratios[best]:.1%} fit "
        f"{OTHER_FORMATS.get(best, best)}; {fix} if that is their format."
    )


def images_that_fit_turned(
    boxes: np.ndarray, images: np.ndarray, box_format: str, image_hw: np.ndarray
) -> np.ndarray:
    """Find images whose boxes all fit if width and height are swapped, but not as they are.

    Args:
        boxes: (n, 4) as in the data set.
        images: (n,) index of each box's image.
        box_format: format of the boxes; normalized ones give no evidence.
        image_hw: (I, 2) height and width in pixels.

    Returns:
        (k,) indices of images.
    """
    if box_format.endswith("_normalized"):
        return np.zeros(0, dtype=np.int64)
    misfits = np.zeros(len(image_hw), dtype=bool)
    misfits[images[~_fits(boxes, box_format, image_hw[images])]] = True
    rows = np.flatnonzero(misfits[images])
    turned_hw = image_hw[images[rows], ::-1]
    misfits[images[rows[~_fits(boxes[rows], box_format, turned_hw)]]] = False
    return np.flatnonzero(misfits)


def _fits(boxes: np.ndarray, box_format: str, image_hw: np.ndarray) -> np.ndarray:
    """Whether boxes, read in a format, have an area and are inside their image; (n,)."""
    found = np.empty(len(boxes), dtype=bool)
    for rows in blocks(len(boxes)):
        found[rows] = _block_fits(boxes[rows], box_format, image_hw[rows])
    return found


def _block_fits(
    boxes: np.ndarray, box_format: str, image_hw: np.ndarray, may_be_empty: bool = False
) -> np.ndarray:
    corners = _corners(boxes, box_format, image_hw)
    margin = TOLERANCE * image_hw + 1
    low, high = corners[:, 1::-1], corners[:, :1:-1]  # as (y, x)
    has_size = high >= low if may_be_empty else high > low
    is_inside = (low >= -margin) & (high <= image_hw + margin) & has_size
    is_inside = is_inside[:, 0] & is_inside[:, 1]  # faster than `all` over two values
    if box_format.endswith("_normalized"):
        return is_inside
    # In pixels, fractions up to 1 would be a box within the top left pixel.
    small = np.flatnonzero((boxes[:, 2] <= 1) & (boxes[:, 3] <= 1))
    is_inside[small] &= ~_are_fractions(boxes[small])
    return is_inside


def _are_fractions(boxes: np.ndarray) -> np.ndarray:
    """Whether boxes are fractions up to 1, which in pixels would be within the first pixel."""
    return (boxes <= 1).all(-1) & (boxes % 1 != 0).any(-1)


def _corners(boxes: np.ndarray, box_format: str, image_hw: np.ndarray) -> np.ndarray:
    """Convert boxes to corners in pixels, (n, 4)."""
    if box_format.endswith("_normalized"):
        boxes = boxes * image_hw[:, [1, 0, 1, 0]]
    first, second = boxes[:, :2], boxes[:, 2:]
    match box_format.removesuffix("_normalized"):
        case "xyxy":
            return boxes
        case "cxcywh":
            return np.concatenate([first - second / 2, first + second / 2], axis=1)
        case _:
            return np.concatenate([first, first + second], axis=1)
