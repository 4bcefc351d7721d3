"""Outputs of the decoder, and of the forward of models and detectors."""

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from transformers.utils import ModelOutput

from ..layers.feature_pyramid import FeaturePyramid
from ..layers.transformer import EncoderOutput
from .training_queries import TrainingQueries


@dataclass(frozen=True)
class DecoderOutput:
    """States of the queries, layer by layer.

    Attributes:
        layer_states: (N, B, Q, D), the states that the heads read, one per layer.
        reference_points: per layer (B, Q, 2) as (x, y) or (B, Q, 4) as (cx, cy, w, h) in [0, 1],
            the reference that the layer starts from and its box is relative to; None where boxes
            are absolute.
        hidden_states: input of the first layer and output of every layer, or None.
        attentions: self-attention weights of every layer, (B, M, Q, Q) each, or None.
        cross_attentions: weights over the memory of every layer, or None.
        enc_outputs_class: class logits of proposals, (B, S, C') of every token or (B, Q, C') of
            those that queries start from, or None.
        enc_outputs_coord_logits: boxes of the proposals before the sigmoid, (B, S or Q, 4), or
            None.
        undetached_reference_points: `reference_points` through which the loss of a layer's boxes
            reaches the layers before (DINO's "look forward twice"), or None.
    """

    layer_states: Tensor
    reference_points: tuple[Tensor, ...] | None = None
    hidden_states: tuple[Tensor, ...] | None = None
    attentions: tuple[Tensor, ...] | None = None
    cross_attentions: tuple[Tensor, ...] | None = None
    enc_outputs_class: Tensor | None = None
    enc_outputs_coord_logits: Tensor | None = None
    undetached_reference_points: tuple[Tensor, ...] | None = None

    def split(self, num_queries: int) -> tuple["DecoderOutput", "DecoderOutput"]:
        """Outputs of the first queries, and of the others what their boxes and plots need."""
        first, rest = slice(num_queries), slice(num_queries, None)
        own = replace(
            self,
            layer_states=self.layer_states[:, :, first],
            reference_points=_cut(self.reference_points, first),
            hidden_states=_cut(self.hidden_states, first),
            attentions=_cut(_cut(self.attentions, first, axis=2), first, axis=3),
            cross_attentions=_cut(self.cross_attentions, first, axis=2),
            undetached_reference_points=_cut(self.undetached_reference_points, first),
        )
        others = DecoderOutput(
            self.layer_states[:, :, rest],
            _cut(self.reference_points, rest),
            cross_attentions=_cut(self.cross_attentions, rest, axis=2),
            undetached_reference_points=_cut(self.undetached_reference_points, rest),
        )
        return own, others

    @classmethod
    def from_trace(
        cls,
        trace: list[tuple[Tensor, Tensor | None, Tensor | None]],
        norm: nn.Module,
        output_hidden_states: bool,
        output_attentions: bool,
        **others: Any,
    ) -> "DecoderOutput":
        """Sort the states and weights that a decoder's loop has gathered.

        Args:
            trace: the first layer's input, then every layer's output: states (B, Q, D), weights
                of self-attention and of cross-attention.
            norm: for the copies that the heads read; the next layer gets the raw state.
            output_hidden_states, output_attentions: whether to keep hidden states and weights.
            **others: further attributes, as they are.
        """
        states, weights, cross_weights = zip(*trace, strict=True)
        return cls(
            # Layers may be on several devices.
            layer_states=norm(torch.stack([state.to(states[-1].device) for state in states[1:]])),
            hidden_states=states if output_hidden_states else None,
            attentions=weights[1:] if output_attentions else None,
            cross_attentions=cross_weights[1:] if output_attentions else None,
            **others,
        )


# The fields of outputs, in groups that several classes share. A class has the fields of its last
# base first, which is their order in a tuple; entries that weren't asked for are None.


@dataclass
class _LastHiddenState(ModelOutput):
    last_hidden_state: Tensor | None = None


@dataclass
class _Stages(ModelOutput):
    decoder_hidden_states: tuple[Tensor, ...] | None = None
    decoder_attentions: tuple[Tensor, ...] | None = None
    cross_attentions: tuple[Tensor, ...] | None = None
    encoder_last_hidden_state: Tensor | None = None
    encoder_hidden_states: tuple[Tensor, ...] | None = None
    encoder_attentions: tuple[Tensor, ...] | None = None


@dataclass
class _LayerStates(ModelOutput):
    intermediate_hidden_states: Tensor | None = None
    reference_points: tuple[Tensor, ...] | None = None


@dataclass
class _Sampling(ModelOutput):
    encoder_sampling_locations: tuple[Tensor, ...] | None = None
    decoder_sampling_locations: tuple[Tensor, ...] | None = None
    enc_outputs_class: Tensor | None = None
    enc_outputs_coord_logits: Tensor | None = None


@dataclass
class _Predictions(ModelOutput):
    loss: Tensor | None = None
    loss_dict: dict[str, Tensor] | None = None
    logits: Tensor | None = None
    pred_boxes: Tensor | None = None


