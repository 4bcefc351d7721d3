"""Table Transformer: DETR with layer norms before sub-layers, for tables (arXiv 2110.00061)."""

from torch import nn

from ..global_attention import GlobalAttentionDetector, GlobalAttentionModel
from .configuration_table_transformer import TableTransformerConfig


class TableTransformerModel(GlobalAttentionModel):
    """Table Transformer without heads: from pixels to the states of the object queries."""

    config_class = TableTransformerConfig

    def __init__(self, config: TableTransformerConfig) -> None:
        super().__init__(config)
        # Names on disk: backbone.position_embedding, where learned positions are in other models'
        # position_embedding.
        self.backbone.position_embedding = self._modules.pop("position_embedding")

    @property
    def position_embedding(self) -> nn.Module:
        """Turns a mask (B, h, w), and whether all of it is real, into (B, D, h, w)."""
        return self.backbone.position_embedding


class TableTransformerForObjectDetection(GlobalAttentionDetector):
    """Table Transformer with its heads: from pixels to classes, boxes and loss."""

    config_class = TableTransformerConfig
    model_class = TableTransformerModel

    def __init__(self, config: TableTransformerConfig) -> None:
        super().__init__(config, config.ce_loss_coefficient)
