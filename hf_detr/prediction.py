"""What a model finds in any images: in batches, of which none pads an image."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from tqdm.auto import tqdm
from transformers.image_processing_utils import BatchFeature
from transformers.utils import ModelOutput

from .image_processing_detr import DetrImageProcessor
from .image_reading import read_images

WAITING_BATCHES = 4  # worth of prepared images that wait for others of their size
PROGRESS_AFTER = 3  # seconds


@dataclass(frozen=True)
class _Prepared:
    """An image as the model gets it."""

    index: int
    size_hw: tuple[int, int]  # of the upright original
    inputs: BatchFeature  # a batch of one


def predict(
    model: nn.Module,
    processor: DetrImageProcessor,
    images: Any,
    threshold: float = 0.5,
    batch_size: int = 8,
    progress: bool = True,
) -> list[dict[str, Any]]:
    """Find objects in images; what is found doesn't depend on the batch size.

    Args:
        model: a detector or a segmentation model; on its device, in any mode.
        processor: prepares images and reads the outputs.
        images: one image or a list of them: PIL images, arrays, tensors, paths or URLs.
        threshold: keep objects that score higher.
        batch_size: images of equal size that run together.
        progress: show a progress bar where it takes longer than a few seconds, on a terminal.

    Returns:
        Per image, in the order given, on the CPU: `scores` (n,), `labels` (n,) and `boxes` (n, 4)
        as (x0, y0, x1, y1) in pixels of the upright image; of a segmentation model also
        `segmentation` and `segments_info`, see `post_process_panoptic_segmentation`.

    Raises:
        ValueError, TypeError: if an image can't be read; the message names it.
    """
    if not isinstance(images, Sequence) or isinstance(images, str):
        images = list(images) if getattr(images, "ndim", 0) == 4 else [images]
    found: dict[int, dict[str, Any]] = {}
    results = stream_predictions(model, processor, images, threshold, batch_size)
    disable = None if progress else True  # None shows it on a terminal only
    bar = {"total": len(images), "unit": "image", "delay": PROGRESS_AFTER, "disable": disable}
    for index, result in tqdm(results, desc="predict", **bar):
        found[index] = result
    return [found[index] for index in range(len(images))]


def stream_predictions(
    model: nn.Module,
    processor: DetrImageProcessor,
    images: Iterable[Any],
    threshold: float = 0.5,
    batch_size: int = 8,
    on_bad_image: Callable[[int, Exception], None] | None = None,
) -> Iterator[tuple[int, dict[str, Any]]]:
    """The same one by one, as soon as a batch is full; holds a few batches of images at a time.

    Args:
        images: are read when their turn comes.
        on_bad_image: is told the index of an image that can't be read, and why, instead of an
            error that ends everything.

    Yields:
        Index of the image and its result, each image once, but not in their order.
    """
    if batch_size < 1:
        raise ValueError(f"batch_size is {batch_size}; give 1 or more.")
    waiting: dict[tuple[int, ...], list[_Prepared]] = {}
    with in_eval_mode(model):
        for index, image in enumerate(images):
            try:
                prepared = _prepare(processor, image, index)
            except (ValueError, TypeError) as error:
                if on_bad_image is None:
                    raise
                on_bad_image(index, error)
                continue
            shape = tuple(prepared.inputs["pixel_values"].shape)
            waiting.setdefault(shape, []).append(prepared)
            if len(waiting[shape]) == batch_size:
                yield from _run(model, processor, waiting.pop(shape), threshold)
            elif sum(map(len, waiting.values())) == WAITING_BATCHES * batch_size:
                fullest = max(waiting, key=lambda shape: len(waiting[shape]))
                yield from _run(model, processor, waiting.pop(fullest), threshold)
        for batch in waiting.values():
            yield from _run(model, processor, batch, threshold)


@contextmanager
def in_eval_mode(model: nn.Module) -> Iterator[None]:
    """Put a model into eval mode, and each of its parts back into the mode that it was in."""
    modes = [(module, module.training) for module in model.modules()]
    if not any(was_training for _, was_training in modes):
        yield  # as it is: the call would drop what inference keeps
        return
    model.eval()
    try:
        yield
    finally:
        model.train()  # which drops it
        # One by one: parts that are frozen may have been in eval mode in training too.
        for module, was_training in modes:
            module.training = was_training


def read_for(processor: DetrImageProcessor, images: Any, first_index: int = 0) -> list[Tensor]:
    """Images (3, H, W) as `processor` would read them itself, for it and for their sizes."""
    return read_images(
        images,
        unit_floats=processor.do_rescale,
        check_range=processor.do_rescale or processor.do_normalize,
        blend_alpha=bool(processor.do_convert_rgb),
        first_index=first_index,
    )


def _prepare(processor: DetrImageProcessor, image: Any, index: int) -> _Prepared:
    pixels = read_for(processor, [image], index)
    if len(pixels) != 1:
        raise ValueError(f"image {index} holds {len(pixels)} images; give them one by one.")
    inputs = processor(pixels, input_data_format="channels_first", return_tensors="pt")
    return _Prepared(index, tuple(pixels[0].shape[-2:]), inputs)


def _run(
    model: nn.Module, processor: DetrImageProcessor, batch: list[_Prepared], threshold: float
) -> Iterator[tuple[int, dict[str, Any]]]:
    names = batch[0].inputs.keys()
    inputs = BatchFeature({name: torch.cat([one.inputs[name] for one in batch]) for name in names})
    with torch.no_grad():
        outputs = model(**inputs.to(model.device, model.dtype))
    found = read_outputs(processor, outputs, threshold, [one.size_hw for one in batch])
    yield from zip((one.index for one in batch), found, strict=True)


def read_outputs(
    processor: DetrImageProcessor,
    outputs: ModelOutput,
    threshold: float,
    sizes_hw: Sequence[tuple[int, int]],
) -> list[dict[str, Any]]:
    """What a model found in a batch, as `predict` returns it, in images of the given sizes."""
    results = processor.post_process_object_detection(outputs, threshold, sizes_hw)
    if "pred_masks" in outputs:
        maps = processor.post_process_panoptic_segmentation(
            outputs, threshold, target_sizes=sizes_hw
        )
        results = [{**result, **segments} for result, segments in zip(results, maps, strict=True)]
    return [{key: _on_cpu(value) for key, value in result.items()} for result in results]


def _on_cpu(value: Any) -> Any:
    return value.cpu() if isinstance(value, Tensor) else value
