"""Post-processing of detections: target sizes, thresholds, and outputs that aren't finite."""

import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import Tensor

from hf_detr import ConditionalDetrImageProcessor, DetrImageProcessor
from hf_detr.image_processing.postprocess import detections_per_image

SCORES = torch.tensor([[0.9, 0.5, 0.2], [0.4, 0.6, 0.5]])
LABELS = torch.tensor([[3, 1, 2], [0, 5, 4]])
BOXES = torch.tensor(
    [
        [[0.5, 0.5, 1.0, 1.0], [0.25, 0.5, 0.5, 0.2], [0.1, 0.1, 0.1, 0.1]],
        [[0.9, 0.9, 0.1, 0.1], [0.5, 0.25, 0.2, 0.5], [0.3, 0.3, 0.2, 0.2]],
    ]
)
SIZES = [(100, 200), (40, 10)]  # height, width


def test_relative_boxes_by_hand() -> None:
    """Without target sizes, corners are in [0, 1], and the order is kept."""
    first, second = detections_per_image(SCORES, LABELS, BOXES, threshold=0.3)
    assert first["labels"].tolist() == [3, 1] and second["labels"].tolist() == [0, 5, 4]
    torch.testing.assert_close(first["scores"], torch.tensor([0.9, 0.5]), atol=0, rtol=0)
    expected = torch.tensor([[0.0, 0.0, 1.0, 1.0], [0.0, 0.4, 0.5, 0.6]])
    torch.testing.assert_close(first["boxes"], expected, atol=1e-6, rtol=0)


@pytest.mark.parametrize(
    "target_sizes",
    [
        SIZES,
        torch.tensor(SIZES),
        torch.tensor(SIZES, dtype=torch.float32),
        [list(size) for size in SIZES],
        [torch.tensor(size) for size in SIZES],  # `orig_size` of each image's label dict
    ],
    ids=["tuples", "tensor", "float tensor", "lists", "list of tensors"],
)
def test_pixels_by_hand(target_sizes: Tensor | list) -> None:
    """Target sizes are (height, width) per image, in any form."""
    first, second = detections_per_image(SCORES, LABELS, BOXES, 0.3, target_sizes)
    expected = torch.tensor([[0.0, 0.0, 200.0, 100.0], [0.0, 40.0, 100.0, 60.0]])
    torch.testing.assert_close(first["boxes"], expected, atol=1e-4, rtol=0)
    torch.testing.assert_close(
        second["boxes"][1], torch.tensor([4.0, 0.0, 6.0, 20.0]), atol=1e-4, rtol=0
    )


def test_threshold_is_strict() -> None:
    """A score equal to the threshold is dropped."""
    first, second = detections_per_image(SCORES, LABELS, BOXES, threshold=0.5)
    assert first["labels"].tolist() == [3] and second["labels"].tolist() == [5]
    scores = torch.tensor([[0.0, 1e-6, 0.1]]).expand(2, -1)
    assert detections_per_image(scores, LABELS, BOXES, 0.0)[0]["labels"].tolist() == [1, 2]


def test_no_detections() -> None:
    """Empty results have the usual shapes."""
    for result in detections_per_image(SCORES, LABELS, BOXES, 0.95, SIZES):
        assert result["scores"].shape == result["labels"].shape == (0,)
        assert result["boxes"].shape == (0, 4)


@pytest.mark.parametrize("target_sizes", [SIZES[:1], SIZES * 2, torch.tensor(SIZES[:1])])
def test_wrong_number_of_sizes(target_sizes: Tensor | list) -> None:
    """One size isn't broadcast to all images."""
    message = f"target_sizes has {len(target_sizes)} entries for 2 images"
    with pytest.raises(ValueError, match=message):
        detections_per_image(SCORES, LABELS, BOXES, 0.5, target_sizes)


def test_half_precision_predictions_keep_pixel_sizes() -> None:
    """Boxes are scaled in float32: 1333 pixels don't become 1336."""
    boxes = torch.tensor([[[0.5, 0.5, 1.0, 1.0]]], dtype=torch.bfloat16)
    scores, labels = torch.ones(1, 1), torch.zeros(1, 1, dtype=torch.long)
    (result,) = detections_per_image(scores, labels, boxes, 0.5, [(801, 1333)])
    expected = torch.tensor([[0.0, 0.0, 1333.0, 801.0]])
    torch.testing.assert_close(result["boxes"].float(), expected, atol=1e-3, rtol=0)


@pytest.mark.parametrize("value", [math.nan, math.inf])
@pytest.mark.parametrize("where", ["box", "score"])
def test_queries_that_are_not_finite_are_left_out(value: float, where: str) -> None:
    """A NaN box isn't a detection, and a NaN score doesn't vanish silently."""
    scores, boxes = SCORES.clone(), BOXES.clone()
    if where == "box":
        boxes[0, 0, 2] = value
    else:
        scores[0, 0] = value
    with pytest.warns(UserWarning, match="NaN or infinite values; queries with such values"):
        first, second = detections_per_image(scores, LABELS, boxes, 0.3, SIZES)
    assert first["labels"].tolist() == [1] and second["labels"].tolist() == [0, 5, 4]
    assert first["boxes"].isfinite().all()


