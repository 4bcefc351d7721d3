"""COCO segmentations to boolean masks and back, equal to pycocotools, without needing it.

COCO stores a mask in one of three ways: as polygons, as run lengths (RLE), or as run lengths packed
into a string. COCO's run lengths follow the columns, top to bottom, left to right ("column-major"),
and take turns between outside and inside, starting with outside: `[2, 3, 1]` is 0 0 1 1 1 0.
"""

import math
from collections.abc import Mapping, Sequence
from reprlib import repr as shortened
from typing import Any

import numpy as np
import torch
from torch import Tensor

FINE = 5  # polygons are walked on a grid this many times finer than the pixels
FARTHEST = 100_000  # pixels that a polygon may reach beyond the image; keeps its boundary in memory
PLACES = np.arange(8)  # of the 5-bit digits that a packed number may have
SEGMENTATION = "[[x0, y0, x1, y1, ...], ...] or {'size': [height, width], 'counts': ...}"


def masks_from_segmentation(segmentation: Any, image_hw: tuple[int, int], name: str) -> Tensor:
    """Turn one object's COCO segmentation into its mask.

    Args:
        segmentation: polygons, a list of flat lists [x0, y0, x1, y1, ...] in pixels, whose union is
            taken and which may reach beyond the image; or `{"size": [height, width], "counts": c}`
            with the run lengths c as a list of int, or packed as str or bytes.
        image_hw: height and width of the image in pixels.
        name: what the error messages call it, such as "image_id 7, annotation 3".

    Returns:
        (H, W) bool, True inside.

    Raises:
        ValueError: if a number can't be right, or the run lengths don't fill the image.
        TypeError: if the segmentation is none of the three.
    """
    parts = segmentation.tolist() if hasattr(segmentation, "tolist") else segmentation
    if isinstance(segmentation, Mapping):
        mask = _mask_from_rle(segmentation, image_hw, name)
    elif isinstance(parts, (list, tuple)):
        mask = _mask_from_polygons(parts, image_hw, name)
    else:
        raise TypeError(
            f"{name} has a segmentation of type {type(segmentation).__name__}; give {SEGMENTATION}."
        )
    return torch.from_numpy(np.ascontiguousarray(mask))


def rle_from_mask(mask: Tensor) -> dict[str, list[int]]:
    """Write a mask (H, W) as COCO's run lengths: column-major, the first run is outside.

    Returns:
        `{"size": [height, width], "counts": [int, ...]}`; the counts sum to height * width.

    Raises:
        TypeError, ValueError: if `mask` isn't a tensor (H, W) of bool or of 0 and 1.
    """
    pixels = _checked_mask(mask).T.reshape(-1)
    changes = np.flatnonzero(np.diff(pixels, prepend=False))
    counts = np.diff(changes, prepend=0, append=pixels.size)
    return {"size": list(mask.shape), "counts": counts.tolist()}


def run_lengths(mask: Tensor) -> list[int]:
    """Write a mask (H, W) as transformers' post-processing does, which isn't COCO's format.

    Returns:
        `[start, length, start, length, ...]`, a pair for each run of ones in row-major order (along
        the rows); starts count from 1.

    Raises:
        TypeError, ValueError: as `rle_from_mask`.
    """
    pixels = _checked_mask(mask).reshape(-1)
    changes = np.flatnonzero(np.diff(pixels, prepend=False, append=False))
    starts, ends = changes[::2], changes[1::2]
    return np.stack([starts + 1, ends - starts], axis=-1).reshape(-1).tolist()


