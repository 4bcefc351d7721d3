"""The COCO evaluator: equality with pycocotools, distributed evaluation, errors."""

import contextlib
import io
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval
from pycocotools.mask import encode
from torch import Tensor

from hf_detr import CocoEvaluator, metrics_table
from hf_detr.distributed import compute_on_main_process
from hf_detr.evaluation import coco_evaluator
from hf_detr.image_processing.coco_masks import rle_from_mask

from ..processes import run_processes

SUMMARY = (
    *("AP", "AP50", "AP75", "AP_small", "AP_medium", "AP_large"),
    *("AR_1", "AR_10", "AR_100", "AR_small", "AR_medium", "AR_large"),
)
HEIGHT, WIDTH = 120, 160


def random_boxes(generator: np.random.Generator, number: int) -> np.ndarray:
    """Make boxes (n, 4) as (left, top, width, height), from small to large."""
    extent = generator.uniform(4, 110, (number, 2))
    corner = generator.uniform(0, 1, (number, 2)) * (np.array([WIDTH, HEIGHT]) - extent)
    return np.concatenate([corner, extent], axis=1)


def mask_of(box: np.ndarray) -> Tensor:
    """Make the mask of an ellipse in a box."""
    y, x = np.mgrid[:HEIGHT, :WIDTH] + 0.5
    center, radius = box[:2] + box[2:] / 2, box[2:] / 2
    inside = ((x - center[0]) / radius[0]) ** 2 + ((y - center[1]) / radius[1]) ** 2 <= 1
    return torch.from_numpy(inside)


def some_results(
    num_images: int = 12, num_classes: int = 4, seed: int = 0
) -> tuple[dict[str, Any], dict[int, dict[str, Tensor]]]:
    """Make ground truth with crowds, and detections from nearly correct to wrong, with masks."""
    generator = np.random.default_rng(seed)
    truth: dict[str, Any] = {
        "images": [{"id": 7 * i + 3, "height": HEIGHT, "width": WIDTH} for i in range(num_images)],
        # The last class has no objects.
        "categories": [{"id": i, "name": f"class {i}"} for i in range(num_classes + 1)],
        "annotations": [],
    }
    detections = {}
    for image in truth["images"]:
        boxes = random_boxes(generator, generator.integers(0, 6))
        labels = generator.integers(0, num_classes, len(boxes))
        for box, label in zip(boxes, labels, strict=True):
            mask = mask_of(box)
            truth["annotations"].append(
                {
                    "image_id": image["id"],
                    "category_id": int(label),
                    "bbox": box.tolist(),
                    "area": float(mask.sum()),
                    "iscrowd": int(generator.random() < 0.15),
                    "segmentation": rle_from_mask(mask),
                }
            )
        near = boxes.repeat(2, axis=0) + generator.normal(0, 3, (2 * len(boxes), 4))
        near[:, 2:] = near[:, 2:].clip(min=1)
        all_boxes = np.concatenate([near, random_boxes(generator, 5)])
        all_labels = np.concatenate([labels.repeat(2), generator.integers(0, num_classes + 1, 5)])
        detections[image["id"]] = {
            # Few different scores, so that there are ties.
            "scores": torch.from_numpy(generator.integers(1, 20, len(all_boxes)) / 20),
            "labels": torch.from_numpy(all_labels),
            "boxes": torch.from_numpy(
                np.concatenate([all_boxes[:, :2], all_boxes[:, :2] + all_boxes[:, 2:]], axis=1)
            ),
            "masks": torch.stack([mask_of(box) for box in all_boxes]),
        }
    return truth, detections


