"""Panoptic quality: cases by hand, equality with hotcoco, distributed evaluation."""

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch.testing import assert_close

from hf_detr import PanopticQuality
from hf_detr.image_processing.postprocess_masks import segment_maps

from ..processes import run_processes

THINGS = {0: "shirt", 1: "shoe"}
STUFF = {2: "sky", 3: "grass"}
CLASSES = {**THINGS, **STUFF}


def record(rows: list[list[int]], *segments: tuple[int, ...]) -> dict[str, Any]:
    """Make a map and its records from (id, class) or (id, class, iscrowd)."""
    keys = ("id", "category_id", "iscrowd")
    infos = [dict(zip(keys, segment, strict=False)) for segment in segments]
    return {"segmentation": torch.tensor(rows), "segments_info": infos}


def quality(*images: tuple[dict[str, Any], dict[str, Any]]) -> dict[str, Any]:
    """Compute the quality over pairs (prediction, target)."""
    metric = PanopticQuality(CLASSES, THINGS)
    for image_id, (prediction, target) in enumerate(images):
        metric.update([image_id], [prediction], [target])
    return metric.compute()


def counts(results: dict[str, Any], label_id: int) -> tuple[int, int, int]:
    """Return TP, FP and FN of a class."""
    return tuple(results["per_class"][label_id][name] for name in ("tp", "fp", "fn"))


def test_perfect_prediction() -> None:
    """A perfect prediction has quality 1; means are over the classes that occur."""
    target = record([[7, 7, 0], [900, 900, 70000]], (7, 0), (900, 0), (70000, 2))
    prediction = record([[2, 2, 0], [3, 3, 1]], (1, 2), (2, 0), (3, 0))
    results = quality((prediction, target))
    for suffix, number in (("", 2), ("_things", 1), ("_stuff", 1)):
        assert [results[name + suffix] for name in ("pq", "sq", "rq")] == [1, 1, 1]
        assert results["num_classes" + suffix] == number
    assert set(results["per_class"]) == {0, 2}
    assert results["per_class"][0]["label"] == "shirt"
    assert counts(results, 0) == (2, 0, 0)


def test_sums_by_hand() -> None:
    """Two TP, one FP and two FN: SQ = (3/4 + 1) / 2 and RQ = 2 / (2 + 1/2 + 2/2)."""
    target = record([[1, 1, 1, 1, 2, 2, 3, 4, 4]], (1, 0), (2, 0), (3, 0), (4, 0))
    prediction = record([[1, 1, 1, 0, 2, 2, 0, 0, 3]], (1, 0), (2, 0), (3, 0))
    results = quality((prediction, target))
    assert counts(results, 0) == (2, 1, 2)  # 1 of 2 pixels is IoU 1/2, which isn't enough
    assert results["sq_things"] == 0.875
    assert_close(results["rq_things"], 2 / 3.5, atol=1e-15, rtol=0)
    assert_close(results["pq"], 0.875 * 2 / 3.5, atol=1e-15, rtol=0)
    assert math.isnan(results["pq_stuff"]) and results["num_classes_stuff"] == 0


def test_wrong_class_is_a_miss_and_a_false_positive() -> None:
    """A segment of another class doesn't match; both classes have quality 0."""
    results = quality((record([[1, 1]], (1, 1)), record([[1, 1]], (1, 0))))
    assert counts(results, 0) == (0, 0, 1)
    assert counts(results, 1) == (0, 1, 0)
    assert results["pq"] == results["sq"] == results["rq"] == 0
    assert results["num_classes"] == 2


def test_void_is_not_in_the_union() -> None:
    """Unlabelled pixels don't decrease the IoU: 2 / (2 + 2 - 2), not 2 / 4."""
    target = record([[1, 1, 0, 0]], (1, 0))
    results = quality((record([[5, 5, 5, 5]], (5, 0)), target))
    assert counts(results, 0) == (1, 0, 0)
    assert results["pq"] == 1


@pytest.mark.parametrize(("num_void", "num_false"), [(2, 1), (3, 0)])
def test_predictions_on_void_are_ignored(num_void: int, num_false: int) -> None:
    """A segment with more than half of its pixels on void isn't a false positive."""
    target = record([[1] * 8 + [1] * (4 - num_void) + [0] * num_void], (1, 2))
    results = quality((record([[0] * 8 + [1] * 4], (1, 0)), target))
    if num_false:
        assert counts(results, 0) == (0, 1, 0)
    else:
        assert 0 not in results["per_class"]