def compressed_counts(counts: Sequence[int]) -> str:
    """Pack run lengths into COCO's string.

    From the fourth on, a count is written as its difference from the one two before. A number is
    cut into digits of 5 bits, lowest first, in two's complement; a 6th bit says that more follow,
    and chr(48 + digit) is the character.

    Raises:
        TypeError, ValueError: if a count isn't a whole number from 0 to 2**39 - 1.
    """
    array = _flat_numbers(counts, int, f"counts are {shortened(counts)}; give whole numbers.")
    if ((array < 0) | (array >= 2**39)).any():
        raise ValueError(f"counts are {shortened(counts)}; give numbers from 0 to 2**39 - 1.")
    numbers = array.copy()
    numbers[3:] -= array[1:-2]
    numbers = numbers[:, None]  # (n, 1), against (8,) places
    beyond = 2 ** (5 * PLACES + 4)  # the first number that needs more digits than up to this place
    more = (numbers < -beyond) | (numbers >= beyond)
    digits = (numbers >> 5 * PLACES & 31) + 32 * more
    is_written = np.pad(more[:, :-1], ((0, 0), (1, 0)), constant_values=True)
    return (digits[is_written] + ord("0")).astype(np.uint8).tobytes().decode("ascii")


def _mask_from_polygons(parts: Sequence[Any], image_hw: tuple[int, int], name: str) -> np.ndarray:
    """(H, W) bool, the union of the polygons."""
    if len(parts) == 0:
        raise ValueError(f"{name} has no polygons; give {SEGMENTATION}, or leave the object out.")
    mask = np.zeros(image_hw, dtype=bool)
    for index, part in enumerate(parts):
        points_xy = _checked_polygon(part, image_hw, f"{name} has polygon {index}")
        mask |= _filled_polygon(points_xy, image_hw)
    return mask


