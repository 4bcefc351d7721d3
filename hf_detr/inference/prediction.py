"""Runs a model on any number of images, in batches of equal size and therefore without padding."""

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from tqdm.auto import tqdm
from transformers.image_processing_utils import BatchFeature
from transformers.utils import ModelOutput

from ..data.tile_grid import OVERLAP, check_tiles, tile_windows
from ..image_processing.image_processor import DetectionImageProcessor
from ..image_processing.image_reading import read_images
from ..image_processing.image_settings import number_of_channels
from .score_thresholds import Threshold, threshold_of_labels
from .tile_results import TileResults

WAITING_BATCHES = 4  # at most this many batches of images wait for others of their size
PROGRESS_AFTER = 3  # seconds


@dataclass(frozen=True)
class _Tile:
    """A tile of an image, or a whole image; or the reason why the image can't be read."""

    image: int  # index
    error: Exception | None = None
    number: int = 0  # in the image
    windows: np.ndarray | None = None  # of all tiles of the image
    pixels: Tensor | None = None  # (C, h, w)
    inputs: BatchFeature | None = None  # of the model, a batch of one

    @property
    def is_last(self) -> bool:
        """Whether no other tile of the image follows."""
        return self.error is not None or self.number == len(self.windows) - 1


def predict(
    model: nn.Module,
    processor: DetectionImageProcessor,
    images: Any,
    threshold: Threshold = None,
    batch_size: int = 8,
    progress: bool = True,
    tiles: int | None = None,
    overlap: float = OVERLAP,
) -> list[dict[str, Any]]:
    """Detect objects in images; predictions don't depend on the batch size.

    Args:
        model: a detector or segmentation model, in training or eval mode.
        processor: the model's image processor.
        images: an image or a list of images: PIL images, arrays, tensors, paths or URLs.
        threshold: minimum score of returned objects, or a dict of class names and scores. Default,
            also of classes that the dict lacks: `config.class_thresholds` of the model, or 0.5.
        batch_size: number of images or tiles with the same size that run together.
        progress: whether to show a progress bar on a terminal, after a few seconds.
        tiles: side in pixels of tiles that larger images are cut into, whose results are joined.
        overlap: share of the side by which neighbouring tiles overlap; objects that are larger are
            joined from their parts.

    Returns:
        A dictionary per image, in the given order, on the CPU: `scores` (n,), `labels` (n,) and
        `boxes` (n, 4) as (x0, y0, x1, y1) in pixels of the upright image; for a segmentation model
        also `segmentation` and `segments_info` of `post_process_panoptic_segmentation`.

    Raises:
        ValueError, TypeError: if an image can't be read; the message has its index.
        ValueError: if tiles or overlap are too small or too large.
    """
    if not isinstance(images, Sequence) or isinstance(images, str):
        images = list(images) if getattr(images, "ndim", 0) == 4 else [images]
    given = model, processor, images, threshold, batch_size
    results = stream_predictions(*given, tiles=tiles, overlap=overlap)
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
    tiles: int | None = None,
    overlap: float = OVERLAP,
) -> Iterator[tuple[int, dict[str, Any]]]:
    """Detect objects as `predict` does, and yield results as soon as a batch is done.

    At most a few batches of images are in memory.

    Args:
        model, processor, threshold, batch_size, tiles, overlap: see `predict`.
        images: any number of images, or functions that return one.
        on_bad_image: called with the index of an image that can't be read and the error. Default:
            raise the error.
        num_workers: number of threads that read and resize images while the model runs. 0 does it
            between the batches.

    Yields:
        Index and result of every image, not in order.
    """
    given = model, processor, images, threshold, batch_size, on_bad_image, num_workers
    for index, _, result in stream_with_sizes(*given, tiles=tiles, overlap=overlap):
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
    tiles: int | None = None,
    overlap: float = OVERLAP,
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
    check_tiles(tiles, overlap)
    found, bad = TileResults(), set()

    def readable() -> Iterator[_Tile]:
        for tile in _prepare_ahead(processor, images, num_workers, batch_size, tiles, overlap):
            if tile.error is not None and tile.image not in bad:
                if on_bad_image is None:
                    raise tile.error
                bad.add(tile.image)
                on_bad_image(tile.image, tile.error)
            yield tile

    with in_eval_mode(model):
        for batch in _batches(readable(), batch_size, group_size):
            for tile, result in _run(model, processor, batch, threshold):
                joined = found.add(tile.image, tile.number, tile.windows, result)
                if joined is not None:
                    width, height = tile.windows[:, 2:].max(0).tolist()
                    yield tile.image, (height, width), joined


