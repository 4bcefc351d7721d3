"""Compare COCO metrics with pycocotools and faster-coco-eval.

    python examples/benchmarks/benchmark_evaluation.py    # about two minutes
    python examples/benchmarks/benchmark_evaluation.py --quick    # a short test with few images

Data of the size of COCO val: 5,000 images with 36,000 objects of 80 classes, and 100 detections per
image; masks have 100 images of 240 x 320 pixels. Each side runs in processes of its own, which
measure the time from tensors to metrics, and the increase of memory (Linux). Numbers are printed
only if all metrics are equal. faster-coco-eval is left out if it isn't installed.
"""

import argparse
import contextlib
import importlib.util
import io
import multiprocessing
import statistics
import time
from functools import partial
from typing import Any

import numpy as np
import torch
from benchmark_timing import peak_memory, progress
from torch import Tensor

from hf_detr import CocoEvaluator

NUM_CLASSES, OBJECTS_PER_IMAGE, DETECTIONS_PER_IMAGE = 80, 7.2, 100
MOST_DIFFERENCE = 1e-12
Detections = dict[int, dict[str, Tensor]]


def random_boxes(generator: np.random.Generator, number: int, image_wh: np.ndarray) -> np.ndarray:
    """Make boxes (n, 4) as (left, top, width, height), small ones as many as large ones."""
    extent = np.exp(generator.uniform(np.log(6), np.log(0.9 * image_wh), (number, 2)))
    corner = generator.uniform(0, 1, (number, 2)) * (image_wh - extent)
    return np.concatenate([corner, extent], axis=1)


def ellipses(boxes: np.ndarray, image_wh: np.ndarray) -> Tensor:
    """Make masks (n, height, width) bool."""
    y, x = np.mgrid[: image_wh[1], : image_wh[0]] + 0.5
    shape = (-1, 1, 1)
    radius_x, radius_y = boxes[:, 2].reshape(shape) / 2, boxes[:, 3].reshape(shape) / 2
    x, y = x - boxes[:, 0].reshape(shape) - radius_x, y - boxes[:, 1].reshape(shape) - radius_y
    return torch.from_numpy((x / radius_x) ** 2 + (y / radius_y) ** 2 <= 1)


def make_data(num_images: int, masks: bool) -> tuple[dict[str, Any], Detections]:
    """Make ground truth, and detections of which a part is near an object."""
    from hotcoco import mask as coco_masks

    generator = np.random.default_rng(0)
    image_wh = np.array([320, 240] if masks else [640, 480])
    annotations, detections = [], {}
    for image_id in range(num_images):
        count = int(generator.poisson(OBJECTS_PER_IMAGE))
        boxes = random_boxes(generator, count, image_wh)
        labels = generator.integers(0, NUM_CLASSES, count)
        crowds = generator.random(count) < 0.01
        for box, label, is_crowd in zip(boxes, labels.tolist(), crowds.tolist(), strict=True):
            entry = {"image_id": image_id, "category_id": label, "iscrowd": int(is_crowd)}
            entry |= {"bbox": box.tolist(), "area": box[2] * box[3], "id": len(annotations) + 1}
            if masks:
                mask = ellipses(box[None], image_wh)[0].numpy()
                entry["segmentation"] = coco_masks.encode(np.asfortranarray(mask))
            annotations.append(entry)
        found = random_boxes(generator, DETECTIONS_PER_IMAGE, image_wh)
        classes = generator.integers(0, NUM_CLASSES, len(found))
        near = generator.random(len(found)) < (0.4 if count else 0)
        chosen = generator.integers(0, max(count, 1), near.sum())
        found[near] = boxes[chosen] * generator.normal(1, 0.1, (len(chosen), 4))
        found[:, 2:] = found[:, 2:].clip(1)
        classes[near] = labels[chosen]
        scores = np.where(near, generator.beta(3, 3, len(found)), generator.beta(1, 6, len(found)))
        detections[image_id] = {
            "scores": torch.from_numpy(scores).float(),
            "labels": torch.from_numpy(classes),
            "boxes": torch.from_numpy(
                np.concatenate([found[:, :2], found[:, :2] + found[:, 2:]], 1)
            ),
        }
        if masks:
            detections[image_id]["masks"] = ellipses(found, image_wh)
    width, height = image_wh.tolist()
    truth = {
        "images": [{"id": i, "height": height, "width": width} for i in range(num_images)],
        "categories": [{"id": i, "name": f"class {i}"} for i in range(NUM_CLASSES)],
        "annotations": annotations,
    }
    return truth, detections


