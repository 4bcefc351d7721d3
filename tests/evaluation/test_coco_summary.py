"""Summaries of precision and recall."""

import numpy as np
import pytest

from hf_detr.evaluation.coco_summary import summarize


def test_means_are_over_the_right_axes() -> None:
    """Each metric is the mean of its IoU thresholds, area, maximum and frequency."""
    thresholds, classes, areas, maxima = np.ogrid[:10, :3, :4, :2]
    recall = thresholds / 100 + classes / 10 + areas / 1000 + maxima / 10000
    precision = np.repeat(recall[:, None], 101, axis=1)
    metrics = summarize(precision, recall, (1, 300), "rfr")
    best = {
        "AP": 0.145,
        "AP50": 0.1,
        "AP75": 0.15,
        "AP_small": 0.146,
        "AP_medium": 0.147,
        "AP_large": 0.148,
        "AP_rare": 0.145,
        "AP_common": None,
        "AP_frequent": 0.145,
        "AR_300": 0.145,
        "AR_small": 0.146,
        "AR_medium": 0.147,
        "AR_large": 0.148,
    }
    expected = {name: -1 if value is None else value + 0.0001 for name, value in best.items()}
    assert metrics == pytest.approx({**expected, "AR_1": 0.145})
    assert set(metrics) - set(summarize(precision, recall, (1, 300))) == {
        *("AP_rare", "AP_common", "AP_frequent")
    }


def test_classes_without_objects_do_not_count() -> None:
    """They are -1; if there are no others, so is the mean."""
    recall = np.full((10, 2, 4, 1), 0.5)
    recall[:, 1] = -1
    recall[:, :, 3] = -1
    metrics = summarize(np.repeat(recall[:, None], 101, axis=1), recall, (100,))
    assert metrics["AP"] == metrics["AR_100"] == metrics["AP_small"] == 0.5
    assert metrics["AP_large"] == metrics["AR_large"] == -1
