"""Errors of a hand-made case, each known: kinds, confused classes, images, thresholds."""

from typing import Any

import numpy as np
import pytest
import torch

from hf_detr import CocoEvaluator
from hf_detr.evaluation.diagnosis import MOST_IMAGES, Diagnosis, LabelDoubt

BOX = [10.0, 10.0, 20.0, 20.0]  # left, top, width, height
NAMES = {3: "cat", 7: "dog", 9: "bird"}
Found = tuple[int, int, list[float], float]  # image, label, box, score


def diagnose(objects: list[tuple[int, int, list[float], int]], found: list[Found]) -> Diagnosis:
    """The diagnosis of objects (image, label, box, crowd) and detections in eight images."""
    annotations = [
        {"id": number, "image_id": image, "category_id": label, "bbox": box, "iscrowd": crowd}
        for number, (image, label, box, crowd) in enumerate(objects, 1)
    ]
    truth = {
        "images": [{"id": 100 + image, "height": 100, "width": 100} for image in range(8)],
        "categories": [{"id": label, "name": name} for label, name in NAMES.items()],
        "annotations": [{**one, "image_id": 100 + one["image_id"]} for one in annotations],
    }
    evaluator = CocoEvaluator(truth, diagnose=True)
    for image in range(8):
        own = [one for one in found if one[0] == image]
        boxes = torch.tensor([box for _, _, box, _ in own]).reshape(-1, 4)
        boxes[:, 2:] += boxes[:, :2]
        result = {
            "labels": torch.tensor([label for _, label, _, _ in own], dtype=torch.int64),
            "scores": torch.tensor([score for _, _, _, score in own]),
            "boxes": boxes,
        }
        evaluator.update([100 + image], [result])
    return evaluator.compute()["diagnosis"]


def shifted(by: float) -> list[float]:
    return [BOX[0] + by, *BOX[1:]]


@pytest.fixture(scope="module")
def errors() -> Diagnosis:
    """One error of every kind, above the thresholds, and detections that don't count."""
    objects = [
        *((image, 3, BOX, 0) for image in (0, 1, 2, 3)),
        (5, 7, [60.0, 60.0, 20.0, 20.0], 0),
        (5, 3, [0.0, 0.0, 40.0, 40.0], 1),  # a crowd
        (6, 7, BOX, 0),
        (7, 3, BOX, 0),
    ]
    found = [
        (0, 3, BOX, 0.9),
        (1, 7, BOX, 0.8),  # class
        (2, 3, shifted(10), 0.85),  # place: IoU 1/3
        (3, 3, BOX, 0.9),
        (3, 3, shifted(1), 0.85),  # duplicate
        (4, 7, BOX, 0.95),  # background
        (5, 3, [5.0, 5.0, 10.0, 10.0], 0.9),  # in a crowd
        (6, 7, BOX, 0.9),
        (7, 7, shifted(10), 0.88),  # class and place
        *((image, 9, BOX, 0.01) for image in range(8)),  # below every threshold
    ]
    # Found with lower scores than those errors, which are therefore above the thresholds.
    for number in range(8):
        label, box = (3, 7)[number % 2], [10.0 * number, 50.0, 8.0, 8.0]
        objects.append((0, label, box, 0))
        found.append((0, label, box, 0.7))
    return diagnose(objects, found)


def test_kinds_of_errors(errors: Diagnosis) -> None:
    """Each is counted as what it is; the dog of image 5 and the cat of image 7 are missed."""
    assert errors.errors == {
        "class": 1,
        "place": 1,
        "class and place": 1,
        "duplicate": 1,
        "background": 1,
        "missed": 2,
    }
    assert set(errors.gains) == set(errors.errors)
    assert errors.gains["class"] > errors.gains["background"] >= 0


def test_confusion_matrix(errors: Diagnosis) -> None:
    """Rows are targets; the last row has what is no target, without detections in crowds."""
    assert errors.names == ["cat", "dog", "bird"]
    expected = [
        [6, 1, 0, 2],  # a cat was found as a dog, and two were missed
        [0, 5, 0, 1],
        [0, 0, 0, 0],
        [2, 2, 0, 0],
    ]
    assert errors.confusion.tolist() == expected


