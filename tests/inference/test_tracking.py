"""Ids of tracked objects: they survive crossings and occlusion, and end when an object leaves."""

import builtins
from typing import Any

import numpy as np
import pytest
import torch

from hf_detr import ObjectTracker, draw_predictions
from hf_detr.inference.drawing import GREY
from hf_detr.inference.prediction_lines import describe

FRAME_RATE = 10


def found(*objects: tuple[float, float, float]) -> dict[str, Any]:
    """A result with boxes of 40 x 60 pixels around (x, y), with scores."""
    boxes = [[x - 20, y - 30, x + 20, y + 30] for x, y, _ in objects]
    return {
        "scores": torch.tensor([score for *_, score in objects]),
        "labels": torch.zeros(len(objects), dtype=torch.int64),
        "boxes": torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4),
    }


def found_classes(**objects: tuple[float, float, float]) -> dict[str, Any]:
    """A result as of `found`, of a dog and a car, in the order of the arguments."""
    labels = torch.tensor([("dog", "car").index(name) for name in objects], dtype=torch.int64)
    return {**found(*objects.values()), "labels": labels}


def track(tracker: ObjectTracker, *objects: tuple[float, float, float]) -> list[int]:
    """The ids of one more frame."""
    return tracker.update(found(*objects))["track_ids"].tolist()


def test_ids_stay_through_a_crossing() -> None:
    """Two objects pass each other; the hidden one has a low score, or isn't found at all.

    Their order in the results changes in every frame.
    """
    pytest.importorskip("trackers")
    tracker, jitter = ObjectTracker(0.5, FRAME_RATE), np.random.default_rng(0)
    ids: dict[str, set[int]] = {"front": set(), "behind": set()}
    for frame in range(50):
        front, behind = 40 + 5 * frame, 290 - 5 * frame
        distance = abs(front - behind)
        objects = {"front": (front, 100, 0.6)}
        if distance >= 20:
            objects["behind"] = (behind, 110, 0.3 if distance < 35 else 0.55)
        names = list(objects)[:: 1 if frame % 2 else -1]
        moved = [(x + jitter.normal(), y + jitter.normal(), s) for x, y, s in objects.values()]
        given = dict(zip(objects, moved, strict=True))
        for name, one in zip(names, track(tracker, *(given[n] for n in names)), strict=True):
            assert (one == -1) == (frame == 0)
            ids[name].add(one)
    assert sorted(map(sorted, ids.values())) == [[-1, 0], [-1, 1]]


def test_classes_that_cross_keep_their_ids() -> None:
    """A dog and a car pass each other, closer to the other's place than to their own."""
    pytest.importorskip("trackers")
    tracker = ObjectTracker(0.5, FRAME_RATE)
    ids: dict[int, set[int]] = {0: set(), 1: set()}
    for frame in range(30):
        objects = {"dog": (40 + 8 * frame, 100, 0.6), "car": (272 - 8 * frame, 100, 0.6)}
        if frame in (13, 14, 15):  # the one behind isn't found, and the other one jumps
            objects = {"dog": objects["car"]} if frame == 14 else {"car": objects["dog"]}
        if frame % 2:
            objects = dict(reversed(objects.items()))
        result = tracker.update(found_classes(**objects))
        for label, one in zip(result["labels"].tolist(), result["track_ids"].tolist(), strict=True):
            ids[label].add(one)
    assert len(ids[0] - {-1}) == len(ids[1] - {-1}) == 1 and not ids[0] & ids[1] - {-1}


def test_a_track_does_not_continue_with_another_class() -> None:
    """A car where a dog was has an id of its own, and the dog has its own again afterwards."""
    pytest.importorskip("trackers")
    tracker, place = ObjectTracker(0.5, FRAME_RATE), (100, 100, 0.6)
    seen = ["dog"] * 3 + ["car"] * 3 + ["dog"] * 2
    ids = [tracker.update(found_classes(**{name: place}))["track_ids"].tolist() for name in seen]
    assert ids == [[-1], [0], [0], [-1], [1], [1], [0], [0]]
    low = tracker.update(found_classes(car=(100, 100, 0.3), dog=place))
    assert low["track_ids"].tolist() == [1, 0]


