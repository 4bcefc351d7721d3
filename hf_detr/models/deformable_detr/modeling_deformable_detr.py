"""Deformable DETR: Deformable Transformers for End-to-End Object Detection (arXiv 2010.04159).

Attention looks at a few sampled points around a reference point instead of at all pixels, so it
can afford several feature levels. Optionally each decoder layer refines the boxes of the one
before ("iterative bounding box refinement"), and the queries start from proposals of the encoder
("two-stage"). Classes are sigmoids without "no object".
"""

import copy
import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from ...layers.attention import MultiHeadAttention
from ...layers.deformable_attention import (
    MultiScaleDeformableAttention,
    MultiScaleDeformableSelfAttention,
    SamplingPoints,
    scale_to_levels,
)
from ...layers.feature_pyramid import FeaturePyramid, token_centers
from ...layers.initial_weights import draw_xavier, output_projection, starting, xavier_linear
from ...layers.position_encoding import encode_points, make_position_encoding, sines
from ...layers.transformer import TransformerLayer
from ...losses.classification import SigmoidFocalClassification
from ...losses.criterion import make_criterion
from ...ops.box_ops import boxes_from_deltas, points_from_logits
from ..detection_transformer import DetectionTransformer
from ..heads import make_box_head, make_class_head, resize_class_head
from ..object_detector import ObjectDetector
from ..outputs import DecoderOutput
from ..segmentation import NUM_MAPS, Segmenter
from ..training_queries import Queries, TrainingQueries
from .configuration_deformable_detr import DeformableDetrConfig


class DeformableDetrDecoderLayer(TransformerLayer):
    """Queries attend to each other, then to points of the memory, then pass a feed-forward network.

    Args:
        config: widths, levels, points, activation and dropout.
    """

    def __init__(self, config: DeformableDetrConfig) -> None:
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
            scale_to_levels(reference_points, pyramid),
            pyramid.spatial_shapes,
            pyramid.level_start_index,
            return_weights,
        )
        hidden_states = self.add_and_norm(hidden_states, attended, self.encoder_attn_layer_norm)
        return self.feed_forward(hidden_states), weights, sampling_points


class DeformableDetrDecoder(nn.Module):
    """A stack of decoder layers; it owns the heads that it needs itself.

    Args:
        config: depth, whether boxes are refined and proposals made, and what the layers need.
    """

    def __init__(self, config: DeformableDetrConfig) -> None:
        super().__init__()
        self.layers = nn.ModuleList(
            DeformableDetrDecoderLayer(config) for _ in range(config.decoder_layers)
        )
        self.bbox_embed = make_box_heads(config) if config.with_box_refine else None
        self.class_embed = make_class_heads(config) if config.two_stage else None

    def forward(
        self,
        queries: Queries,
        memory: Tensor,
        pyramid: FeaturePyramid,
        output_hidden_states: bool,
        output_attentions: bool,
        **proposals: Tensor,
    ) -> DecoderOutput:
        """Decode queries (B, Q, D), their positions and references, with memory (B, S, D)."""
        hidden_states, reference_points = queries.contents, queries.reference_points
        trace, references = [(hidden_states, None, None)], []
        for index, layer in enumerate(self.layers):
            references.append(reference_points)
            hidden_states, weights, sampling_points = layer(
                hidden_states,
                queries.positions,
                reference_points,
                memory,
                pyramid,
                queries.mask,
                output_attentions,
            )
            trace.append((hidden_states, weights, sampling_points))
            if self.bbox_embed is not None:
                # Each layer learns its own step only: references carry no gradient.
                deltas = self.bbox_embed[index](hidden_states)
                reference_points = boxes_from_deltas(deltas, reference_points).detach()
        return DecoderOutput.from_trace(
            trace,
            norm=nn.Identity(),
            output_hidden_states=output_hidden_states,
            output_attentions=output_attentions,
            reference_points=tuple(references),
            **proposals,
        )


