"""What passes between the stages of a detector, and what its forward returns."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers.utils import ModelOutput

from .feature_pyramid import FeaturePyramid


@dataclass(frozen=True)
class DecoderOutput:
    """What a decoder leaves, layer by layer.

    Attributes:
        layer_states: (N, B, Q, D), the states that the heads read, one per layer.
        reference_points: per layer (B, Q, 2) as (x, y) or (B, Q, 4) as (cx, cy, w, h) in [0, 1],
            the reference that the layer starts from and its box is relative to; None where boxes
            are absolute.
        hidden_states: input of the first layer and output of every layer, or None.
        attentions: self-attention weights of every layer, (B, M, Q, Q) each, or None.
        cross_attentions: weights over the memory of every layer, or None.
        enc_outputs_class: class logits (B, S, C') of every token as a proposal, or None.
        enc_outputs_coord_logits: boxes of the proposals before the sigmoid, (B, S, 4), or None.
    """

    layer_states: Tensor
    reference_points: tuple[Tensor, ...] | None = None
    hidden_states: tuple[Tensor, ...] | None = None
    attentions: tuple[Tensor, ...] | None = None
    cross_attentions: tuple[Tensor, ...] | None = None
    enc_outputs_class: Tensor | None = None
    enc_outputs_coord_logits: Tensor | None = None

    @classmethod
    def from_trace(
        cls,
        trace: list[tuple[Tensor, Tensor | None, Tensor | None]],
        norm: nn.Module,
        output_hidden_states: bool,
        output_attentions: bool,
        **others: Any,
    ) -> "DecoderOutput":
        """Sort what a decoder's loop has gathered.

        Args:
            trace: the first layer's input, then every layer's output: states (B, Q, D), weights
                of self-attention and of cross-attention.
            norm: for the copies that the heads read; the next layer gets the raw state.
            output_hidden_states, output_attentions: what was asked for.
            **others: further attributes, as they are.
        """
        states, weights, cross_weights = zip(*trace, strict=True)
        return cls(
            # Layers may lie on several devices.
            layer_states=norm(torch.stack([state.to(states[-1].device) for state in states[1:]])),
            hidden_states=states if output_hidden_states else None,
            attentions=weights[1:] if output_attentions else None,
            cross_attentions=cross_weights[1:] if output_attentions else None,
            **others,
        )


@dataclass
class DetectionModelOutput(ModelOutput):
    """States of encoder and decoder; entries that weren't asked for are None.

    Attributes:
        last_hidden_state: (B, Q, D), what the heads read.
        intermediate_hidden_states: (N, B, Q, D), the same for every decoder layer.
        reference_points: per decoder layer (B, Q, 2) as (x, y) or (B, Q, 4) as (cx, cy, w, h) in
            [0, 1], what its boxes are relative to, where the variant has them.
        decoder_hidden_states: input of the decoder and output of each layer, (B, Q, D) each.
        decoder_attentions: (B, M, Q, Q) per layer.
        cross_attentions: (B, M, Q, S) per layer.
        encoder_last_hidden_state: (B, S, D).
        encoder_hidden_states: input of the encoder and output of each layer, (B, S, D) each.
        encoder_attentions: (B, M, S, S) per layer.
        encoder_sampling_locations, decoder_sampling_locations: where deformable attention looked,
            (B, Q, M, L, K, 2) per layer as (x, y) in [0, 1]; its attentions are (B, Q, M, L, K).
        enc_outputs_class: two stages: class logits (B, S, C') of every token as a proposal.
        enc_outputs_coord_logits: two stages: their boxes before the sigmoid, (B, S, 4).
        feature_maps: the backbone's, (B, C_l, h_l, w_l) each, finest first.
        projected_feature_maps: what the encoder starts from, (B, D, h_l, w_l) each.
        pyramid: geometry of the encoded tokens.
        group_hidden_states: in training with further groups of queries, (N, B * G, Q, D), their
            `intermediate_hidden_states`, an image's groups together.
        group_reference_points: their `reference_points`, where the variant has them.
    """

    last_hidden_state: Tensor | None = None
    intermediate_hidden_states: Tensor | None = None
    reference_points: tuple[Tensor, ...] | None = None
    decoder_hidden_states: tuple[Tensor, ...] | None = None
    decoder_attentions: tuple[Tensor, ...] | None = None
    cross_attentions: tuple[Tensor, ...] | None = None
    encoder_last_hidden_state: Tensor | None = None
    encoder_hidden_states: tuple[Tensor, ...] | None = None
    encoder_attentions: tuple[Tensor, ...] | None = None
    encoder_sampling_locations: tuple[Tensor, ...] | None = None
    decoder_sampling_locations: tuple[Tensor, ...] | None = None
    enc_outputs_class: Tensor | None = None
    enc_outputs_coord_logits: Tensor | None = None
    feature_maps: tuple[Tensor, ...] | None = None
    projected_feature_maps: tuple[Tensor, ...] | None = None
    pyramid: FeaturePyramid | None = None
    group_hidden_states: Tensor | None = None
    group_reference_points: tuple[Tensor, ...] | None = None


@dataclass
class ObjectDetectionOutput(ModelOutput):
    """Predictions, with the loss if labels were given; further entries as in the model's output.

    Attributes:
        loss: weighted total, a scalar.
        loss_dict: its unweighted terms by name, and what is only for logging.
        logits: (B, Q, C').
        pred_boxes: (B, Q, 4) as (cx, cy, w, h) in [0, 1], relative to each image without its
            padding.
        auxiliary_outputs: per decoder layer but the last a dict of `logits` and `pred_boxes`, if
            labels were given and the configuration has `auxiliary_loss`.
    """

    loss: Tensor | None = None
    loss_dict: dict[str, Tensor] | None = None
    logits: Tensor | None = None
    pred_boxes: Tensor | None = None
    auxiliary_outputs: list[dict[str, Tensor]] | None = None
    last_hidden_state: Tensor | None = None
    decoder_hidden_states: tuple[Tensor, ...] | None = None
    decoder_attentions: tuple[Tensor, ...] | None = None
    cross_attentions: tuple[Tensor, ...] | None = None
    encoder_last_hidden_state: Tensor | None = None
    encoder_hidden_states: tuple[Tensor, ...] | None = None
    encoder_attentions: tuple[Tensor, ...] | None = None
    encoder_sampling_locations: tuple[Tensor, ...] | None = None
    decoder_sampling_locations: tuple[Tensor, ...] | None = None
    enc_outputs_class: Tensor | None = None
    enc_outputs_coord_logits: Tensor | None = None
    reference_points: tuple[Tensor, ...] | None = None


@dataclass
class SegmentationOutput(ObjectDetectionOutput):
    """Detections with a mask for each; further entries as in the detector's output.

    Attributes:
        pred_masks: logits (B, Q, h, w) at the finest feature map's size, a quarter of the image's
            with its padding; None in training, which computes those of matched queries only.
        pixel_mask: (B, H, W) as it was given, by which post-processing cuts the padding off.
    """

    pred_masks: Tensor | None = None
    pixel_mask: Tensor | None = None


def split_sampling(
    attentions: tuple[Any, ...] | None,
) -> tuple[tuple[Tensor, ...] | None, tuple[Tensor, ...] | None]:
    """Attention weights per layer, and sampling locations where attention is deformable."""
    if not attentions or isinstance(attentions[0], Tensor):
        return attentions, None
    weights, locations = zip(*attentions, strict=True)
    return weights, locations
