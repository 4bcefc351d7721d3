"""What detectors share whose attention samples points of several feature levels (arXiv 2010.04159).

Their decoder layer, levels, anchors of the encoder's proposals, and masks. How queries are made and
what their boxes are relative to is the variants' own.
"""

import copy

import torch
from torch import Tensor, nn
from transformers import PreTrainedConfig

from ..layers.attention import MultiHeadAttention
from ..layers.deformable_attention import (
    MultiScaleDeformableAttention,
    MultiScaleDeformableSelfAttention,
    SamplingPoints,
)
from ..layers.feature_pyramid import FeaturePyramid
from ..layers.initial_weights import draw_xavier, starting
from ..layers.position_encoding import encode_points
from ..layers.transformer import TransformerLayer
from ..ops.box_ops import inverse_sigmoid
from .configuration_sampled_attention import SampledAttentionConfig
from .detection_transformer import DetectionTransformer
from .segmentation import NUM_MAPS, Segmenter

# A class logit that is lower than any trained one, with a probability of 0 in every precision.
NO_OBJECT = -1e4


class SampledDecoderLayer(TransformerLayer):
    """Queries attend to each other, then to points of the memory, then pass a feed-forward network.

    Args:
        config: widths, levels, points, activation and dropout.
    """

    def __init__(self, config: SampledAttentionConfig) -> None:
        super().__init__(config, config.decoder_ffn_dim)
        width, num_heads = config.d_model, config.decoder_attention_heads
        self.self_attn = MultiHeadAttention(width, num_heads, config.attention_dropout)
        self.self_attn_layer_norm = nn.LayerNorm(width)
        self.encoder_attn = MultiScaleDeformableAttention(
            width, num_heads, config.num_feature_levels, config.decoder_n_points, config.kernel
        )
        self.encoder_attn_layer_norm = nn.LayerNorm(width)

    def forward(
        self,
        hidden_states: Tensor,
        query_position_embeddings: Tensor,
        reference_points: Tensor,
        memory: Tensor,
        pyramid: FeaturePyramid,
        mask: Tensor | None,
        return_weights: bool,
    ) -> tuple[Tensor, Tensor | None, SamplingPoints | None]:
        """Transform queries (B, Q, D) that refer to points (B, Q, 2) or boxes (B, Q, 4).

        The mask (B or 1, Q, Q) is that of self-attention, or None.

        Returns:
            Queries (B, Q, D), and if asked for the weights of self-attention and the sampling
            points of cross-attention.
        """
        query = hidden_states + query_position_embeddings
        attended, weights = self.self_attn(query, query, hidden_states, mask, return_weights)
        hidden_states = self.add_and_norm(hidden_states, attended, self.self_attn_layer_norm)
        attended, sampling_points = self.encoder_attn(
            hidden_states + query_position_embeddings,
            memory,
            pyramid.mask,
            pyramid.scale_to_levels(reference_points),
            pyramid.spatial_shapes,
            pyramid.level_start_index,
            return_weights,
        )
        hidden_states = self.add_and_norm(hidden_states, attended, self.encoder_attn_layer_norm)
        return self.feed_forward(hidden_states), weights, sampling_points


class SampledAttentionModel(DetectionTransformer):
    """Several feature levels and an encoder that samples them; subclasses add queries and decoder.

    Args:
        config: configuration of the variant.
    """

    _no_split_modules = ["Backbone", "EncoderLayer", "SampledDecoderLayer"]
    samples_points = True

    def __init__(self, config: SampledAttentionConfig) -> None:
        super().__init__(config)
        self.input_proj = make_projections(
            self.backbone.num_channels[config.num_mask_levels :], config
        )
        self.level_embed = nn.Parameter(torch.empty(config.num_feature_levels, config.d_model))

    def reset_parameters(self) -> None:
        """The level embeddings; every other weight belongs to a module of its own."""
        nn.init.normal_(self.level_embed)

    @staticmethod
    def make_encoder_attention(config: SampledAttentionConfig) -> MultiScaleDeformableSelfAttention:
        return MultiScaleDeformableSelfAttention(
            config.d_model,
            config.encoder_attention_heads,
            config.num_feature_levels,
            config.encoder_n_points,
            config.kernel,
        )

    def project(self, feature_maps: list[Tensor]) -> list[Tensor]:
        feature_maps = feature_maps[self.config.num_mask_levels :]
        levels = [
            projection(feature_map)
            for projection, feature_map in zip(self.input_proj, feature_maps, strict=False)
        ]
        # Further levels: the first from the backbone's last map, each other from the one before.
        coarsest = feature_maps[-1]
        for projection in self.input_proj[len(feature_maps) :]:
            coarsest = projection(coarsest)
            levels.append(coarsest)
        return levels


