"""The targets of the loss: label dicts, padded into tensors and checked.

Shapes and keys are checked at once. Values are checked on the host after the matcher's one
transfer, which costs no further synchronisation with an accelerator.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

# Boxes that touch the border may leave [0, 1] by rounding; anything further is an error.
BOX_TOLERANCE = 1e-3


@dataclass(frozen=True)
class Targets:
    """The objects of a batch, padded to the image that has most of them.

    Attributes:
        class_labels: (B, T) class indices in 0 … C-1; 0 where padded.
        boxes: (B, T, 4) float32, (cx, cy, w, h) in [0, 1] relative to each image without its
            padding; 0 where padded.
        counts: number of objects of each image.
    """

    class_labels: Tensor
    boxes: Tensor
    counts: tuple[int, ...]

    def repeat(self, times: int) -> "Targets":
        """Every image's objects several times in a row, as if it were several images."""
        if times == 1:
            return self
        return Targets(
            self.class_labels.repeat_interleave(times, dim=0),
            self.boxes.repeat_interleave(times, dim=0),
            tuple(count for count in self.counts for _ in range(times)),
        )


def prepare_targets(
    labels: list[dict[str, Tensor]], batch_size: int, device: torch.device
) -> Targets:
    """Pad one dict per image, with `class_labels` (n,) and `boxes` (n, 4), into `Targets`.

    Raises:
        ValueError: if the number of dicts isn't the number of images, a key is missing, a shape
            is wrong, or an image has more labels than boxes or fewer.
        TypeError: if `labels` isn't a list of dicts of tensors, or class labels aren't integers.
    """
    if not isinstance(labels, (list, tuple)):
        raise TypeError(
            f"labels is a {type(labels).__name__}; give a list with one dict per image, each with "
            "'class_labels' (n,) and 'boxes' (n, 4)."
        )
    if len(labels) != batch_size:
        raise ValueError(
            f"labels has {len(labels)} dicts for {batch_size} images; give one dict per image, "
            "with empty tensors for an image without objects."
        )
    for image, target in enumerate(labels):
        _check_structure(image, target)
    class_labels = pad_sequence([t["class_labels"].long() for t in labels], batch_first=True)
    boxes = pad_sequence([t["boxes"].float() for t in labels], batch_first=True)
    return Targets(
        class_labels.to(device, non_blocking=True),
        boxes.to(device, non_blocking=True),
        tuple(len(t["class_labels"]) for t in labels),
    )


def _check_structure(image: int, target: Mapping[str, Tensor]) -> None:
    if not isinstance(target, Mapping):
        raise TypeError(
            f"labels[{image}] is a {type(target).__name__}; give a dict with 'class_labels' (n,) "
            "and 'boxes' (n, 4)."
        )
    for key in ("class_labels", "boxes"):
        if key not in target:
            raise ValueError(
                f"labels[{image}] has no '{key}', only {sorted(target)}; the image processor "
                "makes both keys from COCO annotations."
            )
        if not isinstance(target[key], Tensor):
            raise TypeError(
                f"labels[{image}]['{key}'] is a {type(target[key]).__name__}; give a tensor "
                "(return_tensors='pt' in the image processor)."
            )
    class_labels, boxes = target["class_labels"], target["boxes"]
    if class_labels.is_floating_point() or class_labels.is_complex():
        raise TypeError(
            f"labels[{image}]['class_labels'] is {class_labels.dtype}; give integer class indices."
        )
    if class_labels.ndim != 1 or boxes.shape != (len(class_labels), 4):
        raise ValueError(
            f"labels[{image}] has class_labels of shape {tuple(class_labels.shape)} and boxes of "
            f"shape {tuple(boxes.shape)}; expected (n,) and (n, 4) with the same n."
        )


def check_sizes(
    labels: list[dict[str, Tensor]], image_hw: tuple[int, int], pixel_mask: Tensor | None
) -> None:
    """Check that boxes are relative to the part of each image that is real.

    An accelerator is waited for, so the loss, which waits too, comes first.

    Args:
        labels: of `prepare_targets`. Their `size` (2,), which image processors add, is the (height,
            width) in pixels of what boxes are relative to; without it nothing is checked.
        image_hw: of the batch, with padding.
        pixel_mask: (B, H, W), 1 on real pixels; None if all are real.

    Raises:
        ValueError: if a size isn't that of the image's real pixels.
    """
    sizes = [target.get("size") for target in labels]
    if not all(isinstance(size, Tensor) and size.shape == (2,) for size in sizes):
        return
    if pixel_mask is None:
        real_hw = [image_hw] * len(sizes)
    else:
        lines = [pixel_mask.bool().any(dim).sum(-1) for dim in (2, 1)]  # rows, columns (B,)
        real_hw = torch.stack(lines, dim=1).tolist()
    for image, (size, real) in enumerate(zip(sizes, real_hw, strict=True)):
        size = size.tolist()
        if tuple(size) == tuple(real):
            continue
        if pixel_mask is None:
            reason = (
                f"the images have {image_hw} pixels and there is no pixel_mask, so the model can't "
                "know the padding; pass the image processor's pixel_mask"
            )
        else:
            reason = (
                f"pixel_mask marks {tuple(real)} as real; boxes must be relative to the image "
                "without its padding, as hf_detr's image processors make them (transformers' ones "
                "make them relative to the padded image)"
            )
        raise ValueError(f"labels[{image}]['size'] is {tuple(size)} (height, width), but {reason}.")


def check_target_values(
    class_labels: np.ndarray, boxes: np.ndarray, counts: tuple[int, ...], num_labels: int
) -> None:
    """Refuse objects that can't be learned, on the host.

    Args:
        class_labels: (B, T).
        boxes: (B, T, 4).
        counts: number of objects of each image; the rest is padding.
        num_labels: number of classes C.

    Raises:
        ValueError: for a class outside 0 … C-1, and for boxes that aren't finite, have no area or
            values outside [0, 1]; it names the image and the object.
    """
    real = np.arange(class_labels.shape[1]) < np.asarray(counts)[:, None]  # (B, T)
    outside = (boxes < -BOX_TOLERANCE) | (boxes > 1 + BOX_TOLERANCE)
    problems = [
        (
            (class_labels < 0) | (class_labels >= num_labels),
            f"class label outside 0 … {num_labels - 1}; number classes from 0 without gaps, and "
            "give the model the right num_labels (no-object is not a class of yours)",
        ),
        (~np.isfinite(boxes).all(-1), "box that isn't finite; fix the annotation"),
        (
            (boxes[..., 2:] <= 0).any(-1),
            "box of zero or negative size; boxes are (cx, cy, w, h), not corners, and objects that "
            "augmentation shrank to nothing must be dropped",
        ),
        (
            outside.any(-1),
            "box with values outside [0, 1]; boxes are (cx, cy, w, h) relative to the image "
            "without its padding, not in pixels: divide by the image's width and height",
        ),
    ]
    for wrong, reason in problems:
        found = np.argwhere(wrong & real)
        if len(found):
            image, index = found[0]
            raise ValueError(
                f"labels[{image}], object {index} (class {int(class_labels[image, index])}, box "
                f"{boxes[image, index].tolist()}): {reason}. {len(found)} such object(s) in this "
                "batch."
            )
