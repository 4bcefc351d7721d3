"""Batching of samples: collators, and batches of images of equal size."""

import math
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from transformers.image_utils import SizeDict

from ..image_processing.coco_targets import normalize_target, pad_target
from ..image_processing.image_canvas import make_pixel_mask
from ..image_processing.image_processor import DetectionImageProcessor
from ..image_processing.image_settings import resized_hw

Sample = tuple[Tensor, dict[str, Tensor]]

ALIGNMENT = 16  # bytes; a multiple of the size of all types of values


class DetectionCollator:
    """Collates resized samples `(image, target)` into the inputs of a model.

    Args:
        processor: rescales, normalizes and pads the images with its own settings.
    """

    def __init__(self, processor: DetectionImageProcessor) -> None:
        self.processor = processor

    def __call__(self, samples: Sequence[Sample]) -> dict[str, Any]:
        """Batch images (3, h, w) uint8 and targets with boxes (x0, y0, x1, y1) in pixels.

        Returns:
            `pixel_values` (B, 3, H, W) and `pixel_mask` (B, H, W), the processor's output, and
            `labels`: each image's target with `size` (h, w), `boxes` (cx, cy, w, h) relative to
            it, in [0, 1], and any `masks` padded to (n, H, W).
        """
        inputs = _prepared([image for image, _ in samples], self.processor, do_resize=False)
        canvas_hw = tuple(inputs["pixel_values"].shape[-2:])
        labels = [pad_target(_label(*sample), canvas_hw) for sample in samples]
        return {**inputs, "labels": labels}


class PackingCollator(DetectionCollator):
    """As `DetectionCollator`, for data workers: its batches take a sixth of the memory.

    `collator(samples).unpack(processor, device)` equals the result of `DetectionCollator`.
    """

    def __call__(self, samples: Sequence[Sample]) -> "PackedBatch":
        """Batch samples as `DetectionCollator` does."""
        images = [image for image, _ in samples]
        return pack_batch(images, [_label(*sample) for sample in samples], self.processor)


@dataclass(frozen=True)
class PackedBatch:
    """A batch of two tensors, which workers send faster than floats, masks and many targets.

    torch's `DataLoader` can pin its memory.

    Attributes:
        pixels: (B, C, H, W), padded. uint8 before rescaling and normalization, which `unpack` does,
            or floats after them, if an image wasn't uint8.
        sizes_hw: (height, width) of each image without its padding.
        target_bytes: (n,) uint8, the values of all targets.
        entries: for each image, key of the target -> position in `target_bytes`, type, and shape.
    """

    pixels: Tensor
    sizes_hw: list[tuple[int, int]]
    target_bytes: Tensor
    entries: list[dict[str, tuple[int, torch.dtype, torch.Size]]]

    def __len__(self) -> int:
        return len(self.sizes_hw)

    def pin_memory(self) -> "PackedBatch":
        """Return a copy in pinned memory, from where `unpack` copies to a GPU asynchronously."""
        pinned = self.pixels.pin_memory(), self.target_bytes.pin_memory()
        return replace(self, pixels=pinned[0], target_bytes=pinned[1])

    def labels(
        self, device: torch.device | str = "cpu", keys: Collection[str] | None = None
    ) -> list[dict[str, Tensor]]:
        """Return the targets on a device, as `DetectionCollator` does; of `keys` only, if given."""
        data, canvas_hw = self.target_bytes.to(device, non_blocking=True), self.pixels.shape[-2:]
        targets = (
            {
                key: _read_value(data, *place)
                for key, place in entry.items()
                if keys is None or key in keys
            }
            for entry in self.entries
        )
        return [pad_target(target, tuple(canvas_hw)) for target in targets]

    def unpack(
        self,
        processor: DetectionImageProcessor,
        device: torch.device | str = "cpu",
        memory_format: torch.memory_format = torch.channels_last,
    ) -> dict[str, Any]:
        """Return what `DetectionCollator` does, `pixel_values`, `pixel_mask` and `labels`.

        On the CPU all values are equal. A GPU can round the last bit of pixel values differently.

        Args:
            processor: the one that the batch was packed with.
            device: rescaling and normalization run there.
            memory_format: of `pixel_values`.
        """
        pixels, canvas_hw = self.pixels.to(device, non_blocking=True), self.pixels.shape[-2:]
        if pixels.dtype == torch.uint8:
            views = zip(pixels, self.sizes_hw, strict=True)
            images = [image[:, :height, :width] for image, (height, width) in views]
            inputs = dict(_prepared(images, processor, do_resize=False))
        else:
            inputs = {"pixel_values": pixels}
            if processor.do_pad:
                mask = make_pixel_mask(self.sizes_hw, tuple(canvas_hw), pixels.device)
                inputs["pixel_mask"] = mask
        inputs["pixel_values"] = inputs["pixel_values"].contiguous(memory_format=memory_format)
        return {**inputs, "labels": self.labels(device)}