def test_curves_and_thresholds(errors: Diagnosis) -> None:
    """A class without objects has no threshold, and -1 for precision, as in COCO."""
    assert set(errors.class_thresholds) == {"cat", "dog"} and errors.thresholds[2] is None
    assert errors.used_thresholds()[2] == 0.5
    cat = errors.curves[0]
    assert all(0.01 < score < 0.7 for score in errors.class_thresholds.values())
    assert cat.num_objects == 9
    assert cat.true_scores.tolist() == pytest.approx([0.7] * 4 + [0.9] * 2)
    assert len(cat.scores) == 8  # the one in the crowd isn't counted
    assert (errors.precision[2] == -1).all() and errors.precision.shape == (3, 101)
    recalls = np.arange(101) / 100
    expected = np.where(recalls <= 2 / 9, 1, np.where(recalls <= 6 / 9, 6 / 8, 0))
    assert errors.precision[0].tolist() == pytest.approx(expected.tolist())


def test_worst_images(errors: Diagnosis) -> None:
    """Those with the lowest F1 and then the most errors come first; perfect ones don't come."""
    ids = [image.image_id for image in errors.worst]
    assert ids == [101, 102, 107, 104, 105, 103]  # 100 and 106 have no error
    first = errors.worst[0]
    assert (first.num_true, first.num_false, first.num_missed) == (0, 1, 1)
    assert first.labels.tolist() == [7] and first.target_labels.tolist() == [3]
    assert first.scores.tolist() == pytest.approx([0.8])
    corners = [10.0, 10.0, 30.0, 30.0]
    assert first.boxes_xyxy.tolist() == [corners] == first.target_boxes_xyxy.tolist()
    crowded = errors.worst[ids.index(105)]
    assert crowded.target_labels.tolist() == [7]


def test_doubtful_targets(errors: Diagnosis) -> None:
    """Confident detections of another class, or without a target, the most confident first."""
    doubts = {image.image_id: image.doubts for image in errors.doubtful}
    assert list(doubts) == [104, 101]
    [background], [other] = doubts.values()
    assert background == LabelDoubt(7, pytest.approx(0.95), None)
    assert other == LabelDoubt(7, pytest.approx(0.8), 3)
    assert errors.num_doubtful == 2 and errors.num_images == 8


def test_unlikely_second_class_does_not_hide_a_doubt() -> None:
    """With sigmoids, a query has a score for the target's class too, often above its threshold."""
    some = diagnose(
        [(0, 3, BOX, 0), (1, 7, BOX, 0)], [(0, 7, BOX, 0.9), (0, 3, BOX, 0.3), (1, 7, BOX, 0.8)]
    )
    assert some.class_thresholds["cat"] < 0.3
    [image] = some.doubtful
    assert image.doubts == [LabelDoubt(7, pytest.approx(0.9), 3)]


def test_lists_are_limited() -> None:
    """Memory doesn't grow with the number of wrong images."""
    found = [(image, 3, [5.0 + 20 * n, 5.0, 9.0, 9.0], 0.9) for image in range(8) for n in range(3)]
    some = diagnose([(0, 3, BOX, 0)], found)
    assert len(some.worst) <= MOST_IMAGES and len(some.doubtful) <= MOST_IMAGES
    assert len(some.doubtful[0].doubts) == 3


@pytest.mark.parametrize("objects", [[], [(0, 3, BOX, 0)]])
@pytest.mark.parametrize("found", [[], [(1, 7, BOX, 0.9)]])
def test_nothing_at_all(objects: list[Any], found: list[Found]) -> None:
    """Without objects, without detections, or both, numbers are 0 and no threshold is made up."""
    nothing = diagnose(objects, found)
    assert nothing.class_thresholds == {}
    assert sum(nothing.errors.values()) == len(objects) + len(found)
    assert nothing.confusion.sum() == len(objects) + len(found)
    assert all(np.isfinite(list(nothing.gains.values())))


@pytest.mark.parametrize("wrong", [{"lvis": True}, {"iou_types": ("segm",)}])
def test_only_boxes_by_cocos_rules(wrong: dict[str, Any]) -> None:
    """Said before any image is looked at."""
    truth = {"images": [], "categories": [{"id": 0, "name": "a"}], "annotations": []}
    with pytest.raises(ValueError, match="diagnose counts the errors of boxes"):
        CocoEvaluator(truth, diagnose=True, **wrong)
