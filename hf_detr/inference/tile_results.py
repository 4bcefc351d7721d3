"""Joins the results of the tiles of an image; see `tiles` for the rules."""

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .tiles import find_objects

Result = dict[str, Any]
Crop = tuple[int, int, Tensor]  # x0, y0, and a part (h, w) of a mask


class JoinedMasks:
    """Masks (n, height, width) bool of objects, made as tensors when they are sliced.

    At full size, those of all objects of a large image can need gigabytes.

    Args:
        size_hw: height and width of the image.
        parts: for each object the crops that its mask is the union of.
    """

    def __init__(self, size_hw: tuple[int, int], parts: Sequence[Sequence[Crop]]) -> None:
        self.shape, self._parts = (len(parts), *size_hw), parts

    def __len__(self) -> int:
        return len(self._parts)

    def __getitem__(self, rows: slice) -> Tensor:
        parts = self._parts[rows]
        masks = torch.zeros(len(parts), *self.shape[1:], dtype=torch.bool)
        for mask, crops in zip(masks, parts, strict=True):
            for x, y, crop in crops:
                mask[y : y + len(crop), x : x + crop.shape[1]].logical_or_(crop)
        return masks


def crop_masks(masks: Tensor) -> list[Crop]:
    """Crop masks (n, h, w) bool to what isn't empty."""
    crops = []
    for mask in masks:
        rows, columns = mask.any(1).nonzero()[:, 0], mask.any(0).nonzero()[:, 0]
        y, x = (int(some[0]) if len(some) else 0 for some in (rows, columns))
        # Cloned, because a view would keep the whole mask.
        crops.append((x, y, mask[y : y + _length(rows), x : x + _length(columns)].clone()))
    return crops


def _length(found: Tensor) -> int:
    return int(found[-1] - found[0]) + 1 if len(found) else 0


def _moved(crop: Crop, x: int, y: int) -> Crop:
    return crop[0] + x, crop[1] + y, crop[2]


class TileResults:
    """Collects the results of tiles until all those of an image are there.

    Args:
        most: number of objects of each class that are kept; None keeps all.
    """

    def __init__(self, most: int | None = None) -> None:
        self.most = most
        self._found: defaultdict[Any, dict[int, Result]] = defaultdict(dict)

    def add(self, image: Any, number: int, windows: np.ndarray, result: Result) -> Result | None:
        """Add a tile's result; return that of the image if it was the last one.

        Arguments as in `join_tiles`, `image`, which identifies it, and the tile's number.
        """
        found = self._found[image]
        found[number] = {
            name: value.cpu() if isinstance(value, Tensor) else value
            for name, value in result.items()
        }
        if "masks" in result and len(windows) > 1:
            found[number]["masks"] = crop_masks(found[number]["masks"])
        if len(found) < len(windows):
            return None
        del self._found[image]
        return join_tiles(windows, [found[tile] for tile in range(len(windows))], self.most)


def join_batches(
    batches: Iterable[tuple[list[int], list[Result]]],
    places: Sequence[tuple[int, int, np.ndarray]] | None,
    most: int | None = None,
) -> Iterator[tuple[list[int], list[Result]]]:
    """Yield the ids and results of whole images from batches of tiles.

    Args:
        batches: indices of tiles, and their results; or those of images.
        places: for each tile the id of its image, its number in it, and the windows of all its
            tiles. None yields the batches as they are.
        most: as in `TileResults`.
    """
    if places is None:
        yield from batches
        return
    joining = TileResults(most)
    for tiles, results in batches:
        joined = [joining.add(*places[t], r) for t, r in zip(tiles, results, strict=True)]
        done = [index for index, result in enumerate(joined) if result is not None]
        yield [places[tiles[index]][0] for index in done], [joined[index] for index in done]


def join_tiles(
    windows: np.ndarray, results: Sequence[Mapping[str, Any]], most: int | None = None
) -> Result:
    """Join the results of an image's tiles to one of the same form, best scores first.

    Args:
        windows: (t, 4), x0, y0, x1, y1 of each tile in pixels of the image.
        results: for each tile `scores` (n,), `labels` (n,), `boxes` (n, 4) as (x0, y0, x1, y1), and
            optionally `masks` of `crop_masks`, which become `JoinedMasks`; or `segmentation` (h, w)
            and `segments_info` of post-processed segments; or both.
        most: number of objects of each class that are kept; None keeps all.
    """
    if len(windows) == 1:
        return dict(results[0])
    joined: Result = {}
    if "boxes" in results[0]:
        joined |= _join_objects(windows, results, most)
    if "segmentation" in results[0]:
        joined |= _join_segments(windows, results)
    return joined


