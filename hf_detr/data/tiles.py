"""Data sets whose images are the tiles of large images."""

import warnings
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import PIL.Image

from .annotation_table import AnnotationTable
from .dataset import DetectionDataset, check_size
from .image_source import ImageSource, read_pixels
from .table_parts import PER_OBJECT
from .tile_grid import OVERLAP, check_tiles, tile_windows

# Id of the image, number of the tile in it, and the windows of all its tiles
TilePlace = tuple[int, int, np.ndarray]

# Tiles are trained in random order; each would otherwise take the decoding of a whole photograph.
KEPT_BYTES = 2**28  # of decoded images, and of maps, in each process that loads training tiles
PIXEL_BYTES = {"1": 1, "L": 1, "P": 1, "I;16": 2}  # of PIL's modes; others, as RGB, have 4
MIN_VISIBLE = 0.5  # of an object's box, on a tile where it is a target


class TileImages:
    """Tiles of the images of another source; the latest images stay decoded for their other tiles.

    Args:
        source: the images, or segment maps.
        images: index of each tile's image.
        windows: (n, 4), x0, y0, x1, y1 of each tile in pixels of the upright image.
        is_whole: (n,), whether a tile is its whole image.
        image_hw: (m, 2), annotated height and width of each image of the source.
        are_maps: whether the source has segment maps, whose numbers aren't colors.
        kept_bytes: memory for decoded images in each process; the latest one is kept in any case.
    """

    def __init__(
        self,
        source: ImageSource,
        images: np.ndarray,
        windows: np.ndarray,
        is_whole: np.ndarray,
        image_hw: np.ndarray,
        are_maps: bool = False,
        kept_bytes: int = 0,
    ) -> None:
        self._source, self._images, self._windows = source, images, windows
        self._is_whole, self._image_hw, self._are_maps = is_whole, image_hw, are_maps
        self._kept_bytes = kept_bytes
        self._kept: dict[int, PIL.Image.Image] = {}  # decoded images, the latest one last

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_kept": {}}  # workers needn't get them

    def __len__(self) -> int:
        return len(self._images)

    def name(self, index: int) -> str:
        name = self._source.name(int(self._images[index]))
        if self._is_whole[index]:
            return name
        x0, y0, _, _ = self._windows[index].tolist()
        return f"{name}, tile at x {x0}, y {y0}"

    def open(self, index: int) -> PIL.Image.Image:
        image = int(self._images[index])
        if self._is_whole[index]:
            return self._source.open(image)
        # Threads may share this object: one that doesn't find an image here decodes it.
        decoded = self._kept.pop(image, None) or self._decoded(image)
        self._kept[image] = decoded
        self._drop_oldest()
        return decoded.crop(self._windows[index].tolist())

    def stamp(self, index: int) -> str:
        stamp = self._source.stamp(int(self._images[index]))
        return f"{stamp} {self._windows[index].tolist()}"

    def _drop_oldest(self) -> None:
        room = self._kept_bytes
        for number, (image, decoded) in enumerate(reversed(list(self._kept.items()))):
            room -= decoded.width * decoded.height * PIXEL_BYTES.get(decoded.mode, 4)
            if number and room < 0:
                self._kept.pop(image, None)

    def _decoded(self, image: int) -> PIL.Image.Image:
        if self._are_maps:
            with self._source.open(image) as opened:
                decoded = opened.copy()
        else:  # upright RGB of 8 bits, as the whole image would be
            pixels = read_pixels(self._source, image)
            decoded = PIL.Image.fromarray(pixels.permute(1, 2, 0).numpy())
        # Else tiles outside of it would be black.
        check_size(self._source, image, decoded.size[::-1], tuple(self._image_hw[image].tolist()))
        return decoded


