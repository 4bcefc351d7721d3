"""Configuration of Table Transformer (arXiv 2110.00061)."""

from huggingface_hub.dataclasses import strict

from ..configuration import DetectionConfig, Number
from ..configuration_checks import check_range


@strict
class TableTransformerConfig(DetectionConfig):
    """Configuration of Table Transformer; fields of `DetectionConfig` and this one.

    Layer norms are before attention and feed-forward networks, and after the encoder.

    Args:
        ce_loss_coefficient: weight of the classification loss; ignored by transformers.
    """

    model_type = "table-transformer"

    # Deviation: the authors' training has this weight; transformers' default is 0.1.
    eos_coefficient: Number = 0.4
    ce_loss_coefficient: Number = 1

    @property
    def normalize_before(self) -> bool:
        return True

    def validate_architecture(self) -> None:
        """Check the values; called by the base class."""
        super().validate_architecture()
        check_range(self, ("ce_loss_coefficient",), low=0)