@pytest.mark.parametrize(("label_id", "num_false"), [(0, 0), (1, 1)])
def test_crowds_are_not_targets(label_id: int, num_false: int) -> None:
    """A crowd is neither TP nor FN; only predictions of its class on it are ignored."""
    target = record([[1, 1, 1, 2]], (1, 0, 1), (2, 2, 0))
    results = quality((record([[3, 3, 4, 5]], (3, label_id), (4, label_id), (5, 2)), target))
    assert counts(results, 2) == (1, 0, 0)
    if num_false:
        assert counts(results, label_id) == (0, 2, 0)
    else:
        assert 0 not in results["per_class"]


def test_pixels_on_void_and_crowds_are_added() -> None:
    """Three of five pixels are on void or one of two crowds."""
    target = record([[0, 1, 2, 3, 3]], (1, 0, 1), (2, 0, 1), (3, 2))
    results = quality((record([[1, 1, 1, 1, 1]], (1, 0)), target))
    assert set(results["per_class"]) == {2}  # the sky alone, which is missed


def test_empty_images() -> None:
    """Empty images have no counts, and empty predictions miss all segments."""
    nothing = {"segmentation": torch.full((1, 2), -1.0), "segments_info": []}
    empty = quality((nothing, record([[0, 0]])))
    assert math.isnan(empty["pq"]) and empty["num_classes"] == 0 and empty["per_class"] == {}
    assert math.isnan(quality()["pq"])
    missed = quality((nothing, record([[1, 0]], (1, 0))))
    assert counts(missed, 0) == (0, 0, 1)


def test_fused_segments_of_the_post_processing() -> None:
    """A fused segment, several records with the same id, counts once."""
    masks = torch.full((1, 3, 2, 4), -9.0)
    masks[0, 0, :, :2], masks[0, 1, :, 3], masks[0, 2, :, 2] = 9, 9, 9
    prediction = segment_maps(
        (torch.ones(1, 3), torch.tensor([[2, 2, 0]]), torch.ones(1, 3, dtype=torch.bool)),
        masks,
        label_ids_to_fuse={2},
    )[0]
    assert len(prediction["segments_info"]) == 3
    target = record([[1, 1, 2, 1]] * 2, (1, 2), (2, 0))
    results = quality((prediction, target))
    assert counts(results, 2) == counts(results, 0) == (1, 0, 0)
    assert results["pq"] == 1


def test_an_image_counts_once() -> None:
    """Repeated images are ignored, and `reset` removes all images."""
    metric = PanopticQuality(CLASSES, THINGS)
    right, wrong = record([[1, 1]], (1, 0)), record([[1, 1]], (1, 1))
    metric.update([torch.tensor([3]), 3], [right, wrong], [right, right])
    assert metric.compute()["per_class"].keys() == {0}
    metric.reset()
    assert metric.compute()["num_classes"] == 0


GOOD = record([[1, 2]], (1, 0), (2, 2))


@pytest.mark.parametrize(
    ("prediction", "message"),
    [
        (record([[1], [1]], (1, 0)), r"image_id 0 has a predicted segmentation of \(2, 1\)"),
        (record([[1, 4]], (1, 0)), r"prediction has pixels of the segments \[4\]"),
        (record([[1, -2]], (1, 0)), r"prediction has pixels of the segments \[-2\]"),
        (record([[1, 1]], (1, 0), (6, 0)), r"prediction has records of the segments \[6\]"),
        (record([[1, 1]], (1, 4)), "segment 1 has class 4, which is not in id2label"),
        (record([[1, 1]], (1, 0), (1, 2)), "id 1 for segments of the classes 0 and 2"),
        (record([[0, 1]], (0, 2), (1, 0)), "a segment with id 0; expected ids >= 1"),
        ({"segmentation": torch.ones(1, 2)}, "prediction has no 'segments_info'"),
        ({**GOOD, "segmentation": torch.ones(3, 1, 2)}, r"shape \(3, 1, 2\)"),
    ],
)
def test_invalid_predictions_raise(prediction: dict[str, Any], message: str) -> None:
    """The error has the image id."""
    with pytest.raises(ValueError, match=message):
        quality((prediction, GOOD))


def test_wrong_arguments() -> None:
    """Things that aren't classes and lists of different lengths raise."""
    with pytest.raises(ValueError, match=r"thing_label_ids has \[9\]"):
        PanopticQuality(CLASSES, [0, 9])
    with pytest.raises(ValueError, match="1 image_ids, 1 predictions and 0 targets"):
        PanopticQuality(CLASSES, THINGS).update([0], [GOOD], [])


