"""The measure of uncertainty: by hand, and with what `predict` returns."""

import pytest
import torch

from hf_detr import DetrImageProcessor, predict, uncertainty

from ..tiny import tiny_detector
from .test_prediction import SIZE


def test_sum_over_scores_above_a_tenth() -> None:
    """p (1 - p), largest at 0.5, summed over objects, without scores that mean nothing."""
    for scores, expected in [
        ([], 0),
        ([0.5], 0.25),
        ([0.9, 0.2], 0.09 + 0.16),
        ([0.5] + [0.1] * 90, 0.25),
        ([1.0, 1.0], 0),
    ]:
        result = {"scores": torch.tensor(scores)}
        assert uncertainty(result) == pytest.approx(expected, abs=1e-6)


def test_results_of_predict_are_taken() -> None:
    """A number for each image, also in half precision."""
    image = torch.zeros(3, 48, 64, dtype=torch.uint8)
    detector, processor = tiny_detector("detr"), DetrImageProcessor(size=SIZE)
    [result] = predict(detector, processor, image, threshold=0, progress=False)
    exact = uncertainty(result)
    result["scores"] = result["scores"].bfloat16()
    assert exact > 0 and uncertainty(result) == pytest.approx(exact, rel=0.05)
