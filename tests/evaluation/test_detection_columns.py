"""Annotated and detected objects in flat arrays."""

import pickle

import numpy as np

from hf_detr.evaluation.detection_columns import DetectionColumns, join_columns


def part(images: list[int], counts: list[int], first: int) -> DetectionColumns:
    """Make detections whose values are numbered from `first`."""
    numbers = np.arange(first, first + sum(counts))
    return DetectionColumns(
        images=np.array(images, np.int32),
        counts=np.array(counts, np.int32),
        scores=numbers.astype(np.float32),
        labels=numbers.astype(np.int32),
        boxes_xyxy=np.repeat(numbers[:, None], 4, axis=1).astype(np.float32),
        rles=np.array([b"%d" % number for number in numbers], dtype=object),
    )


def test_join_sorts_by_image_and_keeps_the_first() -> None:
    """Detections stay in order within their image; a repeated image counts once."""
    parts = [part([5, 0], [2, 1], 0), part([7, 5, 2], [1, 3, 0], 10), part([], [], 20)]
    joined = join_columns(parts)
    assert joined.images.tolist() == [0, 2, 5, 7] and joined.counts.tolist() == [1, 0, 2, 1]
    assert joined.image_of_rows().tolist() == [0, 5, 5, 7]
    assert joined.scores.tolist() == joined.labels.tolist() == [2, 0, 1, 10]
    assert joined.boxes_xyxy.tolist() == [[n] * 4 for n in [2, 0, 1, 10]]
    assert joined.rles.tolist() == [b"2", b"0", b"1", b"10"]
    again = join_columns([joined])
    for name, column in vars(joined).items():
        assert np.array_equal(getattr(again, name), column)


def test_join_of_nothing() -> None:
    """A process without images has empty columns of the same types."""
    empty, full = join_columns([]), join_columns([part([1], [2], 0)])
    for name, column in vars(empty).items():
        assert len(column) == 0 and column.dtype == getattr(full, name).dtype


def test_float64_stays_exact() -> None:
    """Scores that float32 would round keep their order."""
    exact = part([1], [1], 0)
    exact = DetectionColumns(**{**vars(exact), "scores": np.array([1 / 3])})
    assert join_columns([part([0], [1], 0), exact]).scores[1] == 1 / 3


def test_detections_are_small_to_send() -> None:
    """A box takes no more than its numbers, and no Python objects."""
    boxes = part(list(range(100)), [10] * 100, 0)
    boxes = DetectionColumns(**{**vars(boxes), "rles": np.array([b""] * 1000, dtype=object)})
    assert len(pickle.dumps(boxes)) < 1000 * 30 + 2000
