"""Fields of configurations whose model's attention samples points of several feature levels."""

from typing import Any

from huggingface_hub.dataclasses import strict

from ..ops.compiled_attention import KERNELS
from .configuration import DetectionConfig, Number
from .configuration_checks import MOST, MOST_LAYERS, check_range


@strict
class SampledAttentionConfig(DetectionConfig):
    """Base of such variants' configurations; fields of `DetectionConfig` and these.

    Args:
        num_feature_levels: number of feature levels; those after the backbone's maps are computed
            by strided convolution.
        encoder_n_points, decoder_n_points: number of sampling points per head and level.
        num_mask_levels: number of the backbone's finest maps that only the mask head uses; 0 for
            detectors.
        class_cost: weight of the class in the matching cost.
        cls_loss_coefficient: weight of the classification loss.
        focal_alpha: weight of positive targets in the focal loss, in [0, 1].
        kernel: implementation of deformable attention, "auto", "torch", "compiled" or "required",
            see `multi_scale_deformable_attention`; not saved.
    """

    num_feature_levels: int = 4
    encoder_n_points: int = 4
    decoder_n_points: int = 4
    num_mask_levels: int = 0
    class_cost: Number = 2
    cls_loss_coefficient: Number = 2
    focal_alpha: Number = 0.25
    kernel: str = "auto"

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
        check_range(self, ("encoder_n_points", "decoder_n_points"), low=1, high=MOST)
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
