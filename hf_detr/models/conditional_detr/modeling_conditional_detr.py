"""Conditional DETR for Fast Training Convergence (arXiv 2108.06152).

DETR with another cross-attention: each query has a reference point, and content and place are
compared separately, concatenated instead of added. A head can therefore attend to one side of the
box whatever the content. Classes are sigmoids without "no object".
"""

import torch
from torch import Tensor, nn

from ...layers.attention import ProjectedAttention
from ...layers.feature_pyramid import FeaturePyramid
from ...layers.initial_weights import xavier_linear
from ...layers.onednn import linear
from ...layers.position_encoding import encode_points
from ...layers.transformer import TransformerLayer
from ...losses.classification import SigmoidFocalClassification
from ...losses.criterion import make_criterion
from ...ops.box_ops import boxes_from_deltas, points_from_logits
from ..adapters import TRANSFORMERS_NAMES
from ..detection_transformer import DetectionTransformer
from ..heads import MLP, make_box_head, make_class_head
from ..object_detector import ObjectDetector
from ..outputs import DecoderOutput
from ..segmentation import Segmenter
from ..training_queries import Queries
from .configuration_conditional_detr import ConditionalDetrConfig


class ConditionalDetrDecoderLayer(TransformerLayer):
    """Self-attention, conditional cross-attention and feed-forward network.

    Args:
        config: widths, activation and dropout.
        is_first: the first layer's queries have no content yet, so it compares their positions
            like DETR, too.
    """

    def __init__(self, config: ConditionalDetrConfig, is_first: bool) -> None:
        super().__init__(config, config.decoder_ffn_dim)
        width, num_heads = config.d_model, config.decoder_attention_heads
        self.num_heads = num_heads
        self.sa_qcontent_proj = xavier_linear(width, width)
        self.sa_qpos_proj = xavier_linear(width, width)
        self.sa_kcontent_proj = xavier_linear(width, width)
        self.sa_kpos_proj = xavier_linear(width, width)
        self.sa_v_proj = xavier_linear(width, width)
        self.self_attn = ProjectedAttention(width, num_heads, config.attention_dropout)
        self.self_attn_layer_norm = nn.LayerNorm(width)

        self.ca_qcontent_proj = xavier_linear(width, width)
        self.ca_qpos_proj = xavier_linear(width, width) if is_first else None
        self.ca_kcontent_proj = xavier_linear(width, width)
        self.ca_kpos_proj = xavier_linear(width, width)
        self.ca_v_proj = xavier_linear(width, width)
        self.ca_qpos_sine_proj = xavier_linear(width, width)
        self.encoder_attn = ProjectedAttention(width, num_heads, config.attention_dropout)
        self.encoder_attn_layer_norm = nn.LayerNorm(width)

    def forward(
        self,
        hidden_states: Tensor,
        query_position_embeddings: Tensor,
        spatial_queries: Tensor,
        memory: Tensor,
        position_embeddings: Tensor,
        pyramid: FeaturePyramid,
        mask: Tensor | None,
        return_weights: bool,
    ) -> tuple[Tensor, Tensor | None, Tensor | None]:
        """Transform queries (B, Q, D).

        Args:
            hidden_states: content of the queries, (B, Q, D).
            query_position_embeddings: (B, Q, D).
            spatial_queries: scaled sines of the reference points, (B, Q, D); the paper's p_q.
            memory: (B, S, D).
            position_embeddings: of the memory, (B, S, D).
            pyramid: its mask is used.
            mask: of self-attention, (B or 1, Q, Q), or None.
            return_weights: also return attention weights.

        Returns:
            Queries (B, Q, D), and the weights of self- and cross-attention if asked for.
        """
        attended, weights = self.self_attn(
            linear(self.sa_qcontent_proj, hidden_states)
            + linear(self.sa_qpos_proj, query_position_embeddings),
            linear(self.sa_kcontent_proj, hidden_states)
            + linear(self.sa_kpos_proj, query_position_embeddings),
            linear(self.sa_v_proj, hidden_states),
            mask,
            return_weights,
        )
        hidden_states = self.add_and_norm(hidden_states, attended, self.self_attn_layer_norm)

        query, key = (
            linear(self.ca_qcontent_proj, hidden_states),
            linear(self.ca_kcontent_proj, memory),
        )
        key_positions = linear(self.ca_kpos_proj, position_embeddings)
        if self.ca_qpos_proj is not None:
            query = query + linear(self.ca_qpos_proj, query_position_embeddings)
            key = key + key_positions
        attended, cross_weights = self.encoder_attn(
            self._concatenate(query, linear(self.ca_qpos_sine_proj, spatial_queries)),
            self._concatenate(key, key_positions),
            linear(self.ca_v_proj, memory),
            pyramid.mask,
            return_weights,
        )
        hidden_states = self.add_and_norm(hidden_states, attended, self.encoder_attn_layer_norm)
        return self.feed_forward(hidden_states), weights, cross_weights

    def _concatenate(self, content: Tensor, position: Tensor) -> Tensor:
        """Content and position (B, tokens, D) side by side within every head: (B, tokens, 2D)."""
        parts = [part.unflatten(-1, (self.num_heads, -1)) for part in (content, position)]
        return torch.cat(parts, dim=-1).flatten(-2)


