"""Evaluation of a model on a data set: AP and PQ, independent of the batch size."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader
from tqdm.auto import tqdm

from ..data.dataset import DetectionDataset, as_detection_dataset
from ..data.streamed import StreamedDataset
from ..data.tile_grid import OVERLAP
from ..distributed import gather_from_processes, process_index
from ..image_processing.image_processor import DetectionImageProcessor
from ..image_processing.postprocess import detections_per_image
from ..inference.prediction import in_eval_mode
from ..inference.tile_results import join_batches
from ..losses.classification import SigmoidFocalClassification
from .coco_evaluator import MASKS_AT_ONCE, MAX_DETECTIONS, CocoEvaluator, Metrics
from .image_batches import load_rows, load_tiles
from .label_map import label_map, names_of_model, relabelled, relabelled_segments
from .lvis_fields import add_lvis_fields
from .model_checks import check_model
from .panoptic_quality import PanopticQuality, target_segments

Batch = tuple[list[int], list[tuple[int, int]], Any]  # image ids, original (height, width), inputs

EVERY_SCORE = -1.0  # a threshold below all scores
PANOPTIC_THRESHOLD = 0.85  # as in the official code


def evaluate(
    model: nn.Module,
    processor: DetectionImageProcessor,
    dataset: DetectionDataset | StreamedDataset,
    batch_size: int = 8,
    num_workers: int = 0,
    iou_types: Sequence[str] = ("bbox",),
    progress: bool = True,
    max_detections: int = MAX_DETECTIONS,
    lvis: Mapping[str, Any] | None = None,
    diagnose: bool = False,
    tiles: int | None = None,
    overlap: float = OVERLAP,
) -> Metrics:
    """Evaluate a model on a data set with COCO metrics.

    Images are prepared by the processor as in inference; the transform of the data set is ignored.
    If torch.distributed is initialized, all processes must call this; each evaluates a part of the
    images and returns the result of all images.

    Args:
        model: a detector, or a segmentation model for "segm", in any mode.
        processor: prepares images and post-processes outputs.
        dataset: the data set, read with `masks=True` for "segm"; torch's `Subset` or
            `ConcatDataset` of such; or a `StreamedDataset` for "bbox".
        batch_size: maximum number of images, of equal size, in a batch; the result doesn't depend
            on it.
        num_workers: number of processes that load images.
        iou_types: "bbox", "segm" or both.
        progress: whether to show a progress bar on a terminal.
        max_detections: number of detections that count per image and class. More than COCO's 100
            are needed for images with more objects; models with a score for each query and class
            then return as many per image.
        lvis: the content of the LVIS file that the data set was read from, for LVIS' AP of its
            incomplete annotations and of rare, common and frequent classes. Use it with
            `max_detections=300`, which is then the number per image.
        diagnose: whether to add `diagnosis`, a `Diagnosis` of the errors of boxes, which
            `hf_detr.plots.write_report` shows; its `class_thresholds` are those for the model's
            configuration. Not with `lvis`.
        tiles, overlap: as in `predict`; the best `max_detections` of a class count per image.

    Returns:
        The result of `CocoEvaluator.compute`.

    Raises:
        ValueError: if the model and the data set have no class in common, or `lvis` doesn't have
            the data set's images and classes, or tiles or overlap are invalid.
        ValueError, TypeError: as in `check_model`.
    """
    is_stream = isinstance(dataset, StreamedDataset)
    if is_stream and (tuple(iou_types) != ("bbox",) or lvis is not None or tiles is not None):
        raise ValueError("A stream is evaluated with ('bbox',) only, without masks, lvis, tiles.")
    check_model(_unwrapped(model), processor, "segm" in iou_types)
    if is_stream:
        given = model, processor, dataset, batch_size, num_workers, progress, max_detections
        metrics = _evaluate_stream(*given, diagnose)
        return _with_model_names(metrics, model, dataset.id2label)
    dataset = as_detection_dataset(dataset)
    evaluator = CocoEvaluator(
        _ground_truth(dataset, lvis), iou_types, max_detections, lvis is not None, diagnose
    )
    given = model, processor, dataset, batch_size, num_workers, "segm" in iou_types, progress
    for image_ids, detections in detect(*given, max_detections, tiles, overlap):
        evaluator.update(image_ids, detections)
    return _with_model_names(evaluator.compute(), model, dataset.id2label)


def _with_model_names(metrics: Metrics, model: nn.Module, names: Mapping[int, str]) -> Metrics:
    """Name the classes of the thresholds as the model does."""
    if (diagnosis := metrics.get("diagnosis")) is not None:
        own = _unwrapped(model).config.id2label
        named = names_of_model(diagnosis.class_thresholds, own, names)
        metrics["diagnosis"] = replace(diagnosis, class_thresholds=named)
    return metrics


def _evaluate_stream(
    model: nn.Module,
    processor: DetectionImageProcessor,
    stream: StreamedDataset,
    batch_size: int,
    num_workers: int,
    progress: bool,
    max_detections: int,
    diagnose: bool,
) -> Metrics:
    categories = [{"id": label, "name": name} for label, name in stream.id2label.items()]
    options = {"max_detections": max_detections, "diagnose": diagnose}
    empty = {"images": [], "annotations": [], "categories": categories}
    CocoEvaluator(empty, **options)  # raises before the model runs
    truths, found = [], []

    def note_truth(part: DetectionDataset) -> None:
        truths.append(part.ground_truth())

    loader = load_rows(stream, processor, batch_size, num_workers, note_truth)
    labels = label_map(_unwrapped(model).config.id2label, stream.id2label)
    with tqdm(desc="evaluate", unit="image", disable=_hides_bar(progress)) as bar:
        for (image_ids, sizes_hw, _), outputs in _run(model, processor, loader, progress=False):
            detections = every_detection(processor, outputs, sizes_hw, max_detections)
            on_cpu = [{key: v.cpu() for key, v in one.items()} for one in detections]
            found.append((image_ids, [relabelled(one, labels) for one in on_cpu]))
            bar.update(len(image_ids))
    shares = [truth for share in gather_from_processes(truths) for truth in share]
    joined = {key: [v for one in shares for v in one[key]] for key in ("images", "annotations")}
    evaluator = CocoEvaluator({**joined, "categories": categories}, **options)
    for batch in found:
        evaluator.update(*batch)
    return evaluator.compute()


def detect(
    model: nn.Module,
    processor: DetectionImageProcessor,
    dataset: DetectionDataset,
    batch_size: int = 8,
    num_workers: int = 0,
    masks: bool = False,
    progress: bool = True,
    max_detections: int = MAX_DETECTIONS,
    tiles: int | None = None,
    overlap: float = OVERLAP,
) -> Iterator[tuple[list[int], list[dict[str, Tensor]]]]:
    """Detect objects in this process's part of the images of a data set.

    Arguments as in `evaluate`, and `masks`: whether to return masks.

    Yields:
        For each batch the image ids, and for each image `scores` (n,), `labels` (n,) of the data
        set, `boxes` (n, 4) as (x0, y0, x1, y1) in pixels of the original image, and optionally
        `masks` (n, height, width) bool of its size, `JoinedMasks` for those of several tiles.
    """
    dataset = as_detection_dataset(dataset)
    labels = label_map(_unwrapped(model).config.id2label, dataset.id2label)

    def found(batch: Batch, outputs: Any) -> list[dict[str, Tensor]]:
        _, sizes_hw, inputs = batch
        detections = every_detection(processor, outputs, sizes_hw, max_detections)
        if masks:
            _add_masks(detections, outputs, inputs, sizes_hw)
        for one in detections:
            del one["queries"]
        return [relabelled(one, labels) for one in detections]

    loader, places = load_tiles(dataset, processor, batch_size, num_workers, tiles, overlap)
    runs = _run(model, processor, loader, progress)
    results = ((batch[0], found(batch, outputs)) for batch, outputs in runs)
    yield from join_batches(results, places, max_detections)


def every_detection(
    processor: DetectionImageProcessor,
    outputs: Any,
    sizes_hw: Any,
    max_detections: int = MAX_DETECTIONS,
) -> list[dict[str, Tensor]]:
    """Return all detections of a batch with any score, and the `queries` (n,) they are from."""
    # With a softmax, every query is one detection. For fewer, COCO's rule is per class, too.
    is_sigmoid = issubclass(processor.classification, SigmoidFocalClassification)
    top_k = {"top_k": max(max_detections, MAX_DETECTIONS)} if is_sigmoid else {}
    scores, labels, queries = processor.classification.detections(outputs.logits, **top_k)
    boxes = outputs.pred_boxes.gather(1, queries[..., None].expand(-1, -1, 4))
    return detections_per_image(scores, labels, boxes, EVERY_SCORE, sizes_hw, queries)


def evaluate_panoptic(
    model: nn.Module,
    processor: DetectionImageProcessor,
    dataset: DetectionDataset,
    batch_size: int = 8,
    num_workers: int = 0,
    threshold: float = PANOPTIC_THRESHOLD,
    progress: bool = True,
    tiles: int | None = None,
    overlap: float = OVERLAP,
) -> Metrics:
    """Evaluate a segmentation model on panoptic data with panoptic quality.

    Arguments as in `evaluate`, and `threshold`: minimum score of segments, which are merged as in
    the paper, see `post_process_panoptic_merge`.

    Returns:
        The result of `PanopticQuality.compute`.

    Raises:
        ValueError: if the data set isn't panoptic, or has no class in common with the model.
    """
    check_model(_unwrapped(model), processor, needs_masks=True)
    dataset = as_detection_dataset(dataset)
    if dataset.segment_maps is None:
        raise ValueError("The data set has no panoptic maps; use read_coco_panoptic.")
    stuff = dataset.label_ids_of_stuff
    quality = PanopticQuality(dataset.id2label, set(dataset.id2label) - stuff)
    labels = label_map(_unwrapped(model).config.id2label, dataset.id2label)
    fused = {label for label, data_label in labels.items() if data_label in stuff}
    index_of = {int(image_id): i for i, image_id in enumerate(dataset.table.image_ids)}

    loader, places = load_tiles(dataset, processor, batch_size, num_workers, tiles, overlap)
    merge = processor.post_process_panoptic_merge
    results = (
        (ids, merge(outputs, threshold, fused, target_sizes=sizes_hw))
        for (ids, sizes_hw, _), outputs in _run(model, processor, loader, progress)
    )
    for image_ids, segmentations in join_batches(results, places):
        quality.update(
            image_ids,
            [relabelled_segments(segments, labels) for segments in segmentations],
            [target_segments(dataset, index_of[image_id]) for image_id in image_ids],
        )
    return quality.compute()


def _ground_truth(dataset: DetectionDataset, lvis: Mapping[str, Any] | None) -> dict[str, Any]:
    ground_truth = dataset.ground_truth()
    if lvis is None:
        return ground_truth
    return add_lvis_fields(ground_truth, lvis, dataset.category_ids)


def _unwrapped(model: nn.Module) -> nn.Module:
    """Remove DistributedDataParallel, which would wait for processes with fewer batches."""
    return model.module if isinstance(model, nn.parallel.DistributedDataParallel) else model


def _hides_bar(progress: bool) -> bool | None:
    """Return tqdm's `disable`; None shows the bar on a terminal only."""
    return None if progress and process_index() == 0 else True


