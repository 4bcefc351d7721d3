"""Runs a model on any number of images, in batches of equal size and therefore without padding."""

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from tqdm.auto import tqdm
from transformers.image_processing_utils import BatchFeature
from transformers.utils import ModelOutput

from ..image_processing.image_processor import DetectionImageProcessor
from ..image_processing.image_reading import read_images
from ..image_processing.image_settings import number_of_channels
from .score_thresholds import Threshold, threshold_of_labels

WAITING_BATCHES = 4  # at most this many batches of images wait for others of their size
PROGRESS_AFTER = 3  # seconds

# Index of an image, (h, w) of the upright image, and inputs of the model, a batch of one.
_Prepared = tuple[int, tuple[int, int], BatchFeature]


def predict(
    model: nn.Module,
    processor: DetectionImageProcessor,
    images: Any,
    threshold: Threshold = None,
    batch_size: int = 8,
    progress: bool = True,
) -> list[dict[str, Any]]:
    """Detect objects in images; predictions don't depend on the batch size.

    Args:
        model: a detector or segmentation model, in training or eval mode.
        processor: the model's image processor.
        images: an image or a list of images: PIL images, arrays, tensors, paths or URLs.
        threshold: minimum score of returned objects, or a dict of class names and scores. Default:
            the model's `config.class_thresholds`, and 0.5 for classes without.
        batch_size: number of images with the same size that run together.
        progress: whether to show a progress bar on a terminal, after a few seconds.

    Returns:
        A dictionary per image, in the given order, on the CPU: `scores` (n,), `labels` (n,) and
        `boxes` (n, 4) as (x0, y0, x1, y1) in pixels of the upright image; for a segmentation model
        also `segmentation` and `segments_info` of `post_process_panoptic_segmentation`.

    Raises:
        ValueError, TypeError: if an image can't be read; the message has its index.
    """
    if not isinstance(images, Sequence) or isinstance(images, str):
        images = list(images) if getattr(images, "ndim", 0) == 4 else [images]
    results = stream_predictions(model, processor, images, threshold, batch_size)
    disable = None if progress else True  # None shows it on a terminal only
    bar = {"total": len(images), "unit": "image", "delay": PROGRESS_AFTER, "disable": disable}
    found = dict(tqdm(results, desc="predict", **bar))
    return [found[index] for index in range(len(images))]


def stream_predictions(
    model: nn.Module,
    processor: DetectionImageProcessor,
    images: Iterable[Any],
    threshold: Threshold = None,
    batch_size: int = 8,
    on_bad_image: Callable[[int, Exception], None] | None = None,
    num_workers: int = 0,
) -> Iterator[tuple[int, dict[str, Any]]]:
    """Detect objects as `predict` does, and yield results as soon as a batch is done.

    At most a few batches of images are in memory.

    Args:
        model, processor, threshold, batch_size: see `predict`.
        images: any number of images, or functions that return one.
        on_bad_image: called with the index of an image that can't be read and the error. Default:
            raise the error.
        num_workers: number of threads that read and resize images while the model runs. 0 does it
            between the batches.

    Yields:
        Index and result of every image, not in order.
    """
    given = model, processor, images, threshold, batch_size, on_bad_image, num_workers
    for index, _, result in stream_with_sizes(*given):
        yield index, result


def stream_with_sizes(
    model: nn.Module,
    processor: DetectionImageProcessor,
    images: Iterable[Any],
    threshold: Threshold = None,
    batch_size: int = 8,
    on_bad_image: Callable[[int, Exception], None] | None = None,
    num_workers: int = 0,
    group_size: int | None = None,
) -> Iterator[tuple[int, tuple[int, int], dict[str, Any]]]:
    """Do the same as `stream_predictions`, with the size (h, w) of every upright image.

    Images of different groups of `group_size` consecutive images are never in one batch, and
    results come group by group. A run that starts at any group has the same batches, and therefore
    exactly the same results, as one from the beginning.
    """
    for name, number, least in (("batch_size", batch_size, 1), ("num_workers", num_workers, 0)):
        if number < least:
            raise ValueError(f"{name} is {number}; expected at least {least}.")
    threshold = threshold_of_labels(threshold, model.config)
    waiting: dict[tuple[int, ...], list[_Prepared]] = {}
    with in_eval_mode(model):
        prepared_images = _prepare_ahead(processor, images, num_workers, batch_size)
        for index, prepared in enumerate(prepared_images):
            if isinstance(prepared, Exception):
                if on_bad_image is None:
                    raise prepared
                on_bad_image(index, prepared)
            else:
                shape = tuple(prepared[-1]["pixel_values"].shape)
                waiting.setdefault(shape, []).append(prepared)
                if len(waiting[shape]) == batch_size:
                    yield from _run(model, processor, waiting.pop(shape), threshold)
                elif sum(map(len, waiting.values())) == WAITING_BATCHES * batch_size:
                    fullest = max(waiting, key=lambda shape: len(waiting[shape]))
                    yield from _run(model, processor, waiting.pop(fullest), threshold)
            if group_size and (index + 1) % group_size == 0:
                while waiting:
                    yield from _run(model, processor, waiting.popitem()[1], threshold)
        for batch in waiting.values():
            yield from _run(model, processor, batch, threshold)


