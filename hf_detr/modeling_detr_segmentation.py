"""Panoptic DETR (arXiv 2005.12870, Section 4.4): DETR with a mask head."""

from .configuration_detr import DetrConfig
from .modeling_detr import DetrForObjectDetection
from .segmentation import Segmenter


class DetrForSegmentation(Segmenter):
    """DETR and a mask for each of its objects, things and stuff alike."""

    config_class = DetrConfig
    base_model_prefix = "detr"
    _no_split_modules = DetrForObjectDetection._no_split_modules

    def __init__(self, config: DetrConfig) -> None:
        super().__init__(config)
        self.detr = DetrForObjectDetection(config)
        self.add_mask_head(config)
        self.post_init()
