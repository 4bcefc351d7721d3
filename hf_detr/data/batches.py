"""Batching of samples: the collator, and batches of images of equal size."""

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from ..image_processing.coco_targets import normalize_target, pad_target
from ..image_processing.image_processor import DetectionImageProcessor


class DetectionCollator:
    """Collates resized samples `(image, target)` into the inputs of a model.

    Args:
        processor: rescales, normalizes and pads the images with its own settings.
    """

    def __init__(self, processor: DetectionImageProcessor) -> None:
        self.processor = processor

    def __call__(self, samples: Sequence[tuple[Tensor, dict[str, Tensor]]]) -> dict[str, Any]:
        """Batch images (3, h, w) uint8 and targets with boxes (x0, y0, x1, y1) in pixels.

        Returns:
            `pixel_values` (B, 3, H, W) and `pixel_mask` (B, H, W), the processor's output, and
            `labels`: each image's target with `size` (h, w), `boxes` (cx, cy, w, h) relative to
            it, in [0, 1], and any `masks` padded to (n, H, W).
        """
        images = [image for image, _ in samples]
        inputs = self.processor(
            images, do_resize=False, input_data_format="channels_first", return_tensors="pt"
        )
        canvas_hw = tuple(inputs["pixel_values"].shape[-2:])
        labels = []
        for image, target in samples:
            # Plain tensors, without the overhead of torchvision's dispatch in the model.
            label = {key: value.as_subclass(Tensor) for key, value in target.items()}
            label["size"] = torch.tensor(image.shape[-2:], dtype=torch.int64)
            labels.append(pad_target(normalize_target(label), canvas_hw))
        return {**inputs, "labels": labels}


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
