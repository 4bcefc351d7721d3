"""Evaluations of a training."""

import json
from pathlib import Path

import PIL.Image

from hf_detr import read_coco
from hf_detr.training.options import TrainingOptions
from hf_detr.training.validation import rank, validate

from ..inference.test_tile_results import PROCESSOR, ExactDetector, picture


def test_all_objects_of_large_images_count(tmp_path: Path) -> None:
    """With tiles, more than COCO's 100 objects of an image can be found; there is no warning."""
    boxes = [(x, y, x + 5, y + 5) for y in range(0, 150, 12) for x in range(0, 150, 12)][:130]
    size_hw = (150, 150)
    PIL.Image.fromarray(picture(size_hw, [(*box, 1) for box in boxes])).save(tmp_path / "a.png")
    annotations = [
        {"id": n, "image_id": 1, "category_id": 1, "bbox": [x, y, 5, 5], "area": 25, "iscrowd": 0}
        for n, (x, y, _, _) in enumerate(boxes, 1)
    ]
    content = {
        "images": [{"id": 1, "file_name": "a.png", "height": 150, "width": 150}],
        "annotations": annotations,
        "categories": [{"id": 0, "name": "red"}, {"id": 1, "name": "green"}],
    }
    (tmp_path / "a.json").write_text(json.dumps(content))
    data = read_coco(tmp_path / "a.json", tmp_path)
    options = TrainingOptions(tiles=64, workers=0, micro_batch_size=4)
    metrics = validate(ExactDetector(), PROCESSOR, data, options)
    assert metrics["per_class"]["green"]["AP"] == 1 and metrics["AR_130"] == 1


def test_evaluations_are_ranked() -> None:
    """The best is the first; of equal ones the earlier one; the last one if there are no values."""
    history = [{"AP": value, "step": step} for step, value in enumerate((0.2, 0.5, 0.1, 0.5))]
    assert [entry["step"] for entry in rank(history, "AP")] == [1, 3, 0, 2]
    unknown = [{"AP": -1, "step": step} for step in (1, 2)]
    assert [entry["step"] for entry in rank(unknown, "AP")] == [2, 1] and rank([], "AP") == []
