"""Which results of overlapping tiles are the same object.

Neighbouring tiles overlap, so an object near an inner border is found several times. In one tile a
model of this package finds an object once, so only results of different tiles can be the same
object. Three rules decide:

1. What a border cuts, but another tile shows completely, is left to that tile.
2. Results of the same class are one object if their boxes have an IoU of at least a half: those of
   two whole objects as they are, others as far as the tile that cuts one shows the other; or if
   their segments have it where both tiles see. An object has at most one part in a tile; those that
   are most similar and certain are joined first.
3. Of the parts of an object, the best whole one counts. An object that is larger than the overlap
   has only cut parts; it is their union. Parts with less than half of the best score don't count:
   they are of queries that hardly found it, and would make a certain object's box or score worse.
"""

from collections.abc import Callable, Iterator

import numpy as np
import torch
from torch import Tensor

from ..ops.box_ops import box_iou

SAME_OBJECT = 0.5  # IoU
CERTAIN_PART = 0.5  # of the best part's score
MARGIN = 0.02  # of a tile's side: boxes this near to a border are taken as cut


def find_objects(
    windows: np.ndarray,
    tile_of: Tensor,
    scores: Tensor,
    labels: Tensor,
    boxes: Tensor,
    similarity: Callable[[Tensor, Tensor], Tensor] | None = None,
) -> list[list[int]]:
    """Find out which results of tiles are the same object; see the rules above.

    Args:
        windows: (t, 4), x0, y0, x1, y1 of each tile.
        tile_of: (n,), the tile of each result.
        scores, labels: (n,).
        boxes: (n, 4) as (x0, y0, x1, y1) in pixels of the image.
        similarity: returns the IoU (a, b) of rows (a,) of a tile and (b,) of another one; None is
            that of their boxes.

    Returns:
        For each object, best scores first, the rows of the results that it is the union of.
    """
    frames = torch.from_numpy(windows).to(boxes)
    inner = _inner_borders(frames)
    is_whole, is_left = _cut_or_whole(frames, inner, tile_of, boxes)
    objects = {row: [row] for row in is_left.nonzero()[:, 0].tolist()}
    object_of = {row: row for row in objects}
    tiles = tile_of.tolist()

    def box_similarity(rows: Tensor, others: Tensor) -> Tensor:
        one, two = boxes[rows, None], boxes[None, others]
        # What is cut can only be compared with what its tile shows of the other one.
        one_seen = torch.where(
            is_whole[others][:, None], one, _clip(one, frames[tile_of[others[0]]])
        )
        two_seen = torch.where(
            is_whole[rows][:, None, None], two, _clip(two, frames[tile_of[rows[0]]])
        )
        return box_iou(one_seen, two_seen)[0]

    rows_of = [((tile_of == tile) & is_left).nonzero()[:, 0] for tile in range(len(frames))]
    pairs = _same(frames, rows_of, scores, labels, similarity or box_similarity)
    for _, one, other in sorted(pairs, reverse=True):
        first, second = object_of[one], object_of[other]
        mine, others = objects[first], objects[second]
        if {tiles[row] for row in mine} & {tiles[row] for row in others}:
            continue  # also if they are joined already
        mine += objects.pop(second)
        object_of.update(dict.fromkeys(others, first))
    best = scores.tolist()
    chosen = []
    for parts in objects.values():
        least = CERTAIN_PART * max(best[row] for row in parts)
        parts = [row for row in parts if best[row] >= least]
        whole = [row for row in parts if is_whole[row]]
        chosen.append([max(whole, key=best.__getitem__)] if whole else parts)
    return sorted(chosen, key=lambda parts: -max(best[row] for row in parts))


def _inner_borders(frames: Tensor) -> Tensor:
    """Return the frames of tiles (t, 4), infinitely wide where they end with the image."""
    low, high = frames[:, :2], frames[:, 2:]
    low = low.masked_fill(low == low.amin(0), -torch.inf)
    high = high.masked_fill(high == high.amax(0), torch.inf)
    margin = MARGIN * (frames[:, 2:] - frames[:, :2])
    return torch.cat([low + margin, high - margin], dim=1)


def _cut_or_whole(
    frames: Tensor, inner: Tensor, tile_of: Tensor, boxes: Tensor
) -> tuple[Tensor, Tensor]:
    """Return whether no inner border cuts a box (n,), and whether no other tile shows it better."""
    is_whole = _is_inside(boxes, inner[tile_of])
    is_left = is_whole.clone()
    for tile in range(len(frames)):
        rows = ((tile_of == tile) & ~is_whole).nonzero()[:, 0]
        around = inner[_overlapping(frames, tile)]
        is_left[rows] = ~_is_inside(boxes[rows, None], around).any(1)
    return is_whole, is_left


def _is_inside(boxes: Tensor, frames: Tensor) -> Tensor:
    return ((boxes[..., :2] >= frames[..., :2]) & (boxes[..., 2:] <= frames[..., 2:])).all(-1)


def _overlapping(frames: Tensor, tile: int) -> Tensor:
    """Return the other tiles that share pixels with a tile."""
    shared = torch.minimum(frames[:, 2:], frames[tile, 2:]) - torch.maximum(
        frames[:, :2], frames[tile, :2]
    )
    found = (shared > 0).all(1)
    found[tile] = False
    return found.nonzero()[:, 0]


def _same(
    frames: Tensor,
    rows_of: list[Tensor],
    scores: Tensor,
    labels: Tensor,
    similarity: Callable[[Tensor, Tensor], Tensor],
) -> Iterator[tuple[float, int, int]]:
    """Yield IoU times scores, and the rows, of pairs of rows that could be the same object."""
    for tile, rows in enumerate(rows_of):
        for other in _overlapping(frames, tile).tolist():
            others = rows_of[other]
            if other < tile or not len(rows) or not len(others):
                continue
            iou = similarity(rows, others).nan_to_num(0)
            iou = iou.masked_fill(labels[rows, None] != labels[others], 0)
            first, second = (iou >= SAME_OBJECT).nonzero(as_tuple=True)
            one, two = rows[first], others[second]
            # The scores are for queries of low scores beside those that found the same object.
            found = iou[first, second] * scores[one] * scores[two], one, two
            yield from zip(*(column.tolist() for column in found), strict=True)


def _clip(boxes: Tensor, frame: Tensor) -> Tensor:
    low, high = frame[:2].repeat(2), frame[2:].repeat(2)
    return torch.minimum(torch.maximum(boxes, low), high)