def pack_batch(
    images: Sequence[Tensor],
    targets: Sequence[Mapping[str, Tensor]],
    processor: DetectionImageProcessor,
    do_resize: bool = False,
) -> PackedBatch:
    """Pack images (C, h, w) and any targets; masks are padded with the images.

    Args:
        images: resized if `do_resize` is False.
        targets: for each image tensors by name.
        processor: resizes and pads; `PackedBatch.unpack` rescales and normalizes.
        do_resize: whether to resize images with the processor.
    """
    # Resized and converted bytes are bytes. Other images can't be stored as bytes without loss.
    later = {}
    if all(image.dtype == torch.uint8 for image in images):
        later = {"do_rescale": False, "do_normalize": False}
    pixels = _prepared(images, processor, do_resize=do_resize, **later)["pixel_values"]
    sizes_hw = [tuple(image.shape[-2:]) for image in images]
    if do_resize:
        size = SizeDict(**dict(processor.size))
        sizes_hw = [resized_hw(size_hw, size) for size_hw in sizes_hw]
    return PackedBatch(pixels, sizes_hw, *_pack_targets(targets))


def _prepared(
    images: Sequence[Tensor], processor: DetectionImageProcessor, **settings: Any
) -> Mapping[str, Tensor]:
    return processor(
        list(images), input_data_format="channels_first", return_tensors="pt", **settings
    )


def _label(image: Tensor, target: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return a target with `size` and relative boxes."""
    # Plain tensors, without the overhead of torchvision's dispatch in the model.
    label = {key: value.as_subclass(Tensor) for key, value in target.items()}
    label["size"] = torch.tensor(image.shape[-2:], dtype=torch.int64)
    return normalize_target(label)


def _pack_targets(
    targets: Sequence[Mapping[str, Tensor]],
) -> tuple[Tensor, list[dict[str, tuple[int, torch.dtype, torch.Size]]]]:
    """Return the bytes (n,) uint8 of all values, and the place of each."""
    entries, end = [], 0
    for target in targets:
        entry = {}
        for key, value in target.items():
            entry[key] = end, value.dtype, value.shape
            end += math.ceil(value.nbytes / ALIGNMENT) * ALIGNMENT
        entries.append(entry)
    data = torch.zeros(end, dtype=torch.uint8)
    for target, entry in zip(targets, entries, strict=True):
        for key, value in target.items():
            _read_value(data, *entry[key]).copy_(value)
    return data, entries


def _read_value(data: Tensor, start: int, dtype: torch.dtype, shape: torch.Size) -> Tensor:
    """Return a view of the bytes of a value."""
    num_bytes = math.prod(shape) * dtype.itemsize
    return data[start : start + num_bytes].view(dtype).view(shape)


class SizeGroupedBatches:
    """Batches of indices of images with equal sizes, which need no padding.

    The predictions for an image don't depend on the other images of its batch. The largest images
    come first, so that a lack of memory is noticed at once.

    Args:
        sizes_hw: (height, width) of each image as passed to the model.
        batch_size: maximum number of images in a batch.
        rank, world_size: index of this process and number of processes that share the batches.

    Raises:
        ValueError: if `batch_size` or `rank` is invalid.
    """

    def __init__(
        self,
        sizes_hw: Sequence[tuple[int, int]],
        batch_size: int,
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        if batch_size < 1:
            raise ValueError(f"batch_size is {batch_size}; expected at least 1.")
        if not 0 <= rank < world_size:
            raise ValueError(f"rank is {rank}; expected 0 to world_size - 1 = {world_size - 1}.")
        groups: dict[tuple[int, int], list[int]] = {}
        for index, (height, width) in enumerate(sizes_hw):
            groups.setdefault((int(height), int(width)), []).append(index)
        batches = [
            groups[size][start : start + batch_size]
            for size in sorted(groups, key=lambda hw: (-hw[0] * hw[1], hw))
            for start in range(0, len(groups[size]), batch_size)
        ]
        self.batches = batches[rank::world_size]

    def __iter__(self) -> Iterator[list[int]]:
        return iter(self.batches)

    def __len__(self) -> int:
        return len(self.batches)
