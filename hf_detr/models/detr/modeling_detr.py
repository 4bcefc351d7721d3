"""DETR: End-to-End Object Detection with Transformers (arXiv 2005.12872)."""

from ..global_attention import GlobalAttentionDetector, GlobalAttentionModel
from ..segmentation import Segmenter
from .configuration_detr import DetrConfig


class DetrModel(GlobalAttentionModel):
    """DETR without heads: from pixels to the states of the object queries."""

    config_class = DetrConfig


class DetrForObjectDetection(GlobalAttentionDetector):
    """DETR with its heads: from pixels to classes, boxes and loss."""

    config_class = DetrConfig
    model_class = DetrModel


class DetrForSegmentation(Segmenter):
    """DETR and a mask for each of its objects, things and stuff alike."""

    config_class = DetrConfig
    base_model_prefix = "detr"
    detector_class = DetrForObjectDetection
