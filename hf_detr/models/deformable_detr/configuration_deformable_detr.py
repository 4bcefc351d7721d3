"""Configuration of Deformable DETR (arXiv 2010.04159)."""

from typing import Any

from huggingface_hub.dataclasses import strict

from ...ops.compiled_attention import KERNELS
from ..configuration import DetectionConfig, Number
from ..configuration_checks import MOST, MOST_LAYERS, check_range


@strict
class DeformableDetrConfig(DetectionConfig):
    """Configuration of Deformable DETR (arXiv 2010.04159); fields of `DetectionConfig` and these.

    Args:
        num_feature_levels: number of feature levels; those after the backbone's three are computed
            by strided convolution.
        encoder_n_points, decoder_n_points: number of sampling points per head and level.
        with_box_refine: whether each decoder layer refines the boxes of the previous one.
        two_stage: whether queries start from the encoder's best proposals; requires
            `with_box_refine`.
        two_stage_num_proposals: number of proposals, and of queries, if `two_stage`.
        num_mask_levels: number of the backbone's finest maps that only the mask head uses; 0 except
            for `DeformableDetrForSegmentation`, which transformers doesn't have.
        cls_loss_coefficient: weight of the classification loss; transformers uses 1.
        focal_alpha: weight of positive targets in the focal loss, in [0, 1].
        tie_word_embeddings: whether prediction heads share weights, named as in transformers.
        kernel: implementation of deformable attention, "auto", "torch", "compiled" or "required",
            see `multi_scale_deformable_attention`; not saved.
        disable_custom_kernels, return_intermediate, max_position_embeddings: fields of
            transformers, unused.
    """

    model_type = "deformable_detr"

    num_queries: int = 300
    encoder_ffn_dim: int = 1024
    decoder_ffn_dim: int = 1024
    num_feature_levels: int = 4
    encoder_n_points: int = 4
    decoder_n_points: int = 4
    with_box_refine: bool = False
    two_stage: bool = False
    two_stage_num_proposals: int = 300
    num_mask_levels: int = 0
    # Deviation: class cost and weight are 2 as in the paper; in transformers they are 1.
    class_cost: Number = 2
    cls_loss_coefficient: Number = 2
    focal_alpha: Number = 0.25
    tie_word_embeddings: bool = True
    kernel: str = "auto"
    disable_custom_kernels: bool = False
    return_intermediate: bool = True
    max_position_embeddings: int = 1024

    @property
    def num_backbone_levels(self) -> int:
        """Default number of the backbone's last feature maps that are used."""
        return min(3, self.num_feature_levels) + self.num_mask_levels

    def to_dict(self) -> dict[str, Any]:
        """Return all fields except `kernel`, which depends on the machine."""
        fields = super().to_dict()
        del fields["kernel"]
        if fields["num_mask_levels"] == 0:
            del fields["num_mask_levels"]  # keeps files of detectors equal to those of transformers
        return fields

    def validate_architecture(self) -> None:
        """Check the values; called by the base class."""
        super().validate_architecture()
        check_range(self, ("focal_alpha",), low=0, high=1)
        check_range(self, ("cls_loss_coefficient",), low=0)
        if self.kernel not in KERNELS:
            raise ValueError(f"kernel is {self.kernel!r}; use one of {', '.join(KERNELS)}.")
        sizes = ("encoder_n_points", "decoder_n_points", "two_stage_num_proposals")
        check_range(self, sizes, low=1, high=MOST)
        check_range(self, ("num_feature_levels",), low=1, high=MOST_LAYERS)
        if self.d_model % 32:
            raise ValueError(
                f"d_model is {self.d_model}; it must be a multiple of 32, the number of groups "
                "of the group normalization."
            )
        num_maps = len(self.backbone_config.out_indices)
        check_range(self, ("num_mask_levels",), low=0, high=num_maps - 1)
        if num_maps - self.num_mask_levels > self.num_feature_levels:
            raise ValueError(
                f"num_feature_levels is {self.num_feature_levels}, but backbone_config.out_indices "
                f"{list(self.backbone_config.out_indices)} has {num_maps - self.num_mask_levels} "
                "feature maps; use at most one feature map per level."
            )
        if self.two_stage and not self.with_box_refine:
            raise ValueError(
                "two_stage=True requires with_box_refine=True, because the second stage refines "
                "the boxes of the first."
            )