def random_images(number: int) -> list[tuple[dict[str, Any], dict[str, Any]]]:
    """Make overlapping predictions and targets with void and some crowds."""
    random = np.random.default_rng(0)
    images = []
    for _ in range(number):
        true = random.integers(0, 6, (3, 4)).repeat(8, 0).repeat(8, 1)
        predicted = np.roll(true, random.integers(-4, 5, 2), (0, 1))
        predicted[random.random(predicted.shape) < 0.1] = 0
        predicted[:, random.integers(0, 32) :][:, :3] = random.integers(0, 6)
        classes = random.integers(0, len(CLASSES), 6)
        others = np.where(random.random(6) < 0.2, random.integers(0, len(CLASSES), 6), classes)
        crowds = {int(classes[1]): 1} if random.random() < 0.5 else {}  # one per class at most
        pair = []
        for ids, labels in ((predicted, others), (true, classes)):
            segments = [(i * 1000, int(labels[i])) for i in np.unique(ids).tolist() if i]
            if labels is classes:
                segments = [(*s, int(crowds.get(s[1]) == s[0] // 1000)) for s in segments]
            pair.append(record((ids * 1000).tolist(), *segments))
        images.append(tuple(pair))
    return images


def write_coco(folder: Path, name: str, records: list[dict[str, Any]]) -> Path:
    """Write COCO's panoptic format: a JSON file and a folder of PNG files."""
    (folder / name).mkdir()
    annotations = []
    for image_id, entry in enumerate(records):
        ids = entry["segmentation"].numpy()
        colors = np.stack([ids % 256, ids // 256 % 256, ids // 65536], axis=-1)
        Image.fromarray(colors.astype(np.uint8)).save(folder / name / f"{image_id}.png")
        infos = [
            {"iscrowd": 0, "area": int((ids == info["id"]).sum()), "bbox": [0, 0, 1, 1], **info}
            for info in entry["segments_info"]
        ]
        annotations.append(
            {"image_id": image_id, "file_name": f"{image_id}.png", "segments_info": infos}
        )
    categories = [{"id": i, "name": n, "isthing": int(i in THINGS)} for i, n in CLASSES.items()]
    images = [{"id": image_id, "height": 24, "width": 32} for image_id in range(len(records))]
    path = folder / f"{name}.json"
    content = {"images": images, "annotations": annotations, "categories": categories}
    path.write_text(json.dumps(content))
    return path


def test_equals_hotcoco(tmp_path: Path) -> None:
    """All values equal those of hotcoco, which follows panopticapi (1e-12)."""
    panoptic = pytest.importorskip("hotcoco.panoptic", reason="hotcoco is not installed")
    images = random_images(60)
    predictions, targets = zip(*images, strict=True)
    files = write_coco(tmp_path, "true", targets), write_coco(tmp_path, "predicted", predictions)
    evaluation = panoptic.PanopticEval(*files)
    evaluation.evaluate()
    expected = evaluation.results()
    results = quality(*images)
    assert sum(counts(results, 0)) > 50 and min(counts(results, 0)) > 5  # the cases say something
    for suffix, group in (("", "All"), ("_things", "Things"), ("_stuff", "Stuff")):
        for name, theirs in (("pq", "pq"), ("sq", "sq"), ("rq", "rq"), ("num_classes", "n")):
            assert_close(results[name + suffix], expected[group][theirs], atol=1e-12, rtol=0)
    for label_id, theirs in expected["per_class"].items():
        for name in ("pq", "sq", "rq"):
            ours = results["per_class"][int(label_id)][name]
            assert_close(ours, theirs[name], atol=1e-12, rtol=0)


def evaluate_a_share(rank: int, folder: str) -> None:
    """Run one of two processes; the second has no image first, then some and a repeated one."""
    torch.set_num_threads(1)
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=2
    )
    images = random_images(7)
    results = []
    for ids in ([range(7), []], [[0, 2, 4, 6], [1, 3, 5, 0]]):
        metric = PanopticQuality(CLASSES, THINGS)
        for image_id in ids[rank]:
            prediction, target = images[image_id]
            metric.update([image_id], [prediction], [target])
        results.append(metric.compute())
    torch.save(results, f"{folder}/{rank}.pt")
    torch.distributed.destroy_process_group()


def test_two_processes_equal_one(tmp_path: Path) -> None:
    """All processes get the result of one process with all images (1e-12)."""
    expected = quality(*random_images(7))
    run_processes(evaluate_a_share, str(tmp_path))
    for rank in range(2):
        for results in torch.load(tmp_path / f"{rank}.pt"):
            assert results.keys() == expected.keys()
            for name in results.keys() - {"per_class"}:
                assert_close(results[name], expected[name], atol=1e-12, rtol=0)
            for label_id, entry in expected["per_class"].items():
                assert counts(results, label_id) == tuple(entry[n] for n in ("tp", "fp", "fn"))
