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
        if kind == "ForObjectDetection":
            left = {name.partition(".")[0] for name in info["unexpected_keys"]}
            assert left == {"bbox_attention", "mask_head"}


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


OWN = [
    *((variant, {}) for variant in PREFIXES),
    ("deformable_detr", {"with_box_refine": True}),
    ("deformable_detr", {"with_box_refine": True, "two_stage": True}),
]


@pytest.mark.parametrize(("variant", "changes"), OWN)
def test_own_files_keep_their_names(tmp_path: Path, variant: str, changes: dict[str, bool]):
    """Protects files of the model itself, of the detector that holds it, and of its base."""
    detector = tiny_detector(variant, **changes)
    files = [detector.state_dict().keys(), detector.model.state_dict().keys()]
    for names in files:
        assert find_renaming(names, detector) is None
        assert find_renaming(names, detector.model) is None
    detector.model.save_pretrained(tmp_path)
    loaded = type(detector).from_pretrained(tmp_path).model
    expected = detector.model.state_dict()
    found = {name: loaded.state_dict()[name] for name in expected}
    torch.testing.assert_close(found, expected, rtol=0, atol=0)


def test_names_that_fit_win():
    """Protects a file with a second copy of the model: it never replaces the model's weights."""
    detector = tiny_detector("detr")
    names = list(detector.state_dict())
    assert find_renaming([*names[:5], *(f"ema.{name}" for name in names)], detector) is None
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