def _run(
    model: nn.Module, processor: DetectionImageProcessor, loader: DataLoader, progress: bool
) -> Iterator[tuple[Batch, Any]]:
    """Iterate over this process's batches, with inputs of the model, and the model's outputs."""
    model = _unwrapped(model)
    with in_eval_mode(model):
        # tqdm would start the workers of a loader itself, and a second time when it is iterated.
        batches = iter(loader)
        bar = tqdm(batches, desc="evaluate", unit="batch", disable=_hides_bar(progress))
        for image_ids, original_hw, packed in bar:
            inputs = packed.unpack(processor, model.device, torch.contiguous_format)
            del inputs["labels"]
            inputs["pixel_values"] = inputs["pixel_values"].to(model.dtype)
            with torch.no_grad():
                outputs = model(**inputs)
            yield (image_ids, original_hw, inputs), outputs


def _add_masks(
    detections: list[dict[str, Tensor]],
    outputs: Any,
    inputs: Mapping[str, Tensor],
    sizes_hw: list[tuple[int, int]],
) -> None:
    """Add `masks` (n, height, width) bool of each image's original size to its detections."""
    canvas_hw = tuple(inputs["pixel_values"].shape[-2:])
    for index, (found, size_hw) in enumerate(zip(detections, sizes_hw, strict=True)):
        height, width = canvas_hw
        if "pixel_mask" in inputs:
            mask = inputs["pixel_mask"][index]
            height, width = int(mask[:, 0].sum()), int(mask[0].sum())
        queries = found["queries"]
        parts = [torch.empty((0, *size_hw), dtype=torch.bool, device=queries.device)]
        for chunk in queries.split(MASKS_AT_ONCE) if len(queries) else ():
            logits = outputs.pred_masks[index, chunk].float()
            # In two steps as in the official code, for comparable results.
            large = F.interpolate(logits[None], canvas_hw, mode="bilinear", align_corners=False)
            inside = (large[..., :height, :width] > 0).float()
            parts.append(F.interpolate(inside, size_hw, mode="nearest")[0] > 0.5)
        found["masks"] = torch.cat(parts)