def pycocotools_evaluation(
    truth: dict, detections: dict, iou_type: str, max_detections: int = 100
) -> COCOeval:
    """Compute the metrics with pycocotools, whose summary is for 100 detections only."""
    entries = []
    for image_id, found in detections.items():
        for score, label, box, mask in zip(*found.values(), strict=True):
            entry = {"image_id": image_id, "category_id": int(label), "score": float(score)}
            if iou_type == "bbox":
                x0, y0, x1, y1 = box.tolist()
                entry["bbox"] = [x0, y0, x1 - x0, y1 - y0]
            else:
                entry["segmentation"] = encode(np.asfortranarray(mask, dtype=np.uint8))
            entries.append(entry)
    coco = COCO()
    annotations = [{**a, "id": i} for i, a in enumerate(truth["annotations"], 1)]
    coco.dataset = {**truth, "annotations": annotations, "info": {}}
    with contextlib.redirect_stdout(io.StringIO()):
        coco.createIndex()
        evaluation = COCOeval(coco, coco.loadRes(entries), iou_type)
        evaluation.params.maxDets = [1, 10, max_detections]
        evaluation.evaluate()
        evaluation.accumulate()
        if max_detections == 100:
            evaluation.summarize()
    return evaluation


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_equal_to_pycocotools(seed: int) -> None:
    """AP and AR of boxes and masks are equal, overall and per class."""
    truth, detections = some_results(seed=seed)
    evaluator = CocoEvaluator(truth, iou_types=("bbox", "segm"))
    evaluator.update(detections.keys(), detections.values())
    metrics = evaluator.compute()
    assert 0.05 < metrics["AP"] < 0.95 and 0.05 < metrics["segm_AP"] < 0.95
    for iou_type, prefix in (("bbox", ""), ("segm", "segm_")):
        reference = pycocotools_evaluation(truth, detections, iou_type)
        got = [metrics[prefix + name] for name in SUMMARY]
        np.testing.assert_allclose(got, reference.stats, rtol=0, atol=1e-6)
        precision, recall = reference.eval["precision"], reference.eval["recall"]
        for label in range(4):
            one = metrics["per_class"][f"class {label}"]
            for name, values in (
                ("AP", precision[:, :, label, 0, 2]),
                ("AP50", precision[0, :, label, 0, 2]),
                ("AP75", precision[5, :, label, 0, 2]),
                ("AR_100", recall[:, label, 0, 2]),
            ):
                assert one[prefix + name] == pytest.approx(values.mean(), abs=1e-6)
    assert metrics["per_class"]["class 4"]["AP"] == -1.0
    objects = [a for a in truth["annotations"] if not a["iscrowd"]]
    assert sum(one["num_objects"] for one in metrics["per_class"].values()) == len(objects)


def awkward_results(
    generator: np.random.Generator, num_images: int, num_classes: int, per_image: int
) -> tuple[dict[str, Any], dict[int, dict[str, Tensor]]]:
    """Make results of tiny images with few different scores, boxes and masks, some without area.

    Ids are in no order. There can be images and classes without objects or without detections.
    """
    height, width = 9, 12
    image_ids = generator.choice(2**31, num_images, replace=False).tolist()
    labels = generator.choice(2**31, num_classes, replace=False).tolist()
    truth: dict[str, Any] = {
        "images": [{"id": i, "height": height, "width": width} for i in image_ids],
        "categories": [{"id": i, "name": f"class {i}"} for i in labels],
        "annotations": [],
    }

    corners, extents = generator.integers(0, 9, (6, 2)), generator.integers(0, 6, (6, 2))
    boxes = np.concatenate([corners, extents], 1) * 1.25
    masks = generator.random((6, height, width)) < generator.choice([0, 0.3, 0.9, 1], (6, 1, 1))

    def some(shapes: np.ndarray, number: int) -> np.ndarray:
        return shapes[generator.integers(0, len(shapes), number)]

    for image_id in image_ids:
        count = int(generator.integers(0, 8))
        for box, mask in zip(some(boxes, count), some(masks, count), strict=True):
            forms = (
                rle_from_mask(torch.from_numpy(mask)),
                encode(np.asfortranarray(mask, dtype=np.uint8)),
                [(generator.random(6) * 12).tolist(), (generator.random(8) * 12).tolist()],
            )
            annotation = {
                "image_id": image_id,
                "category_id": labels[generator.integers(num_classes)],
                "bbox": box.tolist(),
                "area": float(generator.choice([0, 32**2, 50**2, 96**2, 1e5])),
                "iscrowd": int(generator.random() < 0.2),
                "segmentation": forms[generator.integers(3)],
            }
            truth["annotations"].append(annotation)
    detections = {}
    for image_id in image_ids[: int(generator.integers(1, num_images + 1))]:
        count = int(generator.integers(0, per_image + 1))
        found = some(boxes, count)
        found[:, 2:] += found[:, :2]
        detections[image_id] = {
            "scores": torch.from_numpy(generator.integers(0, 4, count) / 3).float(),
            "labels": torch.from_numpy(generator.choice(labels, count)),
            "boxes": torch.from_numpy(found).float(),
            "masks": torch.from_numpy(some(masks, count)),
        }
    return truth, detections


