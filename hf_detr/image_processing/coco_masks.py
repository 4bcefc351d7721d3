"""Conversion between COCO segmentations and boolean masks, equal to pycocotools.

A COCO mask is stored as polygons, as run lengths (RLE), or as run lengths packed into a string.
Run lengths are in column-major order and alternate between outside and inside, starting with
outside: `[2, 3, 1]` is 0 0 1 1 1 0.
"""

import math
from collections.abc import Mapping, Sequence
from reprlib import repr as shortened
from typing import Any

import numpy as np
import torch
from torch import Tensor

UPSAMPLING = 5  # polygon boundaries are traced on a grid this many times finer than the pixels
MAX_MARGIN = 100_000  # pixels that a polygon may extend beyond the image; limits the memory
MAX_DIGITS = 8  # of a packed number
SEGMENTATION = "[[x0, y0, x1, y1, ...], ...] or {'size': [height, width], 'counts': ...}"


def stack_masks(segmentations: Sequence[tuple[Any, str]], image_hw: tuple[int, int]) -> Tensor:
    """Convert pairs of an object's segmentation and name to masks (n, H, W) bool."""
    masks = torch.zeros(len(segmentations), *image_hw, dtype=torch.bool)
    for mask, (segmentation, name) in zip(masks, segmentations, strict=True):
        mask.copy_(masks_from_segmentation(segmentation, image_hw, name))
    return masks


def masks_from_segmentation(segmentation: Any, image_hw: tuple[int, int], name: str) -> Tensor:
    """Convert the COCO segmentation of an object to its mask.

    Args:
        segmentation: polygons, a list of flat lists [x0, y0, x1, y1, ...] in pixels, whose union is
            the mask and which may extend beyond the image; or `{"size": [height, width],
            "counts": c}` with the run lengths c as a list of int, or packed as str or bytes.
        image_hw: height and width of the image in pixels.
        name: name of the object in error messages, such as "image_id 7, annotation 3".

    Returns:
        (H, W) bool, True inside.

    Raises:
        ValueError: if a number is invalid, or the run lengths don't have the size of the image.
        TypeError: if the segmentation has another type.
    """
    parts = segmentation.tolist() if hasattr(segmentation, "tolist") else segmentation
    if isinstance(segmentation, Mapping):
        mask = _mask_from_rle(segmentation, image_hw, name)
    elif isinstance(parts, (list, tuple)):
        mask = _mask_from_polygons(parts, image_hw, name)
    else:
        raise TypeError(
            f"{name} has a segmentation of type {type(segmentation).__name__}; expected "
            f"{SEGMENTATION}."
        )
    return torch.from_numpy(np.ascontiguousarray(mask))


def rle_from_mask(mask: Tensor) -> dict[str, list[int]]:
    """Convert a mask (H, W) to COCO's run lengths: column-major, starting with outside.

    Returns:
        `{"size": [height, width], "counts": [int, ...]}`; the counts sum to height * width.
    """
    pixels = mask.cpu().numpy().astype(bool).T.reshape(-1)
    changes = np.flatnonzero(np.diff(pixels, prepend=False))
    counts = np.diff(changes, prepend=0, append=pixels.size)
    return {"size": list(mask.shape), "counts": counts.tolist()}


def run_lengths(mask: Tensor) -> list[int]:
    """Convert a mask (H, W) to the run lengths of transformers' post-processing, not of COCO.

    Returns:
        `[start, length, start, length, ...]`, a pair for each run of ones in row-major order;
        starts are counted from 1.
    """
    pixels = mask.cpu().numpy().astype(bool).reshape(-1)
    changes = np.flatnonzero(np.diff(pixels, prepend=False, append=False))
    starts, ends = changes[::2], changes[1::2]
    return np.stack([starts + 1, ends - starts], axis=-1).reshape(-1).tolist()


