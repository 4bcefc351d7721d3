"""The thresholds that prediction uses: given ones, the model's own, or 0.5."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import pipeline

from hf_detr import predict
from hf_detr.inference.score_thresholds import known_threshold, threshold_of_labels

from ..models.test_segmentation import tiny_segmenter
from ..some_data import write_image
from ..tiny import class_of, tiny_config, tiny_detector

NAMES = {0: "cat", 1: "dog", 2: "bird"}
SIZE = {"shortest_edge": 64, "longest_edge": 96}


def test_order_of_precedence() -> None:
    """A given threshold wins over the model's, which win over 0.5."""
    plain, own = (
        tiny_config(num_labels=3, id2label=NAMES),
        tiny_config(num_labels=3, id2label=NAMES, class_thresholds={"dog": 0.2}),
    )
    assert threshold_of_labels(None, plain) == 0.5
    assert threshold_of_labels(0.7, own) == 0.7
    assert threshold_of_labels(0.0, own) == 0.0
    assert threshold_of_labels(None, own).tolist() == pytest.approx([0.5, 0.2, 0.5])
    assert threshold_of_labels({"cat": 0.3}, own).tolist() == pytest.approx([0.3, 0.2, 0.5])
    assert threshold_of_labels({"dog": 0.3}, own).tolist() == pytest.approx([0.5, 0.3, 0.5])
    assert threshold_of_labels({"cat": np.float32(0.25)}, own)[0] == 0.25
    assert known_threshold(None, own) == {"dog": 0.2} and known_threshold(None, plain) == 0.5


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"fish": 0.3}, "threshold has the class 'fish', which isn't in id2label.*bird, cat, dog"),
        ({"dog": 1.5}, r"threshold\['dog'\] is 1.5; expected a score from 0 to 1"),
        ({"dog": "high"}, r"threshold\['dog'\] is 'high'"),
    ],
)
def test_wrong_thresholds(given: dict[str, Any], message: str) -> None:
    """A misspelt class or a percentage is refused, before an image is read."""
    processor = class_of("detr", "ImageProcessor")(size=SIZE)
    with pytest.raises(ValueError, match=message):
        predict(
            tiny_detector(num_labels=3, id2label=NAMES), processor, [torch.zeros(3, 40, 60)], given
        )


def test_names_that_no_longer_fit_are_the_models() -> None:
    """The message names the field, not an argument that wasn't given."""
    config = tiny_config(num_labels=3, id2label=NAMES, class_thresholds={"dog": 0.2})
    config.id2label = {0: "fish"}
    with pytest.raises(ValueError, match="class_thresholds has the class 'dog'"):
        threshold_of_labels(None, config)


@pytest.mark.parametrize("variant", ["detr", "deformable_detr"])
def test_predictions_and_pipeline_use_the_models_own(variant: str, tmp_path: Path) -> None:
    """Both find, with scores unchanged, what one threshold for each class leaves."""
    image = write_image(tmp_path / "noise.png")
    model = tiny_detector(variant, num_labels=3, id2label=NAMES)
    processor = class_of(variant, "ImageProcessor")(size=SIZE)
    [everything] = predict(model, processor, image, 0)
    scores = everything["scores"].sort().values
    middle = float(scores[len(scores) // 2])
    model.config.class_thresholds = {"cat": 0.0, "dog": middle, "bird": 1.0}
    model.save_pretrained(tmp_path / "model")
    processor.save_pretrained(tmp_path / "model")
    least = torch.tensor([0.0, middle, 1.0])[everything["labels"]]
    keep = everything["scores"] > least
    assert 0 < keep.sum() < len(keep)
    detect = pipeline("object-detection", model=str(tmp_path / "model"))
    assert detect.model.config.class_thresholds == model.config.class_thresholds
    [found] = predict(detect.model, processor, image)
    for key in ("scores", "labels", "boxes"):
        assert torch.equal(found[key], everything[key][keep])
    names = [NAMES[label] for label in found["labels"].tolist()]
    assert [one["label"] for one in detect(str(image))] == names
    assert len(detect(str(image), threshold=0.0)) == len(keep)
    [by_name] = predict(model, processor, image, {"cat": 1.0, "dog": 1.0, "bird": 0.0})
    assert set(by_name["labels"].tolist()) <= {2}


def test_segments_use_the_models_own(tmp_path: Path) -> None:
    """A segment needs the score of its class too; queries of no object have none."""
    model = tiny_segmenter(num_queries=1, id2label=NAMES, num_labels=3)
    with torch.no_grad():
        model.detector.class_labels_classifier.bias[2] = 20
        model.mask_head.out_lay.bias.fill_(5)
    processor = class_of("detr", "ImageProcessor")(size=SIZE)
    image = torch.zeros(3, 64, 64)
    assert predict(model, processor, image)[0]["segments_info"]
    model.config.class_thresholds = {"bird": 1.0}
    [nothing] = predict(model, processor, image)
    assert nothing["segments_info"] == [] and len(nothing["scores"]) == 0
    with torch.no_grad():
        model.detector.class_labels_classifier.bias[3] = 40  # no object
    assert predict(model, processor, image)[0]["segments_info"] == []
