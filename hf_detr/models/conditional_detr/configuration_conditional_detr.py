"""Configuration of Conditional DETR (arXiv 2108.06152)."""

from huggingface_hub.dataclasses import strict

from ..configuration import DetectionConfig, Number
from ..configuration_checks import check_range


@strict
class ConditionalDetrConfig(DetectionConfig):
    """Configuration of Conditional DETR (arXiv 2108.06152); fields of `DetectionConfig` and these.

    Args:
        cls_loss_coefficient: weight of the classification loss; ignored by transformers.
        focal_alpha: weight of positive targets in the focal loss, in [0, 1].
    """

    model_type = "conditional_detr"

    num_queries: int = 300
    class_cost: Number = 2
    cls_loss_coefficient: Number = 2
    focal_alpha: Number = 0.25

    def validate_architecture(self) -> None:
        """Check the values; called by the base class."""
        super().validate_architecture()
        check_range(self, ("focal_alpha",), low=0, high=1)
        check_range(self, ("cls_loss_coefficient",), low=0)