def _mask_from_polygons(parts: Sequence[Any], image_hw: tuple[int, int], name: str) -> np.ndarray:
    """Compute the union (H, W) bool of the polygons."""
    if len(parts) == 0:
        raise ValueError(f"{name} has no polygons; expected {SEGMENTATION}.")
    mask = np.zeros(image_hw, dtype=bool)
    for index, part in enumerate(parts):
        points_xy = _checked_polygon(part, image_hw, f"{name} has polygon {index}")
        mask |= _filled_polygon(points_xy, image_hw)
    return mask


def _filled_polygon(points_xy: np.ndarray, image_hw: tuple[int, int]) -> np.ndarray:
    """Rasterize a polygon, points (n, 2) as (x, y) in pixels, to a mask (H, W) bool.

    The centre of pixel column c is the fine column 5c + 2. Each step of the boundary between 5c + 2
    and 5c + 3 switches column c between outside and inside, from the first pixel whose centre isn't
    above the boundary.
    """
    height, width = image_hw
    x, y = _fine_boundary(points_xy)  # (steps, 2) each
    column, offset = np.divmod(x.min(-1), UPSAMPLING)
    row = (y.min(-1) + UPSAMPLING // 2) // UPSAMPLING
    row = np.clip(row, 0, height)  # `height`: below the last pixel
    is_switch = (x[:, 0] != x[:, 1]) & (offset == UPSAMPLING // 2)
    is_switch &= (column >= 0) & (column < width)
    index = (column * (height + 1) + row)[is_switch]
    count = np.bincount(index, minlength=width * (height + 1)).reshape(width, height + 1)
    return (count.cumsum(axis=1)[:, :height] % 2 == 1).T


def _fine_boundary(points_xy: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Trace a closed polygon (n, 2) on the fine grid: x and y before and after each step.

    An edge takes unit steps along its longer side, in the direction of larger coordinates; the
    other coordinate is rounded by adding 0.5 and truncating, as in C.

    Returns:
        x and y, (steps, 2) each.
    """
    ends = np.trunc(UPSAMPLING * points_xy + 0.5)
    ends = np.stack([ends, np.roll(ends, -1, axis=0)], axis=1)  # (n, 2 ends, 2) per edge
    extent = np.abs(ends[:, 1] - ends[:, 0])
    is_flat = extent[:, 0] >= extent[:, 1]
    # From (x, y) to (coordinate along the edge, the other one), starting at the lower end.
    ends = np.where(is_flat[:, None, None], ends, ends[..., ::-1])
    ends = np.where((ends[:, 0, 0] > ends[:, 1, 0])[:, None, None], ends[:, ::-1], ends)

    num_steps = extent.max(-1).astype(np.int64)
    slope = (ends[:, 1, 1] - ends[:, 0, 1]) / np.maximum(num_steps, 1)
    edge = np.repeat(np.arange(len(ends)), num_steps)
    step = np.arange(len(edge)) - np.repeat(num_steps.cumsum() - num_steps, num_steps)
    step = np.stack([step, step + 1], axis=-1)  # (steps, 2)
    along = ends[edge, 0, 0, None] + step
    across = np.trunc(ends[edge, 0, 1, None] + slope[edge, None] * step + 0.5)
    x, y = np.where(is_flat[edge, None], (along, across), (across, along)).astype(np.int64)
    return x, y


def _checked_polygon(part: Any, image_hw: tuple[int, int], name: str) -> np.ndarray:
    """Return the points (n, 2) float64 as (x, y)."""
    problem = f"{name} {shortened(part)}; expected a flat list [x0, y0, x1, y1, ...]."
    values = _flat_numbers(part, float, problem)
    if len(values) % 2 or len(values) < 6:
        raise ValueError(f"{name} of {len(values)} numbers; expected x and y of at least 3 points.")
    limit = MAX_MARGIN + max(image_hw)
    invalid = values[~(np.abs(values) <= limit)].tolist()
    if invalid:
        raise ValueError(
            f"{name} with coordinates {shortened(invalid)}; expected finite numbers up to {limit} "
            "pixels."
        )
    return values.reshape(-1, 2)


def _mask_from_rle(rle: Mapping[str, Any], image_hw: tuple[int, int], name: str) -> np.ndarray:
    """Convert run lengths, packed or not, to a mask (H, W) bool."""
    if not {"size", "counts"} <= set(rle):
        raise ValueError(f"{name} has a segmentation with {list(rle)}; expected {SEGMENTATION}.")
    size, counts = rle["size"], rle["counts"]
    problem = (
        f"{name} has a segmentation of size {shortened(size)}; expected the size of the image, "
        f"{list(image_hw)} [height, width]."
    )
    if _flat_numbers(size, int, problem).tolist() != list(image_hw):
        raise ValueError(problem)
    problem = f"{name} has run lengths {shortened(counts)}"
    if isinstance(counts, (str, bytes)):
        array = _unpacked_counts(counts, name)
    else:
        array = _flat_numbers(counts, int, f"{problem}; expected a flat list of integers.")
    total, minimum, num_pixels = sum(array.tolist()), array.min(initial=0), math.prod(image_hw)
    if total != num_pixels or minimum < 0:
        raise ValueError(
            f"{problem} with sum {total} and minimum {minimum}; expected integers >= 0 with the "
            f"sum height * width = {num_pixels}."
        )
    is_inside = np.arange(len(array)) % 2 == 1
    return np.repeat(is_inside, array).reshape(image_hw[::-1]).T


def _unpacked_counts(packed: str | bytes, name: str) -> np.ndarray:
    """Unpack the counts (n,) int64 from COCO's string.

    From the fourth count on, the difference to the count two positions before is stored. A number
    is split into digits of 5 bits, lowest first, in two's complement. The 6th bit is set if more
    digits follow, and the character is chr(48 + digit).
    """
    text = packed if isinstance(packed, str) else packed.decode("latin-1")
    invalid = sorted(character for character in set(text) if not "0" <= character <= "o")
    if invalid:
        raise ValueError(
            f"{name} has packed run lengths with the characters {invalid[:5]}; expected characters "
            "from '0' to 'o'."
        )
    digits = np.frombuffer(text.encode("ascii"), dtype=np.uint8).astype(np.int64) - ord("0")
    is_last = digits < 32
    starts = np.flatnonzero(np.insert(is_last, 0, True))  # one more than complete numbers
    lengths = np.diff(starts)
    if starts[-1] != len(digits) or lengths.max(initial=0) > MAX_DIGITS:
        raise ValueError(
            f"{name} has packed run lengths {shortened(packed)} that are truncated, or have a "
            f"number of more than {MAX_DIGITS} characters."
        )
    index = np.arange(len(digits)) - np.repeat(starts[:-1], lengths)
    # The fifth bit of a number's last digit is the sign.
    signed = (digits & 31) - 32 * (is_last & (digits >= 16))
    sums = np.append(0, np.cumsum(signed << 5 * index))
    numbers = np.diff(sums[starts])
    numbers[1::2] = numbers[1::2].cumsum()
    numbers[2::2] = numbers[2::2].cumsum()
    return numbers


def _flat_numbers(values: Any, kind: type[int] | type[float], problem: str) -> np.ndarray:
    """Convert a flat list of `kind` to (n,) int64 or float64; raises TypeError(problem) else."""
    values = values.tolist() if hasattr(values, "tolist") else values
    try:
        array = np.asarray(values if isinstance(values, (list, tuple)) else None)
    except (ValueError, TypeError, OverflowError):  # a ragged list
        raise TypeError(problem) from None
    if array.ndim != 1 or (array.size and array.dtype.kind not in {int: "iu", float: "iuf"}[kind]):
        raise TypeError(problem)
    return array.astype(kind)