@pytest.mark.parametrize("threshold", [50, 1.5, math.nan, math.inf, None, "0.5", True])
def test_thresholds_that_are_no_scores_raise(threshold: object) -> None:
    """A percentage or NaN doesn't drop all detections silently."""
    with pytest.raises(ValueError, match=f"threshold is {threshold!r}; expected a number from 0"):
        detections_per_image(SCORES, LABELS, BOXES, threshold)


@pytest.mark.parametrize("threshold", [-1, -math.inf, 0, 1, np.float32(0.5), torch.tensor(0.5)])
def test_other_numbers_are_thresholds(threshold: object) -> None:
    """Thresholds below 0 keep everything, and 1 nothing."""
    found = detections_per_image(SCORES, LABELS, BOXES, threshold)
    assert len(found[0]["scores"]) == int((SCORES[0] > threshold).sum())


@pytest.mark.parametrize("kind", [DetrImageProcessor, ConditionalDetrImageProcessor])
@pytest.mark.parametrize(
    ("threshold", "message"),
    [
        (torch.tensor([0.5] * 2), "threshold has 2 values, and the model 3 classes; expected one"),
        (torch.tensor([0.5] * 4), "threshold has 4 values, and the model 3 classes; expected one"),
        (torch.tensor([]), "threshold has 0 values, and the model 3 classes; expected one"),
        (torch.tensor([0.5, math.nan, 0.5]), "threshold is nan; expected a number from 0 to 1"),
        (torch.tensor([0.5, 50.0, 0.5]), "threshold is 50.0; expected a number from 0 to 1"),
        (torch.tensor([True] * 3), "threshold is True; expected a number from 0 to 1"),
        (torch.full((1, 3), 0.5), r"threshold is tensor.*, or a tensor \(C,\) with one for each"),
        ([0.5] * 3, r"threshold is \[0.5.*, or a tensor \(C,\) with one for each class"),
        ({"cat": 0.5}, "threshold is {'cat': 0.5}; expected a number from 0 to 1, or a tensor"),
    ],
)
def test_thresholds_of_labels_that_do_not_fit_raise(
    kind: type, threshold: object, message: str
) -> None:
    """One is needed for each class, whichever classes were predicted."""
    num_logits = 4 if kind is DetrImageProcessor else 3
    outputs = SimpleNamespace(
        logits=torch.zeros(1, 5, num_logits),
        pred_boxes=torch.full((1, 5, 4), 0.5),
        pred_masks=torch.zeros(1, 5, 2, 2),
    )
    processor = kind()
    for post_process in (
        processor.post_process_object_detection,
        processor.post_process_instance_segmentation,
        processor.post_process_panoptic_segmentation,
        processor.post_process_panoptic_merge,
    ):
        with pytest.raises(ValueError, match=message):
            post_process(outputs, threshold)
        post_process(outputs, torch.full((3,), 0.2))


@pytest.mark.parametrize(
    "wrong",
    [(30,), (30, 40, 3), 30, None, "ab", (0, 40), (30, -40), (math.nan, 40), (30, math.inf)],
)
def test_target_sizes_that_are_no_sizes_raise(wrong: object) -> None:
    """The error names the image; boxes don't become NaN, empty or mirrored."""
    with pytest.raises(ValueError, match=r"target_sizes\[1\] is .*; expected \(height, width\)"):
        detections_per_image(SCORES, LABELS, BOXES, 0.5, [(30, 40), wrong])


@pytest.mark.parametrize("kind", [DetrImageProcessor, ConditionalDetrImageProcessor])
@pytest.mark.parametrize("sizes", [None, [], torch.zeros(0, 2)], ids=["none", "list", "tensor"])
def test_an_empty_batch_has_no_results(kind: type, sizes: Tensor | list | None) -> None:
    """The last, empty part of a split data set needs no special case."""
    outputs = SimpleNamespace(
        logits=torch.zeros(0, 5, 3),
        pred_boxes=torch.zeros(0, 5, 4),
        pred_masks=torch.zeros(0, 5, 2, 2),
    )
    processor = kind()
    assert processor.post_process_object_detection(outputs, 0.5, sizes) == []
    assert processor.post_process_semantic_segmentation(outputs, sizes) == []
    assert processor.post_process_instance_segmentation(outputs, target_sizes=sizes) == []
    assert processor.post_process_panoptic_segmentation(outputs, target_sizes=sizes) == []
    assert processor.post_process_panoptic_merge(outputs, target_sizes=sizes) == []
