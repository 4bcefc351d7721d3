"""Tests of `hf_detr/models/saved_names.py`."""

from pathlib import Path

import pytest
import torch
from transformers import pipeline

from hf_detr import DetrImageProcessor
from hf_detr.models.saved_names import find_renaming

from ..tiny import PREFIXES, WITH_MASKS, class_of, tiny_detector
from .test_segmentation import tiny_segmenter


@pytest.mark.parametrize("shard_size", ["1GB", "500KB"])
@pytest.mark.parametrize("variant", WITH_MASKS)
def test_parts_of_a_segmenter(tmp_path: Path, variant: str, shard_size: str):
    """Protects weights of a panoptic checkpoint: none of a detector is drawn at random."""
    segmenter = tiny_segmenter(variant)
    segmenter.save_pretrained(tmp_path, max_shard_size=shard_size)
    parts = {
        "ForObjectDetection": segmenter.detector,
        "Model": segmenter.detection_transformer,
        "ForSegmentation": segmenter,
    }
    for kind, part in parts.items():
        load = class_of(variant, kind).from_pretrained
        loaded, info = load(tmp_path, output_loading_info=True)
        torch.testing.assert_close(loaded.state_dict(), part.state_dict(), rtol=0, atol=0)
        assert not info["missing_keys"]
        left = {name.split(".")[-2] for name in info["unexpected_keys"] if "mask_head" not in name}
        assert left <= ({"q_linear", "k_linear"} if kind == "ForObjectDetection" else left)


def test_pipeline_of_a_segmenter(tmp_path: Path):
    """Protects `pipeline("object-detection")` with a panoptic checkpoint."""
    segmenter = tiny_segmenter("detr")
    segmenter.save_pretrained(tmp_path)
    DetrImageProcessor().save_pretrained(tmp_path)
    detector = pipeline("object-detection", model=str(tmp_path)).model
    pixel_values = torch.randn(1, 3, 64, 96)
    with torch.no_grad():
        boxes, expected = (m(pixel_values).pred_boxes for m in (detector, segmenter))
    torch.testing.assert_close(boxes, expected)


@pytest.mark.parametrize("variant", PREFIXES)
def test_own_files_keep_their_names(variant: str):
    """Protects files of the model itself, and of the detector that holds it."""
    detector = tiny_detector(variant)
    names = detector.state_dict().keys()
    assert find_renaming(names, detector) is None
    assert find_renaming(names, detector.model) is None  # transformers itself takes the part
    assert find_renaming(detector.model.state_dict().keys(), detector.model) is None
    assert find_renaming(["some.other.weight", "weight"], detector) is None


def test_a_segmenter_with_the_resnet_of_transformers():
    """Protects files that need both: the prefix is taken off, and the ResNet has timm's names."""
    names = {
        "detr.model.backbone.conv_encoder.model.embedder.embedder.convolution.weight": 1,
        "detr.model.query_position_embeddings.weight": 2,
        "mask_head.lay1.weight": 3,
    }
    expected = {
        "model.backbone.conv_encoder.model.conv1.weight": 1,
        "model.query_position_embeddings.weight": 2,
        "mask_head.lay1.weight": 3,
    }
    assert find_renaming(names, tiny_detector("detr"))(names) == expected
