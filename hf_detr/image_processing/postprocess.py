"""Conversion of scored queries to detections per image, and checks of all post-processing."""

import math
import numbers
import warnings
from typing import Any

from torch import Tensor

from ..ops.box_ops import box_cxcywh_to_xyxy

PER_LABEL = ", or a tensor (C,) with one for each class"


def detections_per_image(
    scores: Tensor,
    labels: Tensor,
    boxes_cxcywh: Tensor,
    threshold: float | Tensor,
    target_sizes: Tensor | list[Tensor] | list[tuple[int, int]] | None = None,
    queries: Tensor | None = None,
) -> list[dict[str, Tensor]]:
    """Scale boxes to each image and keep the detections above the threshold.

    Detections with a NaN or infinite score or box are dropped with a warning.

    Args:
        scores: (B, K) in [0, 1].
        labels: (B, K) class indices.
        boxes_cxcywh: (B, K, 4) in [0, 1], relative to each image without its padding.
        threshold: detections with a higher score are kept; a number, or one for each label (C,).
        target_sizes: (B, 2) as (height, width) in pixels; if None, boxes are in [0, 1].
        queries: (B, K), the query of each detection.

    Returns:
        For each image a dict of `scores` (n,), `labels` (n,), `boxes` (n, 4) as (x0, y0, x1, y1),
        and `queries` (n,) if they are given.

    Raises:
        ValueError: if a threshold isn't a number up to 1, or `target_sizes` doesn't have a
            height and width above 0 for each image.
    """
    is_above = above_threshold(scores, labels, threshold)
    # bfloat16 can't represent all integers above 256.
    boxes = box_cxcywh_to_xyxy(boxes_cxcywh.float())
    if target_sizes is not None:
        sizes_hw = boxes.new_tensor(checked_sizes(target_sizes, len(boxes))).reshape(-1, 2)
        boxes = boxes * sizes_hw.flip(-1).repeat(1, 2)[:, None]
    is_finite = scores.isfinite() & boxes.isfinite().all(-1)
    if not is_finite.all():
        warn_about_nan()
    columns = {"scores": scores, "labels": labels, "boxes": boxes}
    columns |= {} if queries is None else {"queries": queries}
    return [
        {name: column[image][keep] for name, column in columns.items()}
        for image, keep in enumerate(is_above & is_finite)
    ]


def above_threshold(scores: Tensor, labels: Tensor, threshold: float | Tensor) -> Tensor:
    """Return which scores exceed a threshold, or that of their labels.

    Args:
        scores, labels: of the same shape.
        threshold: a number, or one for each label (C,).

    Raises:
        ValueError: if one isn't a number up to 1.
    """
    if not isinstance(threshold, Tensor) or threshold.ndim != 1:
        check_threshold(threshold, "threshold", PER_LABEL)
        return scores > threshold
    for value in threshold.tolist():
        check_threshold(value, "threshold")
    return scores > threshold.to(scores.device)[labels]


def check_number_of_thresholds(threshold: Any, num_labels: int) -> None:
    """Check that a threshold with values for labels has one for each.

    Raises:
        ValueError: if it has more or fewer.
    """
    if isinstance(threshold, Tensor) and threshold.ndim == 1 and len(threshold) != num_labels:
        raise ValueError(
            f"threshold has {len(threshold)} values, and the model {num_labels} classes; expected "
            "one for each class, in the order of the labels."
        )


def check_threshold(threshold: Any, name: str, alternative: str = "") -> None:
    """Check a threshold of scores or probabilities; one below 0 lets all of them through.

    Raises:
        ValueError: if it isn't a number up to 1.
    """
    value = threshold.item() if isinstance(threshold, Tensor) and threshold.ndim == 0 else threshold
    if isinstance(value, bool) or not isinstance(value, numbers.Real) or not value <= 1:
        raise ValueError(f"{name} is {threshold!r}; expected a number from 0 to 1{alternative}.")


def checked_sizes(target_sizes: Any, count: int) -> list[tuple[float, float]]:
    """Return the (height, width) of each of `count` images.

    Raises:
        ValueError: if there aren't as many, or one isn't two numbers above 0.
    """
    if len(target_sizes) != count:
        raise ValueError(
            f"target_sizes has {len(target_sizes)} entries for {count} images; expected one "
            "(height, width) per image."
        )
    if isinstance(target_sizes, Tensor):
        target_sizes = target_sizes.tolist()
    sizes = []
    for index, size_hw in enumerate(target_sizes):
        try:
            height, width = (float(side) for side in size_hw)
        except (TypeError, ValueError):
            height = width = math.nan
        if not (0 < height < math.inf and 0 < width < math.inf):
            raise ValueError(
                f"target_sizes[{index}] is {size_hw!r}; expected (height, width) in pixels, above "
                "0."
            )
        sizes.append((height, width))
    return sizes


def warn_about_nan() -> None:
    """Warn that queries are left out, because the model's outputs aren't finite."""
    # The same text for all batches, so that Python shows it once.
    warnings.warn(
        "The model's outputs have NaN or infinite values; queries with such values are left out of "
        "the results. Check the weights and the images, or compute in float32 or bfloat16 instead "
        "of float16.",
        stacklevel=4,
    )