@contextmanager
def in_eval_mode(model: nn.Module) -> Iterator[None]:
    """Put a model into eval mode and restore the mode of each module afterwards."""
    modes = [(module, module.training) for module in model.modules()]
    if not any(was_training for _, was_training in modes):
        yield  # eval() would drop the folded backbone
        return
    model.eval()
    try:
        yield
    finally:
        model.train()  # drops the folded backbone
        # Frozen modules may be in eval mode in training, too.
        for module, was_training in modes:
            module.training = was_training


def read_for(processor: DetectionImageProcessor, images: Any, first_index: int = 0) -> list[Tensor]:
    """Read images to tensors (C, H, W) in the same way as `processor` does."""
    return read_images(
        images,
        unit_floats=processor.do_rescale,
        check_range=processor.do_rescale or processor.do_normalize,
        blend_alpha=bool(processor.do_convert_rgb),
        first_index=first_index,
        num_channels=number_of_channels(
            processor.image_mean, processor.image_std, processor.do_convert_rgb
        ),
    )


def _prepare_ahead(
    processor: DetectionImageProcessor, images: Iterable[Any], num_workers: int, batch_size: int
) -> Iterator[_Prepared | Exception]:
    """Prepare images in order, the next ones in threads, which decoding doesn't block.

    Yields:
        What the model needs of each image, or why it can't be read.
    """
    if not num_workers:
        for index, image in enumerate(images):
            yield _prepare(processor, image, index)
        return
    pending = deque()
    pool = ThreadPoolExecutor(num_workers)
    try:
        for index, image in enumerate(images):
            pending.append(pool.submit(_prepare, processor, image, index))
            if len(pending) == batch_size + num_workers:  # enough while the model runs a batch
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()
    finally:
        # Without waiting: a stream that nobody uses any more can be closed in one of these threads,
        # which can't wait for itself.
        pool.shutdown(wait=False, cancel_futures=True)


def _prepare(
    processor: DetectionImageProcessor, image: Any, index: int
) -> _Prepared | ValueError | TypeError | OSError:
    try:
        pixels = read_for(processor, [image() if callable(image) else image], index)
        if len(pixels) != 1:
            raise ValueError(
                f"image {index} is a batch of {len(pixels)} images; expected one image."
            )
        inputs = processor(pixels, input_data_format="channels_first", return_tensors="pt")
    except (ValueError, TypeError, OSError) as error:
        return error
    return index, tuple(pixels[0].shape[-2:]), inputs


def _run(
    model: nn.Module,
    processor: DetectionImageProcessor,
    batch: list[_Prepared],
    threshold: float | Tensor,
) -> Iterator[tuple[int, tuple[int, int], dict[str, Any]]]:
    indices, sizes_hw, parts = zip(*batch, strict=True)
    inputs = BatchFeature({name: torch.cat([part[name] for part in parts]) for name in parts[0]})
    with torch.no_grad():
        outputs = model(**inputs.to(model.device, model.dtype))
    results = read_outputs(processor, outputs, threshold, sizes_hw)
    yield from zip(indices, sizes_hw, results, strict=True)


def read_outputs(
    processor: DetectionImageProcessor,
    outputs: ModelOutput,
    threshold: float | Tensor,
    sizes_hw: Sequence[tuple[int, int]],
) -> list[dict[str, Any]]:
    """Convert a batch's outputs to results as of `predict`, for images of the given sizes."""
    results = processor.post_process_object_detection(outputs, threshold, sizes_hw)
    if "pred_masks" in outputs:
        maps = processor.post_process_panoptic_segmentation(
            outputs, threshold, target_sizes=sizes_hw
        )
        results = [{**result, **segments} for result, segments in zip(results, maps, strict=True)]
    return [
        {key: value.cpu() if isinstance(value, Tensor) else value for key, value in result.items()}
        for result in results
    ]
