"""Panoptic DETR (arXiv 2005.12872, Section 4.4), and the same mask head on the other variants."""

import copy

from torch import Tensor
from transformers import TimmBackboneConfig

from .layers.position_encoding import encode_points
from .models.conditional_detr.modeling_conditional_detr import ConditionalDetrForObjectDetection
from .models.configuration import ConditionalDetrConfig, DeformableDetrConfig, DetrConfig
from .models.deformable_detr.modeling_deformable_detr import DeformableDetrForObjectDetection
from .models.detr.modeling_detr import DetrForObjectDetection
from .models.segmentation import NUM_MAPS, Segmenter


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


class ConditionalDetrForSegmentation(Segmenter):
    """Conditional DETR and a mask for each of its objects, things and stuff alike."""

    # Deviation: transformers, whose files these are, leaves the reference points out of the boxes,
    # and matches and scores by softmax what the focal loss trains as sigmoids.
    config_class = ConditionalDetrConfig
    base_model_prefix = "conditional_detr"
    _no_split_modules = ConditionalDetrForObjectDetection._no_split_modules

    def __init__(self, config: ConditionalDetrConfig) -> None:
        super().__init__(config)
        self.conditional_detr = ConditionalDetrForObjectDetection(config)
        self.add_mask_head(config)
        self.post_init()


class DeformableDetrForSegmentation(Segmenter):
    """Deformable DETR and a mask for each of its objects; hf_detr's alone, no paper's.

    Neither the official code nor transformers has such a model, so its files need hf_detr. Each
    query's attention maps lie on the encoded level that the backbone's last map became; the mask
    head then goes on to finer maps of the backbone as DETR's does. `config.num_mask_levels` of
    those the detector doesn't read. Here neither queries nor memory know where they lie, since
    boxes are relative to references and attention to samples, so sines of their places are added.
    """

    config_class = DeformableDetrConfig
    base_model_prefix = "deformable_detr"
    _no_split_modules = DeformableDetrForObjectDetection._no_split_modules

    def __init__(self, config: DeformableDetrConfig) -> None:
        config = with_mask_levels(config)
        super().__init__(config)
        self.deformable_detr = DeformableDetrForObjectDetection(config)
        self.add_mask_head(config)
        self.post_init()

    @property
    def mask_level(self) -> int:
        num_maps = len(self.detection_transformer.backbone.num_channels)
        return num_maps - self.config.num_mask_levels - 1

    def attention_inputs(
        self, queries: Tensor, memory: Tensor, pred_boxes: Tensor, centers: Tensor
    ) -> tuple[Tensor, Tensor]:
        width = self.config.d_model
        places = encode_points(pred_boxes[..., :2].detach(), width)
        return queries + places, memory + encode_points(centers.to(memory.dtype), width)


def with_mask_levels(config: DeformableDetrConfig) -> DeformableDetrConfig:
    """The configuration, with as many finer maps of the backbone as the mask head needs."""
    backbone = config.backbone_config
    levels = list(backbone.out_indices)
    missing = NUM_MAPS - len(levels)
    if missing <= 0:
        return config
    finer = range(levels[0] - missing, levels[0])
    config = copy.deepcopy(config)
    config.num_mask_levels += missing
    config.backbone_config = TimmBackboneConfig(
        backbone=backbone.backbone,
        num_channels=backbone.num_channels,
        out_indices=[*finer, *levels],
        output_stride=backbone.output_stride,
        use_pretrained_backbone=backbone.use_pretrained_backbone,
    )
    return config
