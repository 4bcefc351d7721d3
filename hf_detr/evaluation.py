"""A model on a data set: results that don't depend on the batch size, and their AP or PQ."""

import copy
import functools
import warnings
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader
from tqdm.auto import tqdm
from transformers.image_utils import SizeDict

from .batches import SizeGroupedBatches
from .coco_evaluator import CocoEvaluator, Metrics
from .detection_data import DetectionDataset
from .image_processing_detr import DetrImageProcessor
from .image_settings import resized_hw
from .image_source import read_segment_ids
from .panoptic_quality import PanopticQuality
from .prediction import in_eval_mode
from .processes import num_processes, process_index

Batch = tuple[list[int], list[tuple[int, int]], Any]  # image ids, original (height, width), inputs

EVERY_SCORE = -1.0  # a threshold below all scores
PANOPTIC_THRESHOLD = 0.85  # of the official code
MASKS_AT_ONCE = 10  # at full size, all masks of an image may take more memory than the model


def evaluate(
    model: nn.Module,
    processor: DetrImageProcessor,
    dataset: DetectionDataset,
    batch_size: int = 8,
    num_workers: int = 0,
    iou_types: Sequence[str] = ("bbox",),
    progress: bool = True,
) -> Metrics:
    """Evaluate a model on a data set, by COCO's rules.

    Images go through the processor alone, as in inference; a transform of the data set is left
    aside. Where torch.distributed is initialised, every process must call this; each evaluates a
    share of the images and returns the result of all.

    Args:
        model: a detector, or for "segm" a segmentation model; on its device, in any mode.
        processor: prepares images and reads the outputs.
        dataset: needs `masks=True` for "segm".
        batch_size: images of equal size that run together; doesn't change the result.
        num_workers: processes that load images.
        iou_types: "bbox", "segm" or both.
        progress: show a progress bar, on a terminal.

    Returns:
        What `CocoEvaluator.compute` returns.

    Raises:
        ValueError: if the model and the data have no class in common.
    """
    evaluator = CocoEvaluator(dataset.ground_truth(), iou_types)
    for image_ids, detections in detect(
        model, processor, dataset, batch_size, num_workers, "segm" in iou_types, progress
    ):
        evaluator.update(image_ids, detections)
    return evaluator.compute()


def detect(
    model: nn.Module,
    processor: DetrImageProcessor,
    dataset: DetectionDataset,
    batch_size: int = 8,
    num_workers: int = 0,
    masks: bool = False,
    progress: bool = True,
) -> Iterator[tuple[list[int], list[dict[str, Tensor]]]]:
    """Detect objects in the images of a data set, on this process's share of them.

    Arguments as in `evaluate`; `masks` asks for masks too.

    Yields:
        For every batch the image ids, and per image `scores` (n,), `labels` (n,) as the data set
        numbers them, `boxes` (n, 4) as (x0, y0, x1, y1) in pixels of the original image, and if
        asked for `masks` (n, height, width) bool of its size.
    """
    labels = label_map(_unwrapped(model).config.id2label, dataset.id2label)
    for (image_ids, sizes_hw, inputs), outputs in _run(
        model, processor, dataset, batch_size, num_workers, progress
    ):
        detections = every_detection(processor, outputs, sizes_hw)
        if masks:
            _add_masks(detections, outputs, processor, inputs, sizes_hw)
        yield image_ids, [_relabelled(found, labels) for found in detections]


def every_detection(
    processor: DetrImageProcessor, outputs: Any, sizes_hw: Any
) -> list[dict[str, Tensor]]:
    """All detections of a batch, weak ones too, which AP needs; warns if the model gives NaN."""
    if outputs.logits.isnan().any():
        warnings.warn(
            "the model's logits are NaN, which no threshold lets pass: it detects nothing. Was its "
            "training sound, or is its dtype too narrow for it?",
            stacklevel=2,
        )
    return processor.post_process_object_detection(outputs, EVERY_SCORE, sizes_hw)


