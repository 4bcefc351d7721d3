"""DINO: DETR with Improved DeNoising Anchor Boxes (arXiv 2203.03605).

Queries start at the encoder's best proposals, but what they contain is learned ("mixed query
selection"). Each decoder layer refines their boxes, and the loss of a layer's boxes also reaches
the layer before ("look forward twice"). Classes are sigmoids without "no object".
"""

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor, nn

from ...layers.feature_pyramid import FeaturePyramid
from ...layers.initial_weights import draw_xavier_weight, starting, xavier_linear
from ...layers.onednn import linear
from ...layers.position_encoding import encode_points, make_position_encoding
from ...losses.classification import SigmoidFocalClassification
from ...losses.criterion import make_criterion
from ...ops.box_ops import boxes_from_deltas, points_from_logits
from ..denoising import Denoising
from ..detection_transformer import Labels, given
from ..heads import MLP, make_box_head, make_class_head
from ..object_detector import ObjectDetector
from ..outputs import DecoderOutput
from ..sampled_attention import (
    SampledAttentionModel,
    SampledAttentionSegmenter,
    SampledDecoderLayer,
    anchor_boxes,
    without_proposals,
)
from ..training_queries import Queries, QueryGroups, TrainingQueries
from .configuration_dino import DinoDetrConfig

# References are kept this far from 0 and 1 before their logit is taken; in other papers 1e-5.
EPS = 1e-3


class DinoDetrProposals(nn.Module):
    """Classes and boxes that the encoder proposes, by heads of its own.

    Args:
        config: width and classes.
    """

    def __init__(self, config: DinoDetrConfig) -> None:
        super().__init__()
        self.enc_output = xavier_linear(config.d_model, config.d_model)
        self.enc_output_norm = nn.LayerNorm(config.d_model)
        self.class_embed = make_class_head(config.d_model, make_classification(config))
        self.bbox_embed = make_box_head(config.d_model, size_bias=0.0)

    def forward(
        self, memory: Tensor, pyramid: FeaturePyramid, num_queries: int
    ) -> tuple[Tensor, Tensor]:
        """Class logits (B, Q, C) and box logits (B, Q, 4) of the best tokens, the best one first.

        Tokens of a memory (B, S, D) are ranked by the logit of their most probable class; Q is S if
        that is less.
        """
        anchor_logits, valid = anchor_boxes(pyramid)
        tokens = self.enc_output_norm(linear(self.enc_output, memory.masked_fill(~valid, 0)))
        class_logits = without_proposals(linear(self.class_embed, tokens), valid)
        num_queries = min(num_queries, class_logits.shape[1])
        best = class_logits.amax(-1).topk(num_queries, dim=1).indices[..., None]  # (B, Q, 1)
        tokens = tokens.gather(1, best.expand(-1, -1, tokens.shape[-1]))
        class_logits = class_logits.gather(1, best.expand(-1, -1, class_logits.shape[-1]))
        # At least float32, as the anchors are.
        box_logits = self.bbox_embed(tokens) + anchor_logits.gather(1, best.expand(-1, -1, 4))
        return class_logits, box_logits


class DinoDetrDecoder(nn.Module):
    """A stack of decoder layers and their box heads, by which each layer refines the boxes.

    Args:
        config: depth and what the layers need.
    """

    def __init__(self, config: DinoDetrConfig) -> None:
        super().__init__()
        width = config.d_model
        self.layers = nn.ModuleList(
            SampledDecoderLayer(config) for _ in range(config.decoder_layers)
        )
        self.layernorm = nn.LayerNorm(width)
        self.ref_point_head = MLP(2 * width, width, width, num_layers=2, make_linear=xavier_linear)
        self.bbox_embed = make_heads(partial(make_box_head, width, size_bias=0.0), config)

    def forward(
        self,
        queries: Queries,
        memory: Tensor,
        pyramid: FeaturePyramid,
        output_hidden_states: bool,
        output_attentions: bool,
        **proposals: Tensor,
    ) -> DecoderOutput:
        """Decode queries (B, Q, D) at boxes (B, Q, 4), with memory (B, S, D)."""
        hidden_states, refined = queries.contents, queries.reference_points
        trace, references, undetached = [(hidden_states, None, None)], [], []
        for layer, box_head in zip(self.layers, self.box_heads(), strict=True):
            # A layer starts from the boxes of the one before, through which no gradient flows.
            reference_points = refined.detach()
            references.append(reference_points)
            undetached.append(refined)
            boxes = pyramid.scale_to_levels(reference_points)[:, :, 0]
            sines = encode_points(boxes, hidden_states.shape[-1])  # (B, Q, 2D)
            hidden_states, weights, sampling_points = layer(
                hidden_states,
                self.ref_point_head(sines.to(hidden_states.dtype)),
                reference_points,
                memory,
                pyramid,
                queries.mask,
                output_attentions,
            )
            trace.append((hidden_states, weights, sampling_points))
            refined = boxes_from_deltas(box_head(hidden_states), reference_points, EPS)
        return DecoderOutput.from_trace(
            trace,
            norm=self.layernorm,
            output_hidden_states=output_hidden_states,
            output_attentions=output_attentions,
            reference_points=tuple(references),
            undetached_reference_points=tuple(undetached),
            **proposals,
        )

    def box_heads(self) -> list[nn.Module]:
        """The box head of each layer."""
        if isinstance(self.bbox_embed, nn.ModuleList):
            return list(self.bbox_embed)
        return [self.bbox_embed] * len(self.layers)


