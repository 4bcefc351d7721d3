"""Protects what is DETR's own of panoptic segmentation; the rest is in test_segmentation.py."""

import torch

import hf_detr

from ..tiny import tiny_config


def test_names_on_disk() -> None:
    """The detector's names begin with `detr.`, the head's are those of the files."""
    model = hf_detr.DetrForSegmentation(tiny_config("detr", d_model=128, encoder_attention_heads=8))
    assert {name.split(".")[0] for name in model.state_dict()} == {
        *("detr", "mask_head", "bbox_attention")
    }
    assert model.detection_transformer is model.detr.model


def test_queries_and_backbone_of_the_detector() -> None:
    """What works on a detector works on a detector with masks."""
    model = hf_detr.DetrForSegmentation(
        tiny_config("detr", d_model=128, encoder_attention_heads=8)
    ).eval()
    model.resize_queries(9)
    model.freeze_backbone()
    with torch.no_grad():
        assert model(torch.randn(1, 3, 64, 64)).pred_masks.shape == (1, 9, 16, 16)
    assert not any(p.requires_grad for p in model.detr.model.backbone.parameters())