def evaluate_panoptic(
    model: nn.Module,
    processor: DetrImageProcessor,
    dataset: DetectionDataset,
    batch_size: int = 8,
    num_workers: int = 0,
    threshold: float = PANOPTIC_THRESHOLD,
    progress: bool = True,
) -> Metrics:
    """Evaluate a segmentation model on panoptic data, by panoptic quality.

    Arguments as in `evaluate`; `threshold` is the score from which queries become segments. They
    are merged by the paper's rules, see `post_process_panoptic_merge`.

    Returns:
        What `PanopticQuality.compute` returns.

    Raises:
        ValueError: if the data aren't panoptic, or have no class in common with the model.
    """
    if dataset.segment_maps is None:
        raise ValueError("the data have no panoptic maps; read them with read_coco_panoptic.")
    stuff = dataset.label_ids_of_stuff
    quality = PanopticQuality(dataset.id2label, set(dataset.id2label) - stuff)
    labels = label_map(_unwrapped(model).config.id2label, dataset.id2label)
    fused = {label for label, data_label in labels.items() if data_label in stuff}
    index_of = {int(image_id): i for i, image_id in enumerate(dataset.table.image_ids)}
    for (image_ids, sizes_hw, _), outputs in _run(
        model, processor, dataset, batch_size, num_workers, progress
    ):
        found = processor.post_process_panoptic_merge(
            outputs, threshold, fused, target_sizes=sizes_hw
        )
        quality.update(
            image_ids,
            [_relabelled_segments(segments, labels) for segments in found],
            [_true_segments(dataset, index_of[image_id]) for image_id in image_ids],
        )
    return quality.compute()


def label_map(model_names: Mapping[int, str], data_names: Mapping[int, str]) -> dict[int, int]:
    """The data's label of each of the model's labels, matched by name.

    Models number classes as their training data did: those of COCO's authors leave gaps, for
    example. Labels of the model without a name (`LABEL_0`, …) are taken to be the data's.

    Raises:
        ValueError: if no name is in both.
    """
    model_names = {int(label): name for label, name in model_names.items()}
    if all(name == f"LABEL_{label}" for label, name in model_names.items()):
        shared = {label: label for label in model_names if label in data_names}
    else:
        label_of_name = {name: label for label, name in data_names.items()}
        shared = {
            label: label_of_name[name]
            for label, name in model_names.items()
            if name in label_of_name
        }
    if not shared:
        raise ValueError(
            f"the model's classes {list(model_names.values())[:5]} … and the data's "
            f"{list(data_names.values())[:5]} … have no name in common; evaluate on data with the "
            "model's classes, or set model.config.id2label."
        )
    unknown = [name for label, name in data_names.items() if label not in shared.values()]
    if unknown:
        warnings.warn(
            f"the model lacks {len(unknown)} of the data's {len(data_names)} classes, such as "
            f"{unknown[:5]}; it can't find their objects, and their AP is 0.",
            stacklevel=2,
        )
    return shared


def _unwrapped(model: nn.Module) -> nn.Module:
    """The model without a wrapper that would wait for processes that have one batch less."""
    return model.module if isinstance(model, nn.parallel.DistributedDataParallel) else model


def _run(
    model: nn.Module,
    processor: DetrImageProcessor,
    dataset: DetectionDataset,
    batch_size: int,
    num_workers: int,
    progress: bool,
) -> Iterator[tuple[Batch, Any]]:
    """This process's batches, and what the model makes of them."""
    model = _unwrapped(model)
    with in_eval_mode(model):
        loader = _make_loader(processor, dataset, batch_size, num_workers)
        for image_ids, sizes_hw, inputs in _with_progress(loader, progress):
            with torch.no_grad():
                outputs = model(**inputs.to(model.device, model.dtype))
            yield (image_ids, sizes_hw, inputs), outputs


def _make_loader(
    processor: DetrImageProcessor, dataset: DetectionDataset, batch_size: int, num_workers: int
) -> DataLoader:
    """This process's batches: image ids, original sizes, inputs; none padded by another image."""
    plain = copy.copy(dataset)
    plain.set_transform(None)
    sizes_hw = [dataset.image_hw(index) for index in range(len(dataset))]
    if processor.do_resize:
        size = SizeDict(**dict(processor.size))
        sizes_hw = [resized_hw(size_hw, size) for size_hw in sizes_hw]
    return DataLoader(
        plain,
        batch_sampler=SizeGroupedBatches(sizes_hw, batch_size, process_index(), num_processes()),
        num_workers=num_workers,
        collate_fn=functools.partial(_collate, processor),
    )