def tile_dataset(
    dataset: DetectionDataset,
    tiles: int,
    overlap: float = OVERLAP,
    with_objects: bool = True,
    kept_bytes: int = 0,
) -> tuple[DetectionDataset, list[TilePlace]]:
    """Return a data set in which each tile of an image is an image, with new image ids 0, 1, ….

    Boxes are clipped to the tiles, and belong to those where at least half of them is visible.

    Args:
        dataset: the data set. Its masks are cut only if they are those of segment maps.
        tiles, overlap: as in `tile_windows`.
        with_objects: whether the tiles have objects and masks.
        kept_bytes: as in `TileImages`, for tiles that are read in random order.

    Returns:
        The data set, with the transform of the given one, and the place of each tile.

    Raises:
        ValueError: if tiles or overlap are invalid, or masks can't be cut.
    """
    check_tiles(tiles, overlap)
    if with_objects and dataset.masks and dataset.segment_maps is None:
        raise ValueError(
            "Only masks of segment maps can be cut into tiles, not polygons and run lengths; read "
            "the data with masks=False (without --masks)."
        )
    table = dataset.table
    windows = [tile_windows(size_hw, tiles, overlap) for size_hw in table.image_hw]
    places = [
        (int(image_id), number, some)
        for image_id, some in zip(table.image_ids, windows, strict=True)
        for number in range(len(some))
    ]
    images = np.repeat(np.arange(len(table)), list(map(len, windows)))
    joined = np.concatenate([np.empty((0, 4), dtype=np.int64), *windows])
    is_whole = np.array([len(some) == 1 for _, _, some in places], dtype=bool)
    cut = images, joined, is_whole, table.image_hw
    maps = dataset.segment_maps if with_objects else None
    result = DetectionDataset(
        _cut_table(table, windows, with_objects),
        TileImages(dataset.images, *cut, kept_bytes=kept_bytes),
        None if maps is None else TileImages(maps, *cut, True, kept_bytes),
        dataset.masks and with_objects,
        dataset.seed,
    )
    result.set_transform(dataset.transform)
    return result, places


def _cut_table(
    table: AnnotationTable, windows: Sequence[np.ndarray], with_objects: bool
) -> AnnotationTable:
    rows, boxes, shares, counts = [], [], [], []
    num_lost = 0
    for image, some in enumerate(windows):
        own = np.array(table.rows(image), dtype=np.int64) if with_objects else np.empty(0, np.int64)
        kept, clipped, visible = _objects_on_tiles(table.boxes_xywh[own], some)
        can_be_seen = (visible > 0).any(0) & ~table.is_crowd[own]
        num_lost += int((can_be_seen & ~kept.any(0)).sum())
        rows += [own[on_tile] for on_tile in kept]
        boxes.append(clipped[kept])
        shares.append(visible[kept])
        counts += kept.sum(1).tolist()
    if num_lost:
        warnings.warn(
            f"No tile shows half of {num_lost} of {len(table.ids)} objects, so they aren't "
            "trained; use larger tiles.",
            stacklevel=4,
        )
    taken = np.concatenate([np.empty(0, np.int64), *rows])
    columns = {name: getattr(table, name)[taken] for name in PER_OBJECT}
    columns["boxes_xywh"] = np.concatenate([np.empty((0, 4)), *boxes])
    columns["areas"] = columns["areas"] * np.concatenate([np.empty(0), *shares])
    sizes_hw = [(y1 - y0, x1 - x0) for some in windows for x0, y0, x1, y1 in some.tolist()]
    first = np.cumsum([0, *map(len, windows)])  # tile of each image
    problems = [
        problem if problem.image is None else replace(problem, image=int(first[problem.image]))
        for problem in table.problems
    ]
    return replace(
        table,
        image_ids=np.arange(len(sizes_hw)),
        image_hw=np.array(sizes_hw, dtype=np.int64).reshape(-1, 2),
        offsets=np.cumsum([0, *counts]),
        segmentations=None,
        problems=tuple(problems),
        **columns,
    )


def _objects_on_tiles(
    boxes_xywh: np.ndarray, windows: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return which objects each tile has (k, m), their boxes there, and how much is visible."""
    if len(windows) == 1:  # errors and all
        shape = 1, len(boxes_xywh)
        return np.ones(shape, dtype=bool), boxes_xywh[None], np.ones(shape)
    size = windows[:, 2:].max(0)
    low = boxes_xywh[:, :2].clip(0, size)
    high = (boxes_xywh[:, :2] + boxes_xywh[:, 2:]).clip(0, size)
    start = np.maximum(low, windows[:, None, :2])
    inside = (np.minimum(high, windows[:, None, 2:]) - start).clip(0)
    area = (high - low).prod(-1)
    visible = np.divide(inside.prod(-1), area, out=np.zeros(inside.shape[:2]), where=area > 0)
    clipped = np.concatenate([start - windows[:, None, :2], inside], axis=-1)
    return visible >= MIN_VISIBLE, clipped, visible
