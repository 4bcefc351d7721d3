"""Ground truth in flat arrays."""

from typing import Any

import numpy as np
import pytest

from hf_detr.evaluation.ground_truth import read_ground_truth

TRUTH: dict[str, Any] = {
    "images": [{"id": 9, "height": 4, "width": 6}, {"id": 2}],
    "categories": [{"id": 70, "name": "dog"}, {"id": 50, "name": "cat"}],
    "annotations": [
        {"image_id": 9, "category_id": 50, "bbox": [1, 2, 3, 2.5]},
        {"image_id": 2, "category_id": 70, "bbox": [0, 0, 1, 1], "area": 0, "iscrowd": 1},
    ],
}


def test_ids_become_indices() -> None:
    """Images and classes are sorted; objects stay in order, as their ties depend on it."""
    truth = read_ground_truth(TRUTH, masks=False, lvis=False)
    assert truth.image_ids == [2, 9] and truth.labels == [50, 70]
    assert truth.images[0] == {"id": 0, "height": 0, "width": 0} and truth.size_hw(1) == (4, 6)
    assert truth.categories == [{"id": 0, "name": "cat"}, {"id": 1, "name": "dog"}]
    objects = truth.objects
    assert objects.images.tolist() == [1, 0] and objects.labels.tolist() == [0, 1]
    assert objects.areas.tolist() == [7.5, 0] and objects.is_crowd.tolist() == [False, True]
    assert objects.boxes_xywh.dtype == np.float64 and objects.boxes_xywh[0].tolist() == [
        1,
        2,
        3,
        2.5,
    ]
    assert objects.segmentations is None and truth.frequencies == []


def test_no_objects() -> None:
    """Data without annotations has columns of length 0."""
    objects = read_ground_truth({**TRUTH, "annotations": []}, masks=True, lvis=False).objects
    assert objects.boxes_xywh.shape == (0, 4) and objects.segmentations == []


def test_segmentations_are_kept_as_they_are() -> None:
    """Polygons and run lengths aren't copied."""
    polygons = [[0.0, 0, 4, 0, 4, 4]]
    annotation = {**TRUTH["annotations"][0], "segmentation": polygons}
    truth = read_ground_truth({**TRUTH, "annotations": [annotation]}, masks=True, lvis=False)
    assert truth.objects.segmentations[0] is polygons
    with pytest.raises(ValueError, match="annotation 0 .* has no segmentation"):
        read_ground_truth(TRUTH, masks=True, lvis=False)


def test_ids_of_nothing_raise() -> None:
    """Objects of an image or class that doesn't exist aren't ignored."""
    for key in ("image_id", "category_id"):
        wrong = [*TRUTH["annotations"], {**TRUTH["annotations"][0], key: 1}]
        with pytest.raises(ValueError, match=rf"annotation 2 of the ground truth has .*{key} 1"):
            read_ground_truth({**TRUTH, "annotations": wrong}, masks=False, lvis=False)
