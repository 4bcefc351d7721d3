"""Protects the detector that comes with the package: it loads, finds garments, and stays small."""

from pathlib import Path

import torch
from PIL import Image
from transformers import pipeline

from hf_detr import DeformableDetrForObjectDetection, embedded_model_folder
from hf_detr.box_ops import box_iou

IMAGE = Path(__file__).parents[1] / "examples" / "images" / "garments.jpg"
# What was pasted into the image, as (left, top, width, height).
GARMENTS = {
    "coat": (354, 190, 91, 127),
    "trouser": (172, 189, 98, 138),
    "ankle boot": (158, 68, 134, 85),
    "t-shirt/top": (19, 228, 92, 110),
    "sneaker": (322, 101, 129, 43),
    "bag": (22, 31, 105, 87),
}


def test_finds_the_garments() -> None:
    """A pipeline from the folder finds what is there, and where it is."""
    detect = pipeline("object-detection", model=str(embedded_model_folder()))
    assert type(detect.model) is DeformableDetrForObjectDetection
    detections = detect(Image.open(IMAGE), threshold=0.5)
    assert {detection["label"] for detection in detections} == set(GARMENTS)
    for detection in detections:
        left, top, width, height = GARMENTS[detection["label"]]
        true = torch.tensor([left, top, left + width, top + height]).float()
        iou, _ = box_iou(torch.tensor(list(detection["box"].values())).float(), true)
        assert iou > 0.7, detection


def test_stays_small() -> None:
    """The file travels with every installation: at most 15 MB, in safetensors, float32."""
    files = {path.name: path.stat().st_size for path in embedded_model_folder().iterdir()}
    assert set(files) == {"config.json", "model.safetensors", "preprocessor_config.json"}
    assert files["model.safetensors"] <= 15e6