def make_projections(num_channels: list[int], config: SampledAttentionConfig) -> nn.ModuleList:
    """1x1 convolutions for the backbone's maps, strided 3x3 ones for further levels."""
    width = config.d_model
    convolutions = [nn.Conv2d(channels, width, kernel_size=1) for channels in num_channels]
    channels = num_channels[-1]
    for _ in range(config.num_feature_levels - len(num_channels)):
        convolutions.append(nn.Conv2d(channels, width, kernel_size=3, stride=2, padding=1))
        channels = width
    return nn.ModuleList(
        nn.Sequential(starting(conv, draw_xavier), nn.GroupNorm(32, width)) for conv in convolutions
    )


def anchor_boxes(pyramid: FeaturePyramid) -> tuple[Tensor, Tensor]:
    """Where the proposals of the encoder's tokens start (arXiv 2010.04159, appendix A.4).

    A box is at the token's centre, with a size that doubles from level to level; tokens at the very
    border or on padding propose nothing, their boxes are infinite.

    Returns:
        Logits (B, S, 4) of boxes (cx, cy, w, h), and whether a token proposes one, (B, S, 1).
    """
    centers = pyramid.token_centers  # (B, S, 2)
    sizes = [
        centers.new_full((height * width,), 0.05 * 2**level)
        for level, (height, width) in enumerate(pyramid.spatial_shapes)
    ]
    sizes = torch.cat(sizes)[None, :, None].expand_as(centers)
    anchors = torch.cat([centers, sizes], dim=-1)
    valid = ((anchors > 0.01) & (anchors < 0.99)).all(-1, keepdim=True)
    if pyramid.mask is not None:
        valid = valid & pyramid.mask[..., None]
    # Clamped first: beyond 1 the logit is NaN, whose gradient would survive the filling.
    return inverse_sigmoid(anchors.clamp(0.01, 0.99)).masked_fill(~valid, torch.inf), valid


def without_proposals(class_logits: Tensor, valid: Tensor) -> Tensor:
    """Give tokens (B, S, C) that propose nothing, where `valid` (B, S, 1) is False, no object.

    Deviation: in the original code they keep the logits of an empty token. If a model has seen
    little padding, these may be high: then they take queries of other images' objects and, as
    negatives of the loss, outweigh all other tokens' gradients.
    """
    return class_logits.masked_fill(~valid, NO_OBJECT)


class SampledAttentionSegmenter(Segmenter):
    """A detector of several levels and a mask for each of its objects; no paper's.

    Each query's attention maps are on the encoded level that the backbone's last map became; the
    mask head then goes on to finer maps of the backbone. `config.num_mask_levels` of those the
    detector doesn't read. Neither queries nor memory contain their position, because boxes are
    relative to references and attention to samples, so sines of positions are added.

    Args:
        config: configuration of the variant.
    """

    def __init__(self, config: PreTrainedConfig) -> None:
        super().__init__(with_mask_levels(config))

    @property
    def mask_level(self) -> int:
        num_maps = len(self.detection_transformer.backbone.num_channels)
        return num_maps - self.config.num_mask_levels - 1

    def attention_inputs(
        self, queries: Tensor, memory: Tensor, pred_boxes: Tensor, centers: Tensor
    ) -> tuple[Tensor, Tensor]:
        width = self.config.d_model
        places = encode_points(pred_boxes[..., :2].detach(), width).to(queries.dtype)
        return queries + places, memory + encode_points(centers, width).to(memory.dtype)


def with_mask_levels(config: SampledAttentionConfig) -> SampledAttentionConfig:
    """The configuration, with as many finer maps of the backbone as the mask head needs."""
    levels = config.backbone_config.out_indices
    missing = NUM_MAPS - len(levels)
    if missing <= 0:
        return config
    config = copy.deepcopy(config)
    config.num_mask_levels += missing
    config.backbone_config.out_indices = [*range(levels[0] - missing, levels[0]), *levels]
    return config
