"""Tests which results of tiles are the same object."""

import numpy as np
import pytest
import torch

from hf_detr.data.tile_grid import tile_windows
from hf_detr.inference.tiles import find_objects

Part = tuple[int, list[float]]  # tile, and box in pixels of the image

# Two tiles with x from 0 to 100 and from 80 to 180; four tiles that share x and y from 80 to 100.
SIDE_BY_SIDE = tile_windows((100, 180), 100)
FOUR = tile_windows((180, 180), 100)


def objects_of(
    windows: np.ndarray,
    parts: list[Part],
    scores: list[float] | None = None,
    labels: list[int] | None = None,
) -> list[list[int]]:
    """Rows of the parts of each object."""
    return find_objects(
        windows,
        torch.tensor([tile for tile, _ in parts]),
        torch.tensor(scores or [0.9] * len(parts)),
        torch.tensor(labels or [0] * len(parts)),
        torch.tensor([box for _, box in parts], dtype=torch.float32),
    )


def test_the_windows_are_as_the_tests_say() -> None:
    """Boxes below refer to these borders."""
    assert SIDE_BY_SIDE.tolist() == [[0, 0, 100, 100], [80, 0, 180, 100]]
    assert len(FOUR) == 4 and FOUR[3].tolist() == [80, 80, 180, 180]


@pytest.mark.parametrize("scores", [[0.6, 0.9], [0.9, 0.6]])
def test_the_tile_that_shows_all_counts(scores: list[float]) -> None:
    """What the left tile's border cuts is left to the right tile, whatever the scores are."""
    parts = [(0, [85, 10, 100, 30]), (1, [85, 10, 130, 30])]
    assert objects_of(SIDE_BY_SIDE, parts, scores) == [[1]]
    assert objects_of(SIDE_BY_SIDE, parts, scores, [0, 1]) == [[1]]  # of the part, all is guessed


def test_slivers_are_left_to_the_tile_that_shows_more() -> None:
    """Also if it found the object a bit too small, so that they don't overlap."""
    assert objects_of(SIDE_BY_SIDE, [(0, [40, 10, 79.5, 30]), (1, [80, 10, 82, 30])]) == [[0]]


def test_two_whole_ones_are_one_object() -> None:
    """The better one of both counts; those of different classes are two objects."""
    parts = [(0, [83, 10, 97, 30]), (1, [83, 11, 96, 30])]
    assert objects_of(SIDE_BY_SIDE, parts, [0.6, 0.9]) == [[1]]
    assert objects_of(SIDE_BY_SIDE, parts, [0.9, 0.6]) == [[0]]
    assert objects_of(SIDE_BY_SIDE, parts, [0.6, 0.9], [0, 1]) == [[1], [0]]


def test_objects_larger_than_the_overlap_are_unions() -> None:
    """Parts that are cut on both sides of the overlap and continue each other are one object."""
    parts = [(0, [20, 10, 100, 30]), (1, [80, 9, 150, 31])]
    assert sorted(objects_of(SIDE_BY_SIDE, parts)[0]) == [0, 1]
    assert objects_of(SIDE_BY_SIDE, parts, None, [0, 1]) == [[0], [1]]
    apart = [(0, [20, 10, 100, 30]), (1, [80, 40, 150, 60])]
    assert objects_of(SIDE_BY_SIDE, apart) == [[0], [1]]


def test_three_tiles_show_one_object() -> None:
    """An object over a whole tile has a part in it that is cut on both sides."""
    windows = tile_windows((100, 260), 100)
    assert len(windows) == 3
    parts = [(0, [20, 10, 100, 30]), (1, [80, 10, 180, 30]), (2, [160, 10, 200, 30])]
    assert sorted(objects_of(windows, parts)[0]) == [0, 1, 2]


def test_neighbours_stay_apart() -> None:
    """Touching and overlapping objects of one class in the overlap, whole or cut, aren't joined."""
    touching = [
        *((0, [60, 10, 90, 30]), (0, [90, 10, 100, 30])),
        *((1, [80, 10, 90, 30]), (1, [90, 10, 120, 30])),
    ]
    assert sorted(objects_of(SIDE_BY_SIDE, touching)) == [[0], [3]]
    # Where both tiles see, their IoU is 0.65; that of the whole boxes is 0.15.
    overlapping = [(0, [50, 10, 98, 30]), (1, [85, 10, 130, 30])]
    assert sorted(objects_of(SIDE_BY_SIDE, overlapping)) == [[0], [1]]


def test_an_object_has_one_part_in_a_tile() -> None:
    """Two objects that cover each other by more than a half are two in both tiles."""
    parts = [
        *((0, [82, 10, 96, 30]), (0, [84, 12, 97, 32])),
        *((1, [84, 12, 97, 32]), (1, [82, 10, 96, 30])),
    ]
    assert objects_of(SIDE_BY_SIDE, parts, [0.9, 0.8, 0.7, 0.6]) == [[0], [1]]


def test_uncertain_queries_do_not_part_certain_ones() -> None:
    """A model's queries of low scores beside an object can be nearer to what another tile found."""
    parts = [
        *((0, [82, 10, 96, 30]), (0, [82, 12, 97, 31])),
        *((1, [82, 12, 97, 32]), (1, [82, 10, 96, 31])),
    ]
    assert objects_of(SIDE_BY_SIDE, parts, [0.9, 0.1, 0.8, 0.2]) == [[0], [3]]


def test_uncertain_parts_do_not_change_certain_objects() -> None:
    """A lower threshold leaves the score and box of what a higher one finds."""
    whole = [(0, [75, 10, 100, 30]), (1, [83, 10, 110, 30])]
    assert objects_of(SIDE_BY_SIDE, whole, [0.9, 0.1]) == [[0]]
    cut = [(0, [60, 10, 99, 30]), (1, [80, 10, 120, 32])]
    assert objects_of(SIDE_BY_SIDE, cut, [0.1, 0.9]) == [[1]]
    assert objects_of(SIDE_BY_SIDE, cut, [0.6, 0.9]) == [[0, 1]]


def test_corners_where_four_tiles_meet() -> None:
    """A small object is seen by all four, a larger one whole by one, the largest by none."""
    small = [(tile, [84, 85, 96, 95]) for tile in range(4)]
    assert objects_of(FOUR, small, [0.5, 0.6, 0.8, 0.7]) == [[2]]
    box = [85, 85, 130, 130]
    one = [(tile, clipped(box, FOUR[tile])) for tile in range(4)]
    assert objects_of(FOUR, one, [0.9, 0.9, 0.9, 0.5]) == [[3]]
    box = [30, 30, 150, 150]
    none = [(tile, clipped(box, FOUR[tile])) for tile in range(4)]
    assert [sorted(rows) for rows in objects_of(FOUR, none)] == [[0, 1, 2, 3]]


def clipped(box: list[float], window: np.ndarray) -> list[float]:
    """The part of a box on a tile."""
    low, high = np.maximum(box[:2], window[:2]), np.minimum(box[2:], window[2:])
    return [*low.tolist(), *high.tolist()]


def test_no_overlap_joins_nothing() -> None:
    """Halves of one object and two objects can't be told apart, so they stay."""
    windows = tile_windows((100, 200), 100, 0)
    parts = [(0, [60, 10, 100, 30]), (1, [100, 10, 120, 30])]
    assert objects_of(windows, parts) == [[0], [1]]
