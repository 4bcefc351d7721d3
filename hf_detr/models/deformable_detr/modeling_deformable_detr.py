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

from ...layers.feature_pyramid import FeaturePyramid
from ...layers.initial_weights import output_projection, xavier_linear
from ...layers.onednn import linear
from ...layers.position_encoding import make_position_encoding, sines
from ...losses.classification import SigmoidFocalClassification
from ...losses.criterion import make_criterion
from ...ops.box_ops import boxes_from_deltas, points_from_logits
from ..heads import make_box_head, make_class_head, resize_class_head
from ..object_detector import ObjectDetector
from ..outputs import DecoderOutput
from ..sampled_attention import (
    SampledAttentionModel,
    SampledAttentionSegmenter,
    SampledDecoderLayer,
    anchor_boxes,
    without_proposals,
)
from ..training_queries import Queries, TrainingQueries
from .configuration_deformable_detr import DeformableDetrConfig


class DeformableDetrDecoder(nn.Module):
    """A stack of decoder layers; it owns the heads that it needs itself.

    Args:
        config: depth, whether boxes are refined and proposals made, and what the layers need.
    """

    def __init__(self, config: DeformableDetrConfig) -> None:
        super().__init__()
        self.layers = nn.ModuleList(
            SampledDecoderLayer(config) for _ in range(config.decoder_layers)
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


class DeformableDetrModel(SampledAttentionModel):
    """Deformable DETR without final heads: from pixels to the states of the object queries."""

    config_class = DeformableDetrConfig

    def __init__(self, config: DeformableDetrConfig) -> None:
        super().__init__(config)
        width = config.d_model
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

    @staticmethod
    def make_position_encoding(config: DeformableDetrConfig) -> nn.Module:
        kind, width = config.position_embedding_type, config.d_model
        return make_position_encoding(kind, width, offset=-0.5)

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

    def propose(self, memory: Tensor, pyramid: FeaturePyramid) -> tuple[Tensor, Tensor]:
        """Class logits (B, S, C) and box logits (B, S, 4) of every token (paper, appendix A.4)."""
        anchor_logits, valid = anchor_boxes(pyramid)
        tokens = self.enc_output_norm(linear(self.enc_output, memory.masked_fill(~valid, 0)))
        box_logits = self.decoder.bbox_embed[-1](tokens) + anchor_logits  # at least float32
        class_logits = linear(self.decoder.class_embed[-1], tokens)
        return without_proposals(class_logits, valid), box_logits

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


class DeformableDetrForSegmentation(SampledAttentionSegmenter):
    """Deformable DETR and a mask for each of its objects; hf_detr's alone, no paper's.

    Neither the official code nor transformers has such a model, so its files need hf_detr.
    """

    config_class = DeformableDetrConfig
    base_model_prefix = "deformable_detr"
    detector_class = DeformableDetrForObjectDetection