class DeformableDetrModel(DetectionTransformer):
    """Deformable DETR without final heads: from pixels to the states of the object queries."""

    config_class = DeformableDetrConfig
    _no_split_modules = ["Backbone", "EncoderLayer", "DeformableDetrDecoderLayer"]
    needs_corner = True  # as the ratios of `FeaturePyramid`

    def __init__(self, config: DeformableDetrConfig) -> None:
        super().__init__(config)
        width = config.d_model
        self.input_proj = make_projections(
            self.backbone.num_channels[config.num_mask_levels :], config
        )
        self.level_embed = nn.Parameter(torch.empty(config.num_feature_levels, width))
        self.decoder = DeformableDetrDecoder(config)
        if config.two_stage:
            self.enc_output = xavier_linear(width, width)
            self.enc_output_norm = nn.LayerNorm(width)
            self.pos_trans = xavier_linear(2 * width, 2 * width)
            self.pos_trans_norm = nn.LayerNorm(2 * width)
        else:
            self.query_position_embeddings = nn.Embedding(config.num_queries, 2 * width)
            self.reference_points = output_projection(width, 2)
        self.post_init()

    def reset_parameters(self) -> None:
        """The level embeddings; every other weight belongs to a module of its own."""
        nn.init.normal_(self.level_embed)

    @staticmethod
    def make_position_encoding(config: DeformableDetrConfig) -> nn.Module:
        kind, width = config.position_embedding_type, config.d_model
        return make_position_encoding(kind, width, offset=-0.5)

    @staticmethod
    def make_encoder_attention(config: DeformableDetrConfig) -> MultiScaleDeformableSelfAttention:
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

    def decode(
        self,
        memory: Tensor,
        position_embeddings: Tensor,
        pyramid: FeaturePyramid,
        training_queries: TrainingQueries | None,
        output_hidden_states: bool,
        output_attentions: bool,
    ) -> DecoderOutput:
        proposals = {}
        if self.config.two_stage:
            class_logits, box_logits = self.propose(memory, pyramid)
            queries = self.queries_from(class_logits, box_logits)
            proposals = {
                "enc_outputs_class": class_logits,
                "enc_outputs_coord_logits": box_logits,
            }
        else:
            queries = self.prepare_queries(self.query_embeddings(memory))
        if training_queries is not None:
            queries = training_queries.join(queries)
        asked_for = (output_hidden_states, output_attentions)
        return self.decoder(queries, memory, pyramid, *asked_for, **proposals)

    def prepare_queries(self, embeddings: Tensor) -> Queries:
        positions, contents = embeddings.chunk(2, dim=-1)  # (B, Q, D) each
        reference_points = points_from_logits(self.reference_points(positions))
        return Queries(contents, positions, reference_points)

    @property
    def num_queries(self) -> int:
        config = self.config
        return config.two_stage_num_proposals if config.two_stage else config.num_queries

    def propose(self, memory: Tensor, pyramid: FeaturePyramid) -> tuple[Tensor, Tensor]:
        """Class logits (B, S, C) and box logits (B, S, 4) of every token (paper, appendix A.4).

        Boxes start at the token's centre with a size that doubles from level to level; tokens at
        the very border or on padding propose nothing, their boxes are infinite.
        """
        centers = token_centers(pyramid)  # (B, S, 2)
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
        anchor_logits = anchors.clamp(0.01, 0.99).logit().masked_fill(~valid, torch.inf)
        tokens = self.enc_output_norm(self.enc_output(memory.masked_fill(~valid, 0)))
        box_logits = self.decoder.bbox_embed[-1](tokens) + anchor_logits  # at least float32
        return self.decoder.class_embed[-1](tokens), box_logits

    def queries_from(self, class_logits: Tensor, box_logits: Tensor) -> Queries:
        """Queries (B, Q, D) with references (B, Q, 4) from the best proposals.

        Proposals are ranked by the logit of class 0, which is trained as "some object".
        """
        num_queries = min(self.config.two_stage_num_proposals, class_logits.shape[1])
        best = class_logits[..., 0].topk(num_queries, dim=1).indices
        best = best[..., None].expand(-1, -1, 4)
        reference_points = points_from_logits(box_logits.detach().gather(1, best))
        angles = reference_points.float() * (2 * math.pi)
        encoding = sines(angles, self.config.d_model // 2).flatten(-2)  # (B, Q, 2D)
        embeddings = self.pos_trans_norm(self.pos_trans(encoding.to(class_logits.dtype)))
        positions, contents = embeddings.chunk(2, dim=-1)
        return Queries(contents, positions, reference_points)


class DeformableDetrForObjectDetection(ObjectDetector):
    """Deformable DETR with its heads: from pixels to classes, boxes and loss."""

    config_class = DeformableDetrConfig

    def __init__(self, config: DeformableDetrConfig) -> None:
        super().__init__(config)
        classification = SigmoidFocalClassification(config.num_labels, config.focal_alpha)
        self.model = DeformableDetrModel(config)
        decoder = self.model.decoder
        self.class_embed = decoder.class_embed or make_class_heads(config)
        self.bbox_embed = decoder.bbox_embed or make_box_heads(config)
        self.criterion = make_criterion(config, classification, config.cls_loss_coefficient)
        self._tied_weights_keys = tied_heads(config)
        self.post_init()

    def mark_tied_weights_as_initialized(self, loading_info: Any) -> None:
        """As in the base class; class heads that a file lacks are copies of its first one.

        Deviation: transformers has one class head for all layers even if each refines the boxes,
        and writes that one. Here, as in the paper, layers that refine learn heads of their own.
        """
        if self.config.with_box_refine and not self.config.two_stage:
            lost = set(loading_info.missing_and_mismatched())
            heads = [
                {f"class_embed.{layer}.{name}" for name in head.state_dict()}
                for layer, head in enumerate(self.class_embed)
            ]
            if not heads[0] & lost and all(names <= lost for names in heads[1:]):
                self._copy_first_class_head()
                loading_info.missing_keys -= set().union(*heads[1:])
        super().mark_tied_weights_as_initialized(loading_info)

    def _copy_first_class_head(self) -> None:
        for layer in range(1, len(self.class_embed)):
            self.class_embed[layer] = copy.deepcopy(self.class_embed[0])
            for weight in self.class_embed[layer].parameters():
                weight._is_hf_initialized = True  # which deepcopy doesn't copy

    def class_heads(self) -> list[nn.Linear]:
        return super().class_heads()[: self.config.decoder_layers]  # not the proposals'

    def resize_classes(self, id2label: dict[int, str]) -> list[str]:
        """As in the base class; proposals are still scored by class 0, which is any object."""
        kept = super().resize_classes(id2label)
        if self.config.two_stage:
            proposals = self.class_embed[-1]
            last = proposals.out_features - 1
            resize_class_head(proposals, [[min(label, last)] for label in sorted(id2label)])
        return kept

    def predict(
        self, layer_states: Tensor, reference_points: tuple[Tensor, ...]
    ) -> tuple[Tensor, Tensor]:
        layers = range(self.config.decoder_layers)[-len(reference_points) :]
        logits, boxes = [], []
        for index, states, reference in zip(layers, layer_states, reference_points, strict=True):
            logits.append(self.class_embed[index](states))
            boxes.append(boxes_from_deltas(self.bbox_embed[index](states), reference))
        return torch.stack(logits), torch.stack(boxes)


def make_projections(num_channels: list[int], config: DeformableDetrConfig) -> nn.ModuleList:
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


def make_class_heads(config: DeformableDetrConfig) -> nn.ModuleList:
    """One class head per decoder layer, shared unless boxes are refined, and the proposals'."""
    classification = SigmoidFocalClassification(config.num_labels, config.focal_alpha)
    return make_heads(lambda _: make_class_head(config.d_model, classification), config)


def make_box_heads(config: DeformableDetrConfig) -> nn.ModuleList:
    """One box head per decoder layer, shared unless boxes are refined, and the proposals'."""
    # Boxes start small; refined ones start where the layer before left them.
    first = 0.0 if config.two_stage else -2.0
    return make_heads(lambda index: make_box_head(config.d_model, 0.0 if index else first), config)


def make_heads(
    make_head: Callable[[int], nn.Module], config: DeformableDetrConfig
) -> nn.ModuleList:
    """Heads by index; the first one in the place of all unless boxes are refined."""
    heads = [make_head(index) for index in range(config.decoder_layers + config.two_stage)]
    return nn.ModuleList(heads if config.with_box_refine else heads[:1] * len(heads))


def tied_heads(config: DeformableDetrConfig) -> dict[str, str]:
    """Names on disk that hold the same weights: {regular expression: name that is saved}."""
    if config.decoder_layers == 1 and not config.with_box_refine:
        return {}
    if not config.with_box_refine:
        return {
            r"bbox_embed.(?![0])\d+": "bbox_embed.0",
            r"class_embed.(?![0])\d+": "class_embed.0",
        }
    tied = {"bbox_embed": "model.decoder.bbox_embed"}
    if config.two_stage:
        tied["class_embed"] = "model.decoder.class_embed"
    return tied


class DeformableDetrForSegmentation(Segmenter):
    """Deformable DETR and a mask for each of its objects; hf_detr's alone, no paper's.

    Neither the official code nor transformers has such a model, so its files need hf_detr. Each
    query's attention maps are on the encoded level that the backbone's last map became; the mask
    head then goes on to finer maps of the backbone as DETR's does. `config.num_mask_levels` of
    those the detector doesn't read. Neither queries nor memory contain their position, because
    boxes are relative to references and attention to samples, so sines of positions are added.
    """

    config_class = DeformableDetrConfig
    base_model_prefix = "deformable_detr"
    detector_class = DeformableDetrForObjectDetection

    def __init__(self, config: DeformableDetrConfig) -> None:
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


def with_mask_levels(config: DeformableDetrConfig) -> DeformableDetrConfig:
    """The configuration, with as many finer maps of the backbone as the mask head needs."""
    levels = config.backbone_config.out_indices
    missing = NUM_MAPS - len(levels)
    if missing <= 0:
        return config
    config = copy.deepcopy(config)
    config.num_mask_levels += missing
    config.backbone_config.out_indices = [*range(levels[0] - missing, levels[0]), *levels]
    return config