def test_an_object_whose_class_always_changes_has_no_id() -> None:
    """It is in the results of every frame all the same, and another one's track isn't disturbed."""
    pytest.importorskip("trackers")
    tracker, dog = ObjectTracker(0.5, FRAME_RATE), (300, 100, 0.6)
    for frame in range(6):
        result = found((100, 100, 0.6), dog)
        result["labels"] = torch.tensor([frame % 2, 0])
        assert tracker.update(result)["track_ids"].tolist() == [-1, 0 if frame else -1]


def test_an_object_that_leaves_loses_its_id() -> None:
    """After less than a second it has its id again, after more than that another one."""
    pytest.importorskip("trackers")
    tracker = ObjectTracker(0.5, FRAME_RATE)
    here = (100, 100, 0.6)
    assert [track(tracker, here) for _ in range(3)] == [[-1], [0], [0]]
    assert [track(tracker) for _ in range(5)] == [[]] * 5
    assert track(tracker, here) == [0]
    assert [track(tracker) for _ in range(15)] == [[]] * 15
    assert [track(tracker, here) for _ in range(2)] == [[-1], [1]]


def test_low_scores_continue_tracks_only() -> None:
    """An object below the threshold starts no track, and is dropped unless it continues one."""
    pytest.importorskip("trackers")
    tracker = ObjectTracker(0.5, FRAME_RATE)
    assert tracker.lowest_score == 0.25
    low = (300, 100, 0.4)
    assert [track(tracker, low, (100, 100, 0.6)) for _ in range(3)] == [[-1], [0], [0]]
    result = tracker.update(found((100, 100, 0.3), low))
    assert result["track_ids"].tolist() == [0] and result["scores"].tolist() == [pytest.approx(0.3)]
    assert result["boxes"].tolist() == [[80, 70, 120, 130]]


def test_ids_are_in_lines_and_drawings() -> None:
    """An object's colour is its id's whatever its class; without an id it is grey."""
    result = {**found((40, 40, 0.9), (100, 40, 0.8)), "track_ids": torch.tensor([3, -1])}
    lines = [one["track_id"] for one in describe(result, {0: "cat"})["objects"]]
    assert lines == [3, None]

    def colors(**changes: Any) -> list[tuple[int, ...]]:
        pixels = np.asarray(
            draw_predictions(np.zeros((90, 140, 3), np.uint8), {**result, **changes}, {})
        )
        return [tuple(pixels[60, x].tolist()) for x in (20, 80)]

    assert colors()[1] == GREY
    assert colors(labels=torch.tensor([5, 5])) == colors()
    assert colors(track_ids=torch.tensor([4, -1]))[0] not in (colors()[0], GREY, (0, 0, 0))


def test_missing_library_is_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    """It says what to install."""
    real = builtins.__import__

    def without(name: str, *args: Any, **kwargs: Any) -> Any:
        if name == "trackers":
            raise ImportError(name)
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(ImportError, match=r"pip install 'hf_detr\[track\]'"):
        ObjectTracker()


def test_classes_with_thresholds_of_their_own() -> None:
    """A track starts at the threshold of the object's class."""
    pytest.importorskip("trackers")
    tracker = ObjectTracker(torch.tensor([0.2, 0.8]), FRAME_RATE)
    torch.testing.assert_close(tracker.lowest_score, torch.tensor([0.1, 0.4]))
    frame = found((100, 100, 0.25), (200, 100, 0.7))
    frame["labels"] = torch.tensor([0, 1])
    assert tracker.update(frame)["labels"].tolist() == [0]
    assert tracker.update(frame)["track_ids"].tolist() == [0]
