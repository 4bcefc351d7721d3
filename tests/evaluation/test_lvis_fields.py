"""LVIS' AP: recorded values of its own code, rules by hand, errors."""

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from hf_detr import CocoEvaluator, metrics_table
from hf_detr.evaluation.lvis_fields import add_lvis_fields

from .test_coco_evaluator import some_results

# By lvis 0.5.3 for `lvis_results`, with 12 detections per image.
RECORDED = {
    "AP": 0.42917027644609534,
    "AP50": 0.65991510354753,
    "AP75": 0.5111153689355051,
    "AP_small": 0.3670214521452145,
    "AP_medium": 0.45531486431841345,
    "AP_large": -1.0,
    "AP_rare": 0.4256267268571485,
    "AP_common": 0.4403187662382878,
    "AP_frequent": 0.4139603960396039,
    "AR_12": 0.7182499999999998,
    "AR_small": 0.4958333333333333,
    "AR_medium": 0.7737179487179487,
    "AR_large": -1.0,
}


def lvis_results() -> tuple[dict[str, Any], dict[int, dict[str, Tensor]]]:
    """Make results with LVIS' fields: some classes aren't searched for in an image."""
    truth, detections = some_results(num_images=16, num_classes=5)
    generator = np.random.default_rng(1)
    for annotation in truth["annotations"]:
        annotation["iscrowd"] = 0
    for category, frequency in zip(truth["categories"], "rrccff", strict=True):
        category["frequency"] = frequency
    for image in truth["images"]:
        present = {a["category_id"] for a in truth["annotations"] if a["image_id"] == image["id"]}
        draws = generator.random(6)
        image["neg_category_ids"] = [i for i in range(6) if i not in present and draws[i] < 0.5]
        image["not_exhaustive_category_ids"] = [i for i in present if draws[i] < 0.3]
    return truth, detections


def test_equal_to_lvis() -> None:
    """All metrics are those of LVIS' code."""
    truth, detections = lvis_results()
    evaluator = CocoEvaluator(truth, max_detections=12, lvis=True)
    evaluator.update(detections.keys(), detections.values())
    metrics = evaluator.compute()
    per_class = metrics.pop("per_class")
    assert metrics == pytest.approx(RECORDED, abs=1e-12)
    assert "AP_rare" in metrics_table({**metrics, "per_class": per_class})


def one_image(**fields: list[int]) -> float:
    """Compute the AP of a class with one object that is found, and a better wrong detection."""
    category = {"id": 7, "name": "cat", "frequency": "r"}
    truth = {
        "images": [
            {"id": 1, "height": 9, "width": 9, **fields},
            {"id": 2, "height": 9, "width": 9, **fields},
        ],
        "categories": [category],
        "annotations": [{"image_id": 1, "category_id": 7, "bbox": [1, 1, 4, 4]}],
    }
    evaluator = CocoEvaluator(truth, lvis=True)
    right, wrong = torch.tensor([[1.0, 1, 5, 5]]), torch.tensor([[5.0, 5, 9, 9]])
    labels = torch.tensor([7])
    found = [
        {"scores": torch.tensor([0.5]), "labels": labels, "boxes": right},
        {"scores": torch.tensor([0.9]), "labels": labels, "boxes": wrong},
    ]
    evaluator.update([1, 2], found)
    return evaluator.compute()["AP_rare"]


def test_images_that_were_not_searched_do_not_count() -> None:
    """A detection is wrong only where its class is known to be missing."""
    fields: dict[str, list[int]] = {"neg_category_ids": [], "not_exhaustive_category_ids": []}
    assert one_image(**fields) == pytest.approx(1)
    assert one_image(**{**fields, "neg_category_ids": [7]}) == pytest.approx(0.5)
    everything = {"neg_category_ids": [7], "not_exhaustive_category_ids": [7]}
    assert one_image(**everything) == pytest.approx(1)


def test_missing_fields_raise() -> None:
    """Data without LVIS' fields isn't evaluated by other rules."""
    truth, _ = lvis_results()
    with pytest.raises(ValueError, match=r"image_id 3 .* has no \['neg_category_ids', 'not_"):
        CocoEvaluator({**truth, "images": [{"id": 3}]}, lvis=True)
    with pytest.raises(ValueError, match="category 0 .* frequency None; .* one of"):
        CocoEvaluator({**truth, "categories": [{"id": 0, "name": "a"}]}, lvis=True)


def test_fields_of_the_file_are_added_to_a_data_set_s() -> None:
    """Category ids of the file become labels."""
    fields = {"neg_category_ids": [11, 99], "not_exhaustive_category_ids": [4]}
    file = {
        "images": [{"id": 5, **fields}, {"id": 6, **fields}],
        "categories": [{"id": 11, "frequency": "c"}, {"id": 4, "frequency": "r"}, {"id": 99}],
    }
    truth = {
        "images": [{"id": 6, "height": 1, "width": 2}],
        "categories": [{"id": 0, "name": "cat"}, {"id": 1, "name": "dog"}],
        "annotations": [],
    }
    added = add_lvis_fields(truth, file, (4, 11))
    labels = {"neg_category_ids": [1], "not_exhaustive_category_ids": [0]}
    assert added["images"] == [{"id": 6, "height": 1, "width": 2, **labels}]
    assert [category["frequency"] for category in added["categories"]] == ["r", "c"]
    assert added["annotations"] == [] and "frequency" not in truth["categories"][0]
    with pytest.raises(ValueError, match="not all of the data set's 1 images and 2 categories"):
        add_lvis_fields(truth, {**file, "images": []}, (4, 11))