@settings(max_examples=25, deadline=None)
@given(
    seed=st.integers(0, 2**31),
    num_images=st.integers(1, 5),
    num_classes=st.integers(1, 3),
    max_detections=st.sampled_from([11, 100, 150]),
)
def test_all_values_equal_those_of_pycocotools(
    seed: int, num_images: int, num_classes: int, max_detections: int
) -> None:
    """Every metric is equal, with ties, crowds, areas, empty images and classes, and limits."""
    generator = np.random.default_rng(seed)
    truth, detections = awkward_results(generator, num_images, num_classes, 3 * max_detections // 2)
    evaluator = CocoEvaluator(truth, ("bbox", "segm"), max_detections)
    evaluator.update(detections.keys(), detections.values())
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".* were never evaluated")
        metrics = evaluator.compute()
    if not any(len(found["scores"]) for found in detections.values()):
        return  # pycocotools can't load an empty list
    expected = {}
    names = ("", "small", "medium", "large")
    for iou_type, prefix in (("bbox", ""), ("segm", "segm_")):
        reference = pycocotools_evaluation(truth, detections, iou_type, max_detections).eval
        precision, recall = reference["precision"], reference["recall"]
        parts = {"AP50": precision[0, :, :, 0, 2], "AP75": precision[5, :, :, 0, 2]}
        for area, name in enumerate(names):
            parts["AP" + ("_" + name if name else "")] = precision[..., area, 2]
            parts[f"AR_{name}" if name else f"AR_{max_detections}"] = recall[..., area, 2]
        parts |= {"AR_1": recall[:, :, 0, 0], "AR_10": recall[:, :, 0, 1]}
        for index, category in enumerate(sorted(truth["categories"], key=lambda c: c["id"])):
            one = metrics["per_class"][category["name"]]
            values = precision[:, :, index, 0, 2]
            assert one[prefix + "AP"] == pytest.approx(values.mean(), abs=1e-12)
        for name, values in parts.items():
            values = values[values > -1]
            expected[prefix + name] = values.mean() if values.size else -1
    assert {k: v for k, v in metrics.items() if k != "per_class"} == pytest.approx(
        expected, abs=1e-12
    )


def test_order_and_repetition_do_not_matter() -> None:
    """Repeated images and the order of batches don't change the result."""
    truth, detections = some_results()
    expected = CocoEvaluator(truth)
    expected.update(detections.keys(), detections.values())
    evaluator = CocoEvaluator(truth)
    items = list(detections.items())
    for image_id, found in [*items[::-1], *items[:3]]:
        evaluator.update([torch.tensor(image_id)], [found])
    assert evaluator.compute() == expected.compute()


def test_perfect_and_empty() -> None:
    """Perfect detections have AP 1, no detections AP 0."""
    truth, _ = some_results()
    truth["annotations"] = [a for a in truth["annotations"] if not a["iscrowd"]]
    perfect, blind = CocoEvaluator(truth), CocoEvaluator(truth)
    for image in truth["images"]:
        mine = [a for a in truth["annotations"] if a["image_id"] == image["id"]]
        xywh = torch.tensor([a["bbox"] for a in mine], dtype=torch.float64).reshape(-1, 4)
        found = {
            "scores": torch.ones(len(mine)),
            "labels": torch.tensor([a["category_id"] for a in mine], dtype=torch.int64),
            "boxes": torch.cat([xywh[:, :2], xywh[:, :2] + xywh[:, 2:]], dim=1),
        }
        perfect.update([image["id"]], [found])
        blind.update([image["id"]], [{key: value[:0] for key, value in found.items()}])
    assert perfect.compute()["AP"] == pytest.approx(1.0) and blind.compute()["AP"] == 0.0