class DinoDetrModel(SampledAttentionModel):
    """DINO without final heads: from pixels to the states of the object queries."""

    config_class = DinoDetrConfig
    _keys_to_ignore_on_save: list[str] = []  # files have the embeddings of denoising's labels
    query_table = "query_contents"
    needs_query_positions = False

    def __init__(self, config: DinoDetrConfig) -> None:
        super().__init__(config)
        self.proposals = DinoDetrProposals(config)
        table = nn.Embedding(config.num_queries, config.d_model)
        self.query_contents = starting(table, draw_xavier_weight)
        self.decoder = DinoDetrDecoder(config)
        self.denoising = self.make_denoising(config.num_denoising_queries, None, None)
        self.post_init()

    @staticmethod
    def make_position_encoding(config: DinoDetrConfig) -> nn.Module:
        kind, width = config.position_embedding_type, config.d_model
        return make_position_encoding(
            kind, width, config.position_offset, config.position_temperature
        )

    def make_query_groups(self, num_groups: int) -> QueryGroups:
        raise ValueError(
            "DINO can't have query groups, because all of its queries start from proposals of the "
            "encoder; it has denoising queries instead."
        )

    def make_denoising(
        self,
        num_denoising_queries: int,
        label_noise_ratio: float | None,
        box_noise_scale: float | None,
    ) -> Denoising | None:
        config = self.config
        label_noise_ratio = given(label_noise_ratio, config.label_noise_ratio)
        box_noise_scale = given(box_noise_scale, config.box_noise_scale)
        denoising = super().make_denoising(
            num_denoising_queries, label_noise_ratio, box_noise_scale
        )
        config.num_denoising_queries = num_denoising_queries
        config.label_noise_ratio, config.box_noise_scale = label_noise_ratio, box_noise_scale
        if denoising is not None and self.denoising is not None:
            denoising.label_embeddings = self.denoising.label_embeddings  # which have been trained
        return denoising

    def decode(
        self,
        memory: Tensor,
        position_embeddings: Tensor,
        pyramid: FeaturePyramid,
        training_queries: TrainingQueries | None,
        output_hidden_states: bool,
        output_attentions: bool,
    ) -> DecoderOutput:
        class_logits, box_logits = self.proposals(memory, pyramid, self.num_queries)
        queries = self.queries_at(box_logits, memory)
        if training_queries is not None:
            queries = training_queries.join(queries)
        return self.decoder(
            queries,
            memory,
            pyramid,
            output_hidden_states,
            output_attentions,
            enc_outputs_class=class_logits,
            enc_outputs_coord_logits=box_logits,
        )

    def queries_at(self, box_logits: Tensor, memory: Tensor) -> Queries:
        """Queries with learned contents (B, Q, D) at proposals, of box logits (B, Q, 4)."""
        contents = self.query_embeddings(memory)[:, : box_logits.shape[1]]
        return Queries(contents, reference_points=points_from_logits(box_logits.detach()))


class DinoDetrForObjectDetection(ObjectDetector):
    """DINO with its heads: from pixels to classes, boxes and loss."""

    config_class = DinoDetrConfig

    def __init__(self, config: DinoDetrConfig) -> None:
        super().__init__(config)
        classification = make_classification(config)
        self.model = DinoDetrModel(config)
        make_head = partial(make_class_head, config.d_model, classification)
        self.class_embed = make_heads(make_head, config)
        self.criterion = make_criterion(config, classification, config.cls_loss_coefficient)
        self.post_init()

    def predict(
        self, layer_states: Tensor, reference_points: tuple[Tensor, ...]
    ) -> tuple[Tensor, Tensor]:
        deltas = apply_heads(self.model.decoder.bbox_embed, layer_states)
        boxes = boxes_from_deltas(deltas, torch.stack(reference_points), EPS)
        return apply_heads(self.class_embed, layer_states), boxes

    def proposal_labels(self, labels: Labels) -> Labels:
        return labels


def make_heads(make_head: Callable[[], nn.Module], config: DinoDetrConfig) -> nn.Module:
    """The head that all decoder layers share, or a list of one per layer."""
    if config.shared_heads:
        return make_head()
    return nn.ModuleList(make_head() for _ in range(config.decoder_layers))


def apply_heads(heads: nn.Module, layer_states: Tensor) -> Tensor:
    """What heads of `make_heads` read off the states (N, B, Q, D) of the last N layers."""
    if not isinstance(heads, nn.ModuleList):
        return heads(layer_states)
    last = list(heads)[-len(layer_states) :]
    pairs = zip(last, layer_states, strict=True)
    return torch.stack([head(states) for head, states in pairs])


def make_classification(config: DinoDetrConfig) -> SigmoidFocalClassification:
    """The classification of proposals and of the decoder's layers."""
    return SigmoidFocalClassification(config.num_labels, config.focal_alpha)


class DinoDetrForSegmentation(SampledAttentionSegmenter):
    """DINO and a mask for each of its objects; hf_detr's alone, no paper's.

    Mask DINO (arXiv 2206.02777) is another model, with a mask head of its own.
    """

    config_class = DinoDetrConfig
    base_model_prefix = "dino_detr"
    detector_class = DinoDetrForObjectDetection