def _collate(
    processor: DetrImageProcessor, samples: Sequence[tuple[Tensor, dict[str, Tensor]]]
) -> Batch:
    images = [image for image, _ in samples]
    inputs = processor(images, input_data_format="channels_first", return_tensors="pt")
    image_ids = [int(target["image_id"]) for _, target in samples]
    return image_ids, [tuple(target["orig_size"].tolist()) for _, target in samples], inputs


def _with_progress(loader: DataLoader, progress: bool) -> Iterator[Batch]:
    disable = (
        None if progress and process_index() == 0 else True
    )  # None shows it on a terminal only
    return iter(tqdm(loader, desc="evaluate", unit="batch", disable=disable))


def _relabelled(found: Mapping[str, Tensor], labels: Mapping[int, int]) -> dict[str, Tensor]:
    """Detections with the data's labels, without classes that the data lack."""
    new_labels = torch.tensor(
        [labels.get(label, -1) for label in found["labels"].tolist()], dtype=torch.int64
    )
    keep = new_labels >= 0
    kept = {key: value.cpu()[keep] for key, value in found.items()}
    return {**kept, "labels": new_labels[keep]}


def _relabelled_segments(found: Mapping[str, Any], labels: Mapping[int, int]) -> dict[str, Any]:
    """A segment map with the data's labels; pixels of classes that the data lack are void."""
    segmentation, segments = found["segmentation"].cpu().clone(), []
    for info in found["segments_info"]:
        if info["label_id"] in labels:
            segments.append({**info, "label_id": labels[info["label_id"]]})
        else:
            segmentation[segmentation == info["id"]] = 0
    return {"segmentation": segmentation, "segments_info": segments}


def _true_segments(dataset: DetectionDataset, index: int) -> dict[str, Any]:
    table = dataset.table
    segments = [
        {
            "id": int(table.ids[row]),
            "category_id": int(table.class_labels[row]),
            "iscrowd": int(table.is_crowd[row]),
        }
        for row in table.rows(index)
    ]
    segmentation = read_segment_ids(dataset.segment_maps, index)
    # As in COCO's own evaluation: what isn't listed is void, and what has no pixel isn't there.
    drawn = set(segmentation.unique().tolist())
    segments = [segment for segment in segments if segment["id"] in drawn]
    listed = torch.tensor([segment["id"] for segment in segments], dtype=segmentation.dtype)
    segmentation = segmentation.where(torch.isin(segmentation, listed), 0)
    return {"segmentation": segmentation, "segments_info": segments}


def _add_masks(
    detections: list[dict[str, Tensor]],
    outputs: Any,
    processor: DetrImageProcessor,
    inputs: Mapping[str, Tensor],
    sizes_hw: list[tuple[int, int]],
) -> None:
    """Add `masks` (n, height, width) bool of each image's original size to its detections."""
    canvas_hw = tuple(inputs["pixel_values"].shape[-2:])
    _, _, queries = processor.classification.detections(outputs.logits)
    for index, (found, size_hw) in enumerate(zip(detections, sizes_hw, strict=True)):
        height, width = canvas_hw
        if "pixel_mask" in inputs:
            mask = inputs["pixel_mask"][index]
            height, width = int(mask[:, 0].sum()), int(mask[0].sum())
        parts = []
        for logits in outputs.pred_masks[index, queries[index]].float().split(MASKS_AT_ONCE):
            # In the official code's two steps, so that the numbers can be compared.
            large = F.interpolate(logits[None], canvas_hw, mode="bilinear", align_corners=False)
            inside = (large[..., :height, :width] > 0).float()
            parts.append(F.interpolate(inside, size_hw, mode="nearest")[0] > 0.5)
        found["masks"] = torch.cat(parts)