def many_objects(number: int) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Make an image with this many objects of a class, all of them detected."""
    corners = torch.cartesian_prod(torch.arange(16), torch.arange(16))[:number] * 10.0
    boxes = torch.cat([corners, corners + 8], dim=1)
    truth = {
        "images": [{"id": 5, "height": 160, "width": 160}],
        "categories": [{"id": 0, "name": "dot"}],
        "annotations": [
            {"image_id": 5, "category_id": 0, "bbox": [x, y, 8, 8]} for x, y in corners.tolist()
        ],
    }
    labels = torch.zeros(number, dtype=torch.int64)
    return truth, {"scores": torch.linspace(0.9, 0.1, number), "labels": labels, "boxes": boxes}


def test_more_objects_than_detections_that_count() -> None:
    """COCO's rule is the default, with a warning; more detections count if asked for."""
    truth, found = many_objects(250)
    with pytest.warns(UserWarning, match=r"1 images have more than 100 objects, up to 250 .*=250"):
        limited = CocoEvaluator(truth)
    limited.update([5], [found])
    assert limited.compute()["AP"] == pytest.approx(0.406, abs=1e-3)
    whole = CocoEvaluator(truth, max_detections=250)
    whole.update([5], [found])
    metrics = whole.compute()
    assert metrics["AP"] == pytest.approx(1) and metrics["AR_250"] == pytest.approx(1)
    assert metrics["AR_10"] == pytest.approx(0.04) and "AR_100" not in metrics
    assert metrics["per_class"]["dot"]["AR_250"] == pytest.approx(1)
    assert "AR_250" in metrics_table(metrics)
    CocoEvaluator(many_objects(100)[0])  # without a warning
    CocoEvaluator(many_objects(100)[0], max_detections=np.int64(100))
    for wrong in (10, 0, 300.0, True, None):
        with pytest.raises(ValueError, match="max_detections is .*expected an integer above 10"):
            CocoEvaluator(truth, max_detections=wrong)


def test_category_ids_may_be_any_number() -> None:
    """Sparse ids need no memory for the numbers between them."""
    truth, found = many_objects(3)
    sparse = [{"id": 2**40, "name": "dot"}, {"id": 7, "name": "line"}]
    objects = [{**a, "category_id": 2**40} for a in truth["annotations"]]
    evaluator = CocoEvaluator({**truth, "categories": sparse, "annotations": objects})
    evaluator.update([5], [{**found, "labels": found["labels"] + 2**40}])
    assert evaluator.compute()["AP"] == pytest.approx(1)


def test_no_objects_at_all() -> None:
    """Metrics without objects are -1 as in pycocotools."""
    truth, detections = some_results()
    evaluator = CocoEvaluator({**truth, "annotations": []})
    evaluator.update(detections.keys(), detections.values())
    assert evaluator.compute()["AP"] == -1.0


def test_detections_are_copied() -> None:
    """Detections that are changed afterwards, such as in a reused buffer, don't change AP."""
    truth, found = many_objects(3)
    evaluator = CocoEvaluator(truth)
    found["boxes"] = found["boxes"].float()
    evaluator.update([5], [found])
    found["boxes"].zero_()
    assert evaluator.compute()["AP"] == pytest.approx(1)


def test_ground_truth_is_not_modified() -> None:
    """The backend modifies its dicts, which are copies."""
    truth, detections = some_results(num_images=3)
    before = {key: [dict(entry) for entry in value] for key, value in truth.items()}
    evaluator = CocoEvaluator(truth, ("bbox", "segm"))
    evaluator.update(detections.keys(), detections.values())
    evaluator.compute()
    assert truth == before


def test_missing_images_warn() -> None:
    """An incomplete evaluation is reported."""
    truth, detections = some_results()
    evaluator = CocoEvaluator(truth)
    first = next(iter(detections))
    evaluator.update([first], [detections[first]])
    with pytest.warns(UserWarning, match="11 of 12 images were never evaluated"):
        evaluator.compute()


def test_process_without_images() -> None:
    """A process may have no images, as when there are more processes than batches."""
    truth, _ = some_results()
    with pytest.warns(UserWarning, match="12 of 12 images were never evaluated"):
        assert CocoEvaluator(truth).compute()["AP"] == 0.0