def _batches(
    tiles: Iterable[_Tile], batch_size: int, group_size: int | None
) -> Iterator[list[_Tile]]:
    """Yield batches of tiles of equal size; those with errors are in none."""
    waiting: dict[tuple[int, ...], list[_Tile]] = {}
    for tile in tiles:
        if tile.error is None:
            shape = tuple(tile.inputs["pixel_values"].shape)
            waiting.setdefault(shape, []).append(tile)
            if len(waiting[shape]) == batch_size:
                yield waiting.pop(shape)
            elif sum(map(len, waiting.values())) == WAITING_BATCHES * batch_size:
                yield waiting.pop(max(waiting, key=lambda shape: len(waiting[shape])))
        if group_size and tile.is_last and (tile.image + 1) % group_size == 0:
            while waiting:
                yield waiting.popitem()[1]
    yield from waiting.values()


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
    processor: DetectionImageProcessor,
    images: Iterable[Any],
    num_workers: int,
    batch_size: int,
    tiles: int | None,
    overlap: float,
) -> Iterator[_Tile]:
    """Prepare the tiles of images in order, the next ones in threads.

    Only the tiles of the next batch are prepared, of large images that are kept once.
    """

    def read(numbered: tuple[int, Any]) -> _Tile:
        index, image = numbered
        try:
            pixels = read_for(processor, [image() if callable(image) else image], index)
            if len(pixels) != 1:
                raise ValueError(
                    f"image {index} is a batch of {len(pixels)} images; expected one image."
                )
        except (ValueError, TypeError, OSError) as error:
            return _Tile(index, error)
        windows = tile_windows(pixels[0].shape[-2:], tiles, overlap)
        tile = _Tile(index, windows=windows, pixels=pixels[0])
        return prepare(tile) if len(windows) == 1 else tile

    def prepare(tile: _Tile) -> _Tile:
        x0, y0, x1, y1 = tile.windows[tile.number].tolist()
        pixels = [tile.pixels[:, y0:y1, x0:x1]]
        try:
            inputs = processor(pixels, input_data_format="channels_first", return_tensors="pt")
        except (ValueError, TypeError, OSError) as error:
            return _Tile(tile.image, error)
        return replace(tile, pixels=None, inputs=inputs)

    num_ahead = batch_size if tiles is None else num_workers
    for image in _map_ahead(read, enumerate(images), num_workers, num_ahead):
        if image.pixels is None:
            yield image
        else:
            parts = (replace(image, number=number) for number in range(len(image.windows)))
            yield from _map_ahead(prepare, parts, num_workers, batch_size)


def _map_ahead(
    function: Callable[[Any], _Tile], values: Iterable[Any], num_workers: int, most: int
) -> Iterator[_Tile]:
    """Call a function for values in order, for the next ones in threads, so that it doesn't block.

    Args:
        num_workers: number of threads; 0 calls it here, when its result is needed.
        most: number of results that are kept for later.
    """
    if not num_workers:
        yield from map(function, values)
        return
    pending = deque()
    pool = ThreadPoolExecutor(num_workers)
    try:
        for value in values:
            pending.append(pool.submit(function, value))
            if len(pending) == most + 1:
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()
    finally:
        # Without waiting: a stream that nobody uses any more can be closed in one of these threads,
        # which can't wait for itself.
        pool.shutdown(wait=False, cancel_futures=True)


def _run(
    model: nn.Module,
    processor: DetectionImageProcessor,
    batch: list[_Tile],
    threshold: float | Tensor,
) -> Iterator[tuple[_Tile, dict[str, Any]]]:
    parts = [tile.inputs for tile in batch]
    inputs = BatchFeature({name: torch.cat([part[name] for part in parts]) for name in parts[0]})
    with torch.no_grad():
        outputs = model(**inputs.to(model.device, model.dtype))
    sizes_hw = [_size_hw(tile.windows[tile.number]) for tile in batch]
    yield from zip(batch, read_outputs(processor, outputs, threshold, sizes_hw), strict=True)


def _size_hw(window: np.ndarray) -> tuple[int, int]:
    x0, y0, x1, y1 = window.tolist()
    return y1 - y0, x1 - x0


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
