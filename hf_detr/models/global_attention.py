"""A detector with global attention, learned queries and softmax scores (arXiv 2005.12872).

One feature map, global attention in encoder and decoder, N learned queries; softmax with a class
"no object". DETR and the variants that differ from it in their layers alone are made of these.
"""

from torch import Tensor, nn
from transformers import PreTrainedConfig

from ..layers.attention import MultiHeadAttention
from ..layers.feature_pyramid import FeaturePyramid
from ..layers.transformer import TransformerLayer
from ..losses.classification import SoftmaxClassification
from ..losses.criterion import make_criterion
from ..ops.box_ops import boxes_from_deltas
from .detection_transformer import DetectionTransformer
from .heads import make_box_head, make_class_head
from .object_detector import ObjectDetector
from .outputs import DecoderOutput
from .training_queries import Queries


class GlobalDecoderLayer(TransformerLayer):
    """Queries attend to each other, then to the memory, then pass a feed-forward network.

    Args:
        config: widths, activation and dropout.
    """

    def __init__(self, config: PreTrainedConfig) -> None:
        super().__init__(config, config.decoder_ffn_dim)
        attention = (config.d_model, config.decoder_attention_heads, config.attention_dropout)
        self.self_attn = MultiHeadAttention(*attention)
        self.self_attn_layer_norm = nn.LayerNorm(config.d_model)
        self.encoder_attn = MultiHeadAttention(*attention)
        self.encoder_attn_layer_norm = nn.LayerNorm(config.d_model)

    def forward(
        self,
        hidden_states: Tensor,
        query_position_embeddings: Tensor,
        memory: Tensor,
        position_embeddings: Tensor,
        pyramid: FeaturePyramid,
        mask: Tensor | None,
        return_weights: bool,
    ) -> tuple[Tensor, Tensor | None, Tensor | None]:
        """Transform queries (B, Q, D) with positions (B, Q, D), memory and positions (B, S, D).

        The mask (B or 1, Q, Q) is that of self-attention, or None.

        Returns:
            Queries (B, Q, D), and the weights of self- and cross-attention if asked for.
        """
        normed = self.norm_before(hidden_states, self.self_attn_layer_norm)
        query = normed + query_position_embeddings
        attended, weights = self.self_attn(query, query, normed, mask, return_weights)
        hidden_states = self.add_and_norm(hidden_states, attended, self.self_attn_layer_norm)

        normed = self.norm_before(hidden_states, self.encoder_attn_layer_norm)
        attended, cross_weights = self.encoder_attn(
            normed + query_position_embeddings,
            memory + position_embeddings,
            memory,
            pyramid.mask,
            return_weights,
        )
        hidden_states = self.add_and_norm(hidden_states, attended, self.encoder_attn_layer_norm)
        return self.feed_forward(hidden_states), weights, cross_weights


class GlobalDecoder(nn.Module):
    """A stack of decoder layers with one norm for the states that the heads read.

    Args:
        config: depth and what the layers need.
    """

    def __init__(self, config: PreTrainedConfig) -> None:
        super().__init__()
        self.layers = nn.ModuleList(
            GlobalDecoderLayer(config) for _ in range(config.decoder_layers)
        )
        self.layernorm = nn.LayerNorm(config.d_model)

    def forward(
        self,
        queries: Queries,
        memory: Tensor,
        position_embeddings: Tensor,
        pyramid: FeaturePyramid,
        output_hidden_states: bool,
        output_attentions: bool,
    ) -> DecoderOutput:
        """Decode queries (B, Q, D) with memory and its positions (B, S, D)."""
        hidden_states = queries.contents
        trace = [(hidden_states, None, None)]
        for layer in self.layers:
            hidden_states, weights, cross_weights = layer(
                hidden_states,
                queries.positions,
                memory,
                position_embeddings,
                pyramid,
                queries.mask,
                output_attentions,
            )
            trace.append((hidden_states, weights, cross_weights))
        return DecoderOutput.from_trace(
            trace, self.layernorm, output_hidden_states, output_attentions
        )


class GlobalAttentionModel(DetectionTransformer):
    """The model without heads: from pixels to the states of the object queries."""

    _no_split_modules = ["Backbone", "EncoderLayer", "GlobalDecoderLayer"]

    def __init__(self, config: PreTrainedConfig) -> None:
        super().__init__(config)
        self.input_projection = nn.Conv2d(
            self.backbone.num_channels[-1], config.d_model, kernel_size=1
        )
        self.query_position_embeddings = nn.Embedding(config.num_queries, config.d_model)
        self.decoder = GlobalDecoder(config)
        self.post_init()


class GlobalAttentionDetector(ObjectDetector):
    """The model with its heads: from pixels to classes, boxes and loss.

    A subclass gives `model_class`.

    Args:
        config: of the subclass.
        class_weight: weight of the classification loss, for configurations that have one.
    """

    model_class: type[GlobalAttentionModel]

    def __init__(self, config: PreTrainedConfig, class_weight: float = 1) -> None:
        super().__init__(config)
        classification = SoftmaxClassification(config.num_labels, config.eos_coefficient)
        self.model = self.model_class(config)
        self.class_labels_classifier = make_class_head(config.d_model, classification)
        self.bbox_predictor = make_box_head(config.d_model)
        self.criterion = make_criterion(config, classification, class_weight)
        self.post_init()

    def predict(
        self, layer_states: Tensor, reference_points: tuple[Tensor, ...] | None
    ) -> tuple[Tensor, Tensor]:
        logits = self.class_labels_classifier(layer_states)
        return logits, boxes_from_deltas(self.bbox_predictor(layer_states))