def update_half(rank: int, folder: str) -> None:
    """Run one of two processes, each with its images and one image of the other.

    The second one can't compute metrics, has no objects, and gets the first one's error.
    """
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=2
    )
    truth, detections = some_results()
    evaluator = CocoEvaluator(truth, ("bbox", "segm"))
    assert (evaluator._truth.objects is None) == (rank > 0)
    ids = list(detections)
    for image_id in ids[rank::2] + ids[1 - rank :: 2][:1]:
        evaluator.update([image_id], [detections[image_id]])
    if rank:
        coco_evaluator._backend = None
    torch.save(evaluator.compute(), f"{folder}/{rank}.pt")
    with pytest.raises(ZeroDivisionError):
        compute_on_main_process(lambda values: 1 / values[0], 0)
    torch.distributed.destroy_process_group()


def test_two_processes_equal_one(tmp_path: Path) -> None:
    """Both get the result of all images, each counted once, which only the first computes."""
    run_processes(update_half, str(tmp_path))
    truth, detections = some_results()
    evaluator = CocoEvaluator(truth, ("bbox", "segm"))
    evaluator.update(detections.keys(), detections.values())
    assert [torch.load(tmp_path / f"{rank}.pt") for rank in range(2)] == [evaluator.compute()] * 2


def test_table() -> None:
    """The table has a line per IoU type and class, in percent, and - without objects."""
    truth, detections = some_results()
    evaluator = CocoEvaluator(truth, ("bbox", "segm"))
    evaluator.update(detections.keys(), detections.values())
    metrics = evaluator.compute()
    lines = metrics_table(metrics).splitlines()
    assert lines[0].split() == list(SUMMARY)
    assert lines[1].split()[:2] == ["boxes", f"{100 * metrics['AP']:.1f}"]
    assert lines[2].split()[:2] == ["masks", f"{100 * metrics['segm_AP']:.1f}"]
    columns = ["AP", "AP50", "AP75", "segm_AP", "segm_AP50", "segm_AP75"]
    assert lines[4].split() == ["class", "objects", *columns]
    assert lines[9].split() == ["class", "4", "0", *"------"]
    masks_only = {k: v for k, v in metrics.items() if k == "per_class" or k.startswith("segm_")}
    assert metrics_table(masks_only).splitlines()[0].split() == list(SUMMARY)


def test_invalid_inputs_raise() -> None:
    """Wrong ids, labels, numbers and masks don't cause an unexplained AP of 0."""
    truth, detections = some_results(num_images=2)
    found = detections[3]
    evaluator = CocoEvaluator(truth, ("bbox", "segm"))
    with pytest.raises(ValueError, match="image_id 4 is not in the ground truth"):
        evaluator.update([4], [found])
    with pytest.raises(ValueError, match=r"labels \[91\].*categories \(0 … 4\)"):
        evaluator.update([3], [{**found, "labels": found["labels"] * 0 + 91}])
    with pytest.raises(ValueError, match="NaN or infinite"):
        evaluator.update([3], [{**found, "scores": found["scores"] * torch.nan}])
    with pytest.raises(ValueError, match=r"shapes .*expected \(n,\), \(n,\) and \(n, 4\)"):
        evaluator.update([3], [{**found, "boxes": found["boxes"][1:]}])
    with pytest.raises(ValueError, match=r"masks of shape .*expected \(\d+, 120, 160\)"):
        evaluator.update([3], [{**found, "masks": found["masks"][:, :50]}])
    with pytest.raises(ValueError, match="iou_types is 'bbox'; expected a sequence"):
        CocoEvaluator(truth, "bbox")
    without = [{k: v for k, v in a.items() if k != "segmentation"} for a in truth["annotations"]]
    with pytest.raises(ValueError, match="annotation 0 .* has no segmentation"):
        CocoEvaluator({**truth, "annotations": without}, ("segm",))
    for key in ("image_id", "category_id"):
        wrong = [*truth["annotations"], {**truth["annotations"][0], key: 99}]
        with pytest.raises(ValueError, match=rf"annotation \d+ .* has .*{key} 99"):
            CocoEvaluator({**truth, "annotations": wrong})
    twice = [{"id": 0, "name": "a"}, {"id": 1, "name": "a"}]
    with pytest.raises(ValueError, match="same name"):
        CocoEvaluator({**truth, "categories": twice, "annotations": []})