def with_hf_detr(truth: dict, detections: Detections, iou_type: str) -> list[float]:
    evaluator = CocoEvaluator(truth, (iou_type,))
    evaluator.update(detections.keys(), detections.values())
    return [value for name, value in evaluator.compute().items() if name != "per_class"]


def with_another(truth: dict, detections: Detections, iou_type: str, library: str) -> list[float]:
    """Compute metrics with a library that has pycocotools' interface."""
    if library == "pycocotools":
        from pycocotools import mask as coco_masks
        from pycocotools.coco import COCO
        from pycocotools.cocoeval import COCOeval
    else:
        from faster_coco_eval import COCO
        from faster_coco_eval import COCOeval_faster as COCOeval
        from faster_coco_eval import mask as coco_masks
    entries = []
    for image_id, found in detections.items():
        columns = [found["labels"].tolist(), found["scores"].tolist()]
        if iou_type == "bbox":
            boxes = found["boxes"].double()
            shapes = torch.cat([boxes[:, :2], boxes[:, 2:] - boxes[:, :2]], dim=1).tolist()
        else:
            shapes = coco_masks.encode(
                np.asfortranarray(found["masks"].byte().permute(1, 2, 0).numpy())
            )
        key = "bbox" if iou_type == "bbox" else "segmentation"
        entries += [
            {"image_id": image_id, "category_id": label, "score": score, key: shape}
            for label, score, shape in zip(*columns, shapes, strict=True)
        ]
    with contextlib.redirect_stdout(io.StringIO()):
        coco = COCO()
        coco.dataset = {**truth, "info": {}}
        coco.createIndex()
        evaluation = COCOeval(coco, coco.loadRes(entries), iou_type)
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    return list(evaluation.stats[:12])


def measure(side: str, num_images: int, iou_type: str) -> tuple[list[float], float, float]:
    """Return the metrics, seconds and MiB of a side."""
    data = make_data(num_images, iou_type == "segm")
    compute = with_hf_detr if side == "hf_detr" else partial(with_another, library=side)
    start = time.perf_counter()
    metrics, memory = peak_memory(partial(compute, *data, iou_type))
    return metrics, time.perf_counter() - start, memory


def compare(name: str, sides: list[str], num_images: int, iou_type: str, rounds: int) -> None:
    """Run the sides alternately and print a line for each."""
    results: dict[str, list[tuple[list[float], float, float]]] = {side: [] for side in sides}
    for index in range(rounds):
        for side in sides:
            progress(f"  {name}, {side}, round {index + 1} of {rounds}")
            with multiprocessing.get_context("spawn").Pool(1) as pool:
                results[side].append(pool.apply(measure, (side, num_images, iou_type)))
    progress("")
    expected = results["pycocotools"][0][0]
    for side, runs in results.items():
        for metrics, _, _ in runs:
            if not np.allclose(metrics, expected, rtol=0, atol=MOST_DIFFERENCE):
                raise SystemExit(f"The metrics of {side} differ: {metrics}, {expected}.")
    ours = [statistics.median(run[i] for run in results["hf_detr"]) for i in (1, 2)]
    for side, runs in results.items():
        seconds, memory = (statistics.median(run[i] for run in runs) for i in (1, 2))
        ratio = f"{seconds / ours[0]:7.1f}x{memory / ours[1]:8.1f}x"
        print(f"{name:24}{side:20}{seconds:9.2f} s{memory:9.0f} MiB{ratio}", flush=True)


def main() -> None:
    """Compare the metrics of boxes and masks."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--quick", action="store_true", help="few images, one round")
    parser.add_argument("--rounds", type=int, default=1)
    options = parser.parse_args()
    sides = ["hf_detr", "pycocotools"]
    if importlib.util.find_spec("faster_coco_eval"):
        sides.append("faster_coco_eval")
    for name, iou_type, num_images in (("boxes", "bbox", 5000), ("masks", "segm", 100)):
        num_images = 20 if options.quick else num_images
        compare(f"{name}, {num_images} images", sides, num_images, iou_type, options.rounds)


if __name__ == "__main__":
    main()