def _filled_polygon(points_xy: np.ndarray, image_hw: tuple[int, int]) -> np.ndarray:
    """Fill one polygon, points (n, 2) as (x, y) in pixels, into a mask (H, W) bool.

    Pixel column c has its middle at fine column 5c + 2. Wherever the boundary steps from there to
    5c + 3, or back, it switches column c between outside and inside, from the first pixel whose
    middle isn't above the boundary on.
    """
    height, width = image_hw
    x, y = _fine_boundary(points_xy)  # (steps, 2) each
    column, offset = np.divmod(x.min(-1), FINE)
    row = np.clip((y.min(-1) + FINE // 2) // FINE, 0, height)  # `height`: below the last pixel
    switches = (x[:, 0] != x[:, 1]) & (offset == FINE // 2) & (column >= 0) & (column < width)
    place = (column * (height + 1) + row)[switches]
    count = np.bincount(place, minlength=width * (height + 1)).reshape(width, height + 1)
    return (count.cumsum(axis=1)[:, :height] % 2 == 1).T


def _fine_boundary(points_xy: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """All steps along a closed polygon (n, 2) on the fine grid: x and y, (steps, 2) before, after.

    An edge takes unit steps along its longer side, towards larger coordinates; the other coordinate
    is rounded. Like C's conversion to int, rounding adds a half and cuts towards zero.
    """
    ends = np.trunc(FINE * points_xy + 0.5)
    ends = np.stack([ends, np.roll(ends, -1, axis=0)], axis=1)  # (n, 2 ends, 2) per edge
    extent = np.abs(ends[:, 1] - ends[:, 0])
    is_flat = extent[:, 0] >= extent[:, 1]
    # From (x, y) to (coordinate along the edge, the other one), the end of the lower one first.
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
    """(n, 2) float64 as (x, y)."""
    problem = f"{name} that is {shortened(part)}; give a list of lists [x0, y0, x1, y1, ...]."
    values = _flat_numbers(part, float, problem)
    if len(values) % 2 or len(values) < 6:
        raise ValueError(f"{name} of {len(values)} numbers; give x and y for 3 points or more.")
    limit = FARTHEST + max(image_hw)
    strange = values[~(np.abs(values) <= limit)].tolist()
    if strange:
        raise ValueError(
            f"{name} with coordinates {shortened(strange)}; they must be finite and not beyond "
            f"{limit} pixels: mend the polygon or leave it out."
        )
    return values.reshape(-1, 2)


def _mask_from_rle(rle: Mapping[str, Any], image_hw: tuple[int, int], name: str) -> np.ndarray:
    """(H, W) bool from run lengths, packed or not."""
    if not {"size", "counts"} <= set(rle):
        raise ValueError(f"{name} has a segmentation with {list(rle)} only; give {SEGMENTATION}.")
    size, counts = rle["size"], rle["counts"]
    problem = (
        f"{name} has a segmentation of size {shortened(size)}, but the image's is "
        f"{list(image_hw)}, [height, width]; give the run lengths of a mask of that size."
    )
    if _flat_numbers(size, int, problem).tolist() != list(image_hw):
        raise ValueError(problem)
    problem = f"{name} has run lengths {shortened(counts)}"
    if isinstance(counts, (str, bytes)):
        array = _unpacked_counts(counts, name)
    else:
        array = _flat_numbers(counts, int, f"{problem}; give a flat list of whole numbers.")
    total, least, num_pixels = sum(array.tolist()), array.min(initial=0), math.prod(image_hw)
    if total != num_pixels or least < 0:
        raise ValueError(
            f"{problem} with sum {total} and least {least}; give none below 0, and the sum must be "
            f"height * width = {num_pixels}: write the mask again."
        )
    is_inside = np.arange(len(array)) % 2 == 1
    return np.repeat(is_inside, array).reshape(image_hw[::-1]).T


def _unpacked_counts(packed: str | bytes, name: str) -> np.ndarray:
    """(n,) int64, the counts in COCO's string; see `compressed_counts`."""
    text = packed if isinstance(packed, str) else packed.decode("latin-1")
    strangers = sorted(character for character in set(text) if not "0" <= character <= "o")
    if strangers:
        raise ValueError(
            f"{name} has packed run lengths with the characters {strangers[:5]}; COCO's code has "
            "those from '0' to 'o' only: write the mask again."
        )
    digits = np.frombuffer(text.encode("ascii"), dtype=np.uint8).astype(np.int64) - ord("0")
    is_last = digits < 32
    starts = np.flatnonzero(np.insert(is_last, 0, True))  # one more than there are whole numbers
    lengths = np.diff(starts)
    if starts[-1] != len(digits) or lengths.max(initial=0) > len(PLACES):
        raise ValueError(
            f"{name} has packed run lengths {shortened(packed)} that break off within a number or "
            f"hold one of more than {len(PLACES)} characters: write the mask again."
        )
    place = np.arange(len(digits)) - np.repeat(starts[:-1], lengths)
    # The fifth bit of a number's last digit counts as minus.
    signed = (digits & 31) - 32 * (is_last & (digits >= 16))
    sums = np.append(0, np.cumsum(signed << 5 * place))
    numbers = np.diff(sums[starts])
    numbers[1::2] = numbers[1::2].cumsum()
    numbers[2::2] = numbers[2::2].cumsum()
    return numbers


def _flat_numbers(values: Any, kind: type[int] | type[float], problem: str) -> np.ndarray:
    """(n,) int64 or float64; TypeError says `problem` unless `values` is a flat list of `kind`."""
    values = values.tolist() if hasattr(values, "tolist") else values
    try:
        array = np.asarray(values if isinstance(values, (list, tuple)) else None)
    except (ValueError, TypeError, OverflowError):  # a ragged list
        raise TypeError(problem) from None
    if array.ndim != 1 or (array.size and array.dtype.kind not in {int: "iu", float: "iuf"}[kind]):
        raise TypeError(problem)
    return array.astype(kind)


def _checked_mask(mask: Tensor) -> np.ndarray:
    """(H, W) bool array."""
    if not isinstance(mask, Tensor):
        raise TypeError(f"the mask is a {type(mask).__name__}; give a tensor (H, W).")
    if mask.ndim != 2 or not ((mask == 0) | (mask == 1)).all():
        raise ValueError(
            f"the mask has shape {tuple(mask.shape)} and type {mask.dtype}; give one mask (H, W) "
            "of bool or of 0 and 1, such as `probabilities > 0.5`."
        )
    return mask.detach().cpu().numpy().astype(bool)
