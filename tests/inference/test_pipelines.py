"""Tests `pipeline("object-detection")` on files, batches and models of transformers."""

from pathlib import Path

import pytest
import torch
import transformers
from PIL import Image
from transformers import AutoImageProcessor, pipeline

from hf_detr import DetectionPipeline, DetrImageProcessor, SegmentationPipeline
from hf_detr.inference.pipelines import pad_to_batch
from hf_detr.models.object_detector import ObjectDetector

from ..tiny import IN_TRANSFORMERS, SOFTMAX, WITH_HEADS, class_of, tiny_config, tiny_detector

IMAGES = Path(__file__).parents[2] / "examples" / "images"


@pytest.fixture
def folder(variant: str, tmp_path: Path) -> Path:
    """A saved detector of five classes with its processor."""
    detector = tiny_detector(variant, id2label={i: f"class {i}" for i in range(5)})
    detector.save_pretrained(tmp_path)
    size = {"shortest_edge": 96, "longest_edge": 160}
    class_of(variant, "ImageProcessor")(size=size).save_pretrained(tmp_path)
    return tmp_path


def num_detections(variant: str) -> int:
    """Detections at threshold 0: one per query, or one per query and class."""
    return 7 if variant in SOFTMAX else 7 * 5


def test_pipeline_on_a_photograph(folder: Path, variant: str) -> None:
    """A path gives detections with names, scores and boxes in pixels."""
    detect = pipeline("object-detection", model=str(folder))
    assert type(detect) is DetectionPipeline
    assert isinstance(detect.model, ObjectDetector)
    detections = detect(str(IMAGES / "coffee.jpg"), threshold=0.0)
    assert len(detections) == num_detections(variant)
    assert {"score", "label", "box"} == set(detections[0])
    assert detections[0]["label"].startswith("class ")
    assert set(detections[0]["box"]) == {"xmin", "ymin", "xmax", "ymax"}


@pytest.mark.parametrize(("variant", "kind"), WITH_HEADS)
def test_models_are_supported(variant: str, kind: str, caplog: pytest.LogCaptureFixture) -> None:
    """No message says otherwise, also of models that transformers doesn't have."""
    config = tiny_config(variant, d_model=128, encoder_attention_heads=8)
    arguments = {
        "model": class_of(variant, kind)(config),
        "image_processor": class_of(variant, "ImageProcessor")(),
    }
    transformers.utils.logging.enable_propagation()
    try:
        if kind == "ForObjectDetection":
            DetectionPipeline(**arguments)
        else:
            SegmentationPipeline(**arguments)
    finally:
        transformers.utils.logging.disable_propagation()
    assert "not supported" not in caplog.text


def test_batches_of_mixed_sizes(folder: Path, variant: str) -> None:
    """Batches of images with four sizes give nearly the same results as single images."""
    detect = pipeline("object-detection", model=str(folder))
    photo = Image.open(IMAGES / "coffee.jpg")
    images = [photo, photo.resize((300, 400)), photo.convert("L"), photo.crop((0, 0, 200, 90))]
    alone = [detect(image, threshold=0.0) for image in images]
    for batch_size in (2, 3, 4):
        batched = detect(images, threshold=0.0, batch_size=batch_size)
        assert [len(detections) for detections in batched] == [num_detections(variant)] * 4
        for one, other in zip(alone, batched, strict=True):
            for a, b in zip(one, other, strict=True):
                assert a["score"] == pytest.approx(b["score"], abs=0.1)
                # Sigmoids are sorted by scores, which are nearly tied in an untrained model.
                if variant in SOFTMAX:
                    edges = zip(a["box"].values(), b["box"].values(), strict=True)
                    assert all(abs(x - y) < 0.1 * max(photo.size) for x, y in edges)


def test_segmentation_needs_masks(tmp_path: Path) -> None:
    """The error names the reason when the pipeline is made, not an attribute when it runs."""
    processor = DetrImageProcessor()
    for variant, message in [
        ("table-transformer", "is a table-transformer model, of which there is none with a mask"),
        ("detr", "is a DetrForObjectDetection, which has no mask head"),
    ]:
        model = tiny_detector(variant)
        model.save_pretrained(tmp_path / variant)
        given = [model] if variant == "detr" else [model, str(tmp_path / variant)]
        for one in given:
            with pytest.raises(ValueError, match=message):
                pipeline("image-segmentation", model=one, image_processor=processor)


@pytest.mark.parametrize("variant", IN_TRANSFORMERS)
def test_other_models_go_through_unchanged(variant: str) -> None:
    """Models of transformers give the same results as in transformers' pipeline."""
    torch.manual_seed(0)
    config = class_of(variant, "Config", transformers).from_dict(
        tiny_config(variant, backbone="resnet18").to_dict()
    )
    theirs = class_of(variant, "ForObjectDetection", transformers)(config).eval()
    processor = class_of(variant, "ImageProcessor", transformers)(size={"height": 64, "width": 64})
    arguments = {"model": theirs, "image_processor": processor}
    ours = DetectionPipeline(**arguments)
    plain = transformers.ObjectDetectionPipeline(**arguments)
    image = str(IMAGES / "cat.jpg")
    assert ours(image, threshold=0.0) == plain(image, threshold=0.0)


def test_pad_to_batch() -> None:
    """Tensors are padded with zeros at the bottom and right."""
    batch = pad_to_batch([[torch.ones(1, 3, 2, 4)], torch.full((1, 3, 5, 1), 2.0)])
    assert batch.shape == (2, 3, 5, 4)
    assert batch[0, 0].sum() == 8 and batch[0, :, :2, :4].min() == 1
    assert batch[1, 0].sum() == 10 and batch[1, :, :, 0].min() == 2


def test_processor_that_does_not_pad(folder: Path) -> None:
    """Without padding in the image processor, the pipeline pads and masks the images."""
    processor = AutoImageProcessor.from_pretrained(folder, do_pad=False)
    detect = pipeline("object-detection", model=str(folder), image_processor=processor)
    photo = Image.open(IMAGES / "coffee.jpg")
    images = [photo, photo.resize((300, 400))]
    padded = pipeline("object-detection", model=str(folder))(images, threshold=0.0, batch_size=2)
    got = detect(images, threshold=0.0, batch_size=2)
    assert got == padded