@dataclass
class _Masks(ModelOutput):
    pred_masks: Tensor | None = None


@dataclass
class _AuxiliaryOutputs(ModelOutput):
    auxiliary_outputs: list[dict[str, Tensor]] | None = None


@dataclass
class DetectionModelOutput(_Sampling, _LayerStates, _Stages, _LastHiddenState):
    """States of encoder and decoder; entries that weren't asked for are None.

    Attributes:
        last_hidden_state: (B, Q, D), what the heads read.
        intermediate_hidden_states: (N, B, Q, D), the same for every decoder layer.
        reference_points, undetached_reference_points: as in `DecoderOutput`.
        decoder_hidden_states: input of the decoder and output of each layer, (B, Q, D) each.
        decoder_attentions: (B, M, Q, Q) per layer.
        cross_attentions: (B, M, Q, S) per layer.
        encoder_last_hidden_state: (B, S, D).
        encoder_hidden_states: input of the encoder and output of each layer, (B, S, D) each.
        encoder_attentions: (B, M, S, S) per layer.
        encoder_sampling_locations, decoder_sampling_locations: where deformable attention looked,
            (B, Q, M, L, K, 2) per layer as (x, y) in [0, 1]; its attentions are (B, Q, M, L, K).
        enc_outputs_class, enc_outputs_coord_logits: as in `DecoderOutput`.
        feature_maps: the backbone's, (B, C_l, h_l, w_l) each, finest first.
        projected_feature_maps: what the encoder starts from, (B, D, h_l, w_l) each.
        pyramid: geometry of the encoded tokens.
        training_queries, training_states: queries that exist in training alone, and their states
            and references, for the loss.
    """

    feature_maps: tuple[Tensor, ...] | None = None
    projected_feature_maps: tuple[Tensor, ...] | None = None
    pyramid: FeaturePyramid | None = None
    undetached_reference_points: tuple[Tensor, ...] | None = None
    training_queries: TrainingQueries | None = None
    training_states: DecoderOutput | None = None

    @classmethod
    def from_stages(
        cls,
        encoded: EncoderOutput,
        decoded: DecoderOutput,
        training_queries: TrainingQueries | None,
        *maps: Any,
    ) -> "DetectionModelOutput":
        """Outputs of encoder and decoder, those of training queries apart from the detector's own.

        Feature maps, projected ones and geometry may follow.
        """
        training_states = None
        if training_queries is not None:
            num_training = training_queries.mask.shape[1]
            decoded, training_states = decoded.split(decoded.layer_states.shape[2] - num_training)
        encoder_attentions, encoder_locations = split_sampling(encoded.attentions)
        cross_attentions, decoder_locations = split_sampling(decoded.cross_attentions)
        return cls(
            decoded.layer_states[-1],
            decoded.hidden_states,
            decoded.attentions,
            cross_attentions,
            encoded.last_hidden_state,
            encoded.hidden_states,
            encoder_attentions,
            decoded.layer_states,
            decoded.reference_points,
            encoder_locations,
            decoder_locations,
            decoded.enc_outputs_class,
            decoded.enc_outputs_coord_logits,
            *maps,
            undetached_reference_points=decoded.undetached_reference_points,
            training_queries=training_queries,
            training_states=training_states,
        )


@dataclass
class ObjectDetectionOutput(_Sampling, _Stages, _LastHiddenState, _AuxiliaryOutputs, _Predictions):
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

    reference_points: tuple[Tensor, ...] | None = None


@dataclass
class SegmentationOutput(
    _Sampling, _Stages, _LastHiddenState, _AuxiliaryOutputs, _Masks, _Predictions
):
    """Detections with a mask for each; further entries as in the detector's output.

    Attributes:
        pred_masks: logits (B, Q, h, w) at the finest feature map's size, a quarter of the image's
            with its padding; None in training, which computes those of matched queries only.
        pixel_mask: (B, H, W) as it was given, by which post-processing cuts the padding off.
    """

    reference_points: tuple[Tensor, ...] | None = None
    pixel_mask: Tensor | None = None


def box_references(states: DecoderOutput | DetectionModelOutput) -> tuple[Tensor, ...] | None:
    """What the boxes of each layer are relative to in the loss and in predictions, or None."""
    return states.undetached_reference_points or states.reference_points


def split_sampling(
    attentions: tuple[Any, ...] | None,
) -> tuple[tuple[Tensor, ...] | None, tuple[Tensor, ...] | None]:
    """Attention weights per layer, and sampling locations where attention is deformable."""
    if not attentions or isinstance(attentions[0], Tensor):
        return attentions, None
    weights, locations = zip(*attentions, strict=True)
    return weights, locations


def _cut(layers: tuple[Any, ...] | None, queries: slice, axis: int = 1) -> tuple[Any, ...] | None:
    """Some queries of every layer's tensor; those of sampled attention have them on axis 1."""
    if layers is None:
        return None
    return tuple(
        tuple(part[:, queries] for part in layer)
        if isinstance(layer, tuple)
        else layer[(slice(None),) * axis + (queries,)]
        for layer in layers
    )