class ConditionalDetrDecoder(nn.Module):
    """A stack of decoder layers; the scale of reference points comes from the queries.

    Args:
        config: depth and what the layers need.
    """

    def __init__(self, config: ConditionalDetrConfig) -> None:
        super().__init__()
        width = config.d_model
        self.layers = nn.ModuleList(
            ConditionalDetrDecoderLayer(config, is_first=index == 0)
            for index in range(config.decoder_layers)
        )
        self.layernorm = nn.LayerNorm(width)
        self.query_scale = MLP(width, width, width, num_layers=2, make_linear=xavier_linear)
        self.ref_point_head = MLP(width, width, 2, num_layers=2, make_linear=xavier_linear)

    def forward(
        self,
        queries: Queries,
        memory: Tensor,
        position_embeddings: Tensor,
        pyramid: FeaturePyramid,
        output_hidden_states: bool,
        output_attentions: bool,
    ) -> DecoderOutput:
        """Decode queries (B, Q, D) at points (B, Q, 2), with memory and positions (B, S, D)."""
        hidden_states = queries.contents
        sines = encode_points(queries.reference_points, hidden_states.shape[-1])
        sines = sines.to(hidden_states.dtype)
        trace = [(hidden_states, None, None)]
        for index, layer in enumerate(self.layers):
            # The paper's T(f): how the content stretches the spatial query; the first has none.
            spatial_queries = sines if index == 0 else sines * self.query_scale(hidden_states)
            hidden_states, weights, cross_weights = layer(
                hidden_states,
                queries.positions,
                spatial_queries,
                memory,
                position_embeddings,
                pyramid,
                queries.mask,
                output_attentions,
            )
            trace.append((hidden_states, weights, cross_weights))
        return DecoderOutput.from_trace(
            trace,
            norm=self.layernorm,
            reference_points=(queries.reference_points,) * len(self.layers),
            output_hidden_states=output_hidden_states,
            output_attentions=output_attentions,
        )


# Names of the decoder's projections in transformers, and ours.
PROJECTION_NAMES = {
    r"(decoder\.layers\.\d+)\.self_attn\.v_proj\b": r"\1.sa_v_proj",
    r"(decoder\.layers\.\d+)\.encoder_attn\.v_proj\b": r"\1.ca_v_proj",
    r"(decoder\.layers\.\d+)\.self_attn\.([qk])_(content|pos)_proj\b": r"\1.sa_\2\3_proj",
    r"(decoder\.layers\.\d+)\.encoder_attn\.([qk])_(content|pos)_proj\b": r"\1.ca_\2\3_proj",
    r"(decoder\.layers\.\d+)\.encoder_attn\.q_pos_sine_proj\b": r"\1.ca_qpos_sine_proj",
}
ADAPTER_NAMES = {**TRANSFORMERS_NAMES, **PROJECTION_NAMES}


class ConditionalDetrModel(DetectionTransformer):
    """Conditional DETR without heads: from pixels to the states of the object queries."""

    config_class = ConditionalDetrConfig
    _checkpoint_conversion_mapping = ADAPTER_NAMES
    _no_split_modules = ["Backbone", "EncoderLayer", "ConditionalDetrDecoderLayer"]

    def __init__(self, config: ConditionalDetrConfig) -> None:
        super().__init__(config)
        num_channels = self.backbone.num_channels[-1]
        self.input_projection = nn.Conv2d(num_channels, config.d_model, kernel_size=1)
        self.query_position_embeddings = nn.Embedding(config.num_queries, config.d_model)
        self.decoder = ConditionalDetrDecoder(config)
        self.post_init()

    def prepare_queries(self, embeddings: Tensor) -> Queries:
        reference_points = points_from_logits(self.decoder.ref_point_head(embeddings))  # (B, Q, 2)
        return Queries(torch.zeros_like(embeddings), embeddings, reference_points)


class ConditionalDetrForObjectDetection(ObjectDetector):
    """Conditional DETR with its heads: from pixels to classes, boxes and loss."""

    config_class = ConditionalDetrConfig
    _checkpoint_conversion_mapping = ADAPTER_NAMES

    def __init__(self, config: ConditionalDetrConfig) -> None:
        super().__init__(config)
        classification = SigmoidFocalClassification(config.num_labels, config.focal_alpha)
        self.model = ConditionalDetrModel(config)
        self.class_labels_classifier = make_class_head(config.d_model, classification)
        self.bbox_predictor = make_box_head(config.d_model, size_bias=0.0)
        self.criterion = make_criterion(config, classification, config.cls_loss_coefficient)
        self.post_init()

    def predict(
        self, layer_states: Tensor, reference_points: tuple[Tensor, ...]
    ) -> tuple[Tensor, Tensor]:
        deltas = self.bbox_predictor(layer_states)
        boxes = boxes_from_deltas(deltas, torch.stack(reference_points))
        return self.class_labels_classifier(layer_states), boxes


class ConditionalDetrForSegmentation(Segmenter):
    """Conditional DETR and a mask for each of its objects, things and stuff alike."""

    # Deviation: transformers, whose files these are, leaves the reference points out of the boxes,
    # and matches and scores by softmax what the focal loss trains as sigmoids.
    config_class = ConditionalDetrConfig
    _checkpoint_conversion_mapping = ADAPTER_NAMES
    base_model_prefix = "conditional_detr"
    detector_class = ConditionalDetrForObjectDetection