def _join_objects(
    windows: np.ndarray, results: Sequence[Mapping[str, Any]], most: int | None
) -> Result:
    counts = torch.tensor([len(result["scores"]) for result in results])
    tile_of = torch.arange(len(results)).repeat_interleave(counts)
    parts = {name: [one[name] for one in results] for name in ("scores", "labels", "boxes")}
    scores, labels, boxes = map(torch.cat, parts.values())
    boxes = boxes + torch.from_numpy(windows[:, [0, 1, 0, 1]]).to(boxes)[tile_of]
    objects = find_objects(windows, tile_of, scores, labels, boxes)
    if most is not None:
        objects = _best_of_each_class(objects, labels.tolist(), most)
    unions = [torch.cat([boxes[rows, :2].amin(0), boxes[rows, 2:].amax(0)]) for rows in objects]
    best = [max(rows, key=scores.__getitem__) for rows in objects]
    joined = {
        "scores": scores[best],
        "labels": labels[best],
        "boxes": torch.stack(unions) if unions else boxes[:0],
    }
    if "masks" in results[0]:
        masks = [mask for result in results for mask in result["masks"]]
        width, height = windows[:, 2:].max(0).tolist()
        corners = windows[tile_of.numpy(), :2].tolist()
        parts = [[_moved(masks[row], *corners[row]) for row in rows] for rows in objects]
        joined["masks"] = JoinedMasks((height, width), parts)
    return joined


def _best_of_each_class(objects: list[list[int]], labels: list[int], most: int) -> list[list[int]]:
    numbers: defaultdict[int, int] = defaultdict(int)
    kept = []
    for rows in objects:
        numbers[labels[rows[0]]] += 1
        if numbers[labels[rows[0]]] <= most:
            kept.append(rows)
    return kept


def _view(image: Tensor, window: np.ndarray) -> Tensor:
    x0, y0, x1, y1 = window.tolist()
    return image[..., y0:y1, x0:x1]


def _join_segments(windows: np.ndarray, results: Sequence[Mapping[str, Any]]) -> Result:
    """Join segment maps: segments are painted over each other, those with the best scores last."""
    infos = [(tile, info) for tile, one in enumerate(results) for info in one["segments_info"]]
    masks = [results[tile]["segmentation"] == info["id"] for tile, info in infos]
    tile_of = torch.tensor([tile for tile, _ in infos], dtype=torch.int64)
    boxes = torch.tensor([_box_of(mask) for mask in masks]).reshape(-1, 4)
    boxes += torch.from_numpy(windows[:, [0, 1, 0, 1]]).to(boxes)[tile_of]
    scores = torch.tensor([info["score"] for _, info in infos])
    labels = torch.tensor([info["label_id"] for _, info in infos])
    width, height = windows[:, 2:].max(0).tolist()
    painted = torch.zeros(height, width, dtype=torch.int32)

    def similarity(rows: Tensor, others: Tensor) -> Tensor:
        frames = [windows[tile_of[some[0]]] for some in (rows, others)]
        low, high = np.maximum(*frames)[:2], np.minimum(*frames)[2:]
        shared = [np.concatenate([low, high]) - frame[[0, 1, 0, 1]] for frame in frames]
        one, two = (
            torch.stack([_view(masks[row], view) for row in some]).flatten(1).float()
            for some, view in zip((rows, others), shared, strict=True)
        )
        common = one @ two.T
        return common / (one.sum(1)[:, None] + two.sum(1) - common)

    objects = find_objects(windows, tile_of, scores, labels, boxes, similarity)
    objects = _fused(objects, infos)
    for number, rows in reversed(list(enumerate(objects, 1))):
        for row in rows:
            _view(painted, windows[tile_of[row]])[masks[row]] = number
    areas = painted.flatten().bincount(minlength=len(objects) + 1).tolist()
    seen = [number for number, area in enumerate(areas) if number and area]
    if not seen:  # as of an image without segments
        return {"segmentation": torch.full((height, width), -1.0), "segments_info": []}
    ids = torch.zeros(len(areas), dtype=torch.int32)
    ids[seen] = torch.arange(1, len(seen) + 1, dtype=torch.int32)
    segments = []
    for number in seen:
        best = max((infos[row][1] for row in objects[number - 1]), key=lambda info: info["score"])
        new = {"id": int(ids[number]), "area": areas[number]}
        segments.append({name: new.get(name, value) for name, value in best.items()})
    return {"segmentation": ids[painted], "segments_info": segments}


def _box_of(mask: Tensor) -> list[float]:
    """Return x0, y0, x1, y1 of a mask (h, w), zeros if it is empty."""
    rows, columns = (mask.any(axis).nonzero()[:, 0].tolist() for axis in (1, 0))
    if not rows:
        return [0.0] * 4
    return [float(side) for side in (columns[0], rows[0], columns[-1] + 1, rows[-1] + 1)]


def _fused(
    objects: list[list[int]], infos: Sequence[tuple[int, Mapping[str, Any]]]
) -> list[list[int]]:
    """Make the segments of a class that is fused one segment, as they are in each tile."""
    fused: dict[Any, list[int]] = {}
    for rows in objects:
        info = infos[rows[0]][1]
        fused.setdefault(info["label_id"] if info["was_fused"] else (rows[0],), []).extend(rows)
    return list(fused.values())
