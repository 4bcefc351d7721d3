"""The skeleton of every variant: extract, encode, decode, predict, loss.

`DetectionTransformer` goes from pixels to decoder states, `ObjectDetector` puts heads and a loss
on it. A variant subclasses both and fills in the hooks: how features are projected, how the
encoder attends, how queries are decoded, and which heads read them.
"""

from abc import abstractmethod

import torch
from torch import Tensor, nn
from transformers import PreTrainedConfig

from .backbone import Backbone
from .criterion import DetectionCriterion, LastMatches
from .encoder import Encoder, GlobalSelfAttention
from .feature_pyramid import FeaturePyramid, build_pyramid
from .folded_backbone import inference_only
from .outputs import (
    DecoderOutput,
    DetectionModelOutput,
    ObjectDetectionOutput,
    split_sampling,
)
from .position_encoding import make_position_encoding
from .pretrained_model import DetectionPreTrainedModel
from .query_groups import QueryGroups


class DetectionTransformer(DetectionPreTrainedModel):
    """From pixels to decoder states. Subclasses add queries and a decoder, and the hooks.

    Args:
        config: configuration of the variant.
    """

    _keys_to_ignore_on_save = ["query_groups.embeddings.weight"]
    input_projection: nn.Conv2d
    query_position_embeddings: nn.Embedding
    decoder: nn.Module
    # Added to the count of cells before sines are taken of it.
    position_offset: float = 0.0

    def __init__(self, config: PreTrainedConfig) -> None:
        super().__init__(config)
        self.backbone = Backbone(config.backbone_config)
        self.position_embedding = make_position_encoding(
            config.position_embedding_type, config.d_model, self.position_offset
        )
        self.level_embed: nn.Parameter | None = None  # (L, D), in variants with several levels
        self.encoder = Encoder(config, self.make_encoder_attention)
        self.query_groups: QueryGroups | None = None  # see `add_query_groups`

    @staticmethod
    def make_encoder_attention(config: PreTrainedConfig) -> nn.Module:
        """Hook: the self-attention of one encoder layer; global unless overridden."""
        return GlobalSelfAttention(
            config.d_model, config.encoder_attention_heads, config.attention_dropout
        )

    def project(self, feature_maps: list[Tensor]) -> list[Tensor]:
        """Hook: from backbone features (B, C_l, h_l, w_l) to levels (B, D, h_l, w_l).

        Unless overridden, the coarsest map alone, by the variant's `input_projection`.
        """
        return [self.input_projection(feature_maps[-1])]

    def decode(
        self,
        memory: Tensor,
        position_embeddings: Tensor,
        pyramid: FeaturePyramid,
        output_hidden_states: bool,
        output_attentions: bool,
        queries: Tensor | None = None,
    ) -> DecoderOutput:
        """Hook: from memory (B, S, D), its positions (B, S, D) and geometry to query states.

        Unless overridden, the decoder starts from the learned embeddings (B, Q, …) of the queries,
        or from others that are given.
        """
        queries = self.query_embeddings(memory) if queries is None else queries
        return self.decoder(
            queries, memory, position_embeddings, pyramid, output_hidden_states, output_attentions
        )

    def decode_groups(
        self, memory: Tensor, position_embeddings: Tensor, pyramid: FeaturePyramid
    ) -> tuple[Tensor | None, tuple[Tensor, ...] | None]:
        """States and references of the groups of queries that only learn, where there are any."""
        if self.query_groups is None or not self.training:
            return None, None
        queries, *repeated = self.query_groups(memory, position_embeddings, pyramid)
        decoded = self.decode(*repeated, False, False, queries)
        return decoded.layer_states, decoded.reference_points

    def query_embeddings(self, memory: Tensor) -> Tensor:
        """Learned embeddings (B, Q, …) of the queries, for a memory (B, S, D)."""
        # Called, not read: Accelerate may keep the table elsewhere until then.
        indices = torch.arange(self.config.num_queries, device=memory.device)
        return self.query_position_embeddings(indices).expand(memory.shape[0], -1, -1)

    def forward(
        self,
        pixel_values: Tensor,
        pixel_mask: Tensor | None = None,
        output_hidden_states: bool | None = None,
        output_attentions: bool | None = None,
        return_dict: bool | None = None,
        output_feature_maps: bool = False,
    ) -> DetectionModelOutput | tuple:
        """Encode images and decode queries.

        Args:
            pixel_values: (B, 3, H, W), normalised; zeros on padding.
            pixel_mask: (B, H, W), 1 on real pixels and 0 on padding; None if all are real.
            output_hidden_states: also return the states between layers.
            output_attentions: also return attention weights.
            return_dict: False returns a tuple instead.
            output_feature_maps: also return feature maps, for masks.

        Raises:
            ValueError: if the shapes don't fit each other or the configuration.
        """
        if output_hidden_states is None:
            output_hidden_states = self.config.output_hidden_states
        if output_attentions is None:
            output_attentions = self.config.output_attentions
        check_images(pixel_values, pixel_mask, self.config.num_channels)
        if pixel_mask is not None and inference_only(pixel_mask) and pixel_mask.all():
            pixel_mask = None  # nothing is padded, and without a mask it is faster

        feature_maps = self.backbone(pixel_values.to(self.dtype))
        projected = self.project(feature_maps)
        hidden_states, position_embeddings, pyramid = build_pyramid(
            projected, pixel_mask, self.position_embedding, self.level_embed
        )
        encoded = self.encoder(
            hidden_states, position_embeddings, pyramid, output_hidden_states, output_attentions
        )
        decoded = self.decode(
            encoded.last_hidden_state,
            position_embeddings,
            pyramid,
            output_hidden_states,
            output_attentions,
        )
        group_states, group_references = self.decode_groups(
            encoded.last_hidden_state, position_embeddings, pyramid
        )
        encoder_attentions, encoder_locations = split_sampling(encoded.attentions)
        cross_attentions, decoder_locations = split_sampling(decoded.cross_attentions)
        output = DetectionModelOutput(
            last_hidden_state=decoded.layer_states[-1],
            intermediate_hidden_states=decoded.layer_states,
            reference_points=decoded.reference_points,
            decoder_hidden_states=decoded.hidden_states,
            decoder_attentions=decoded.attentions,
            cross_attentions=cross_attentions,
            encoder_last_hidden_state=encoded.last_hidden_state,
            encoder_hidden_states=encoded.hidden_states,
            encoder_attentions=encoder_attentions,
            encoder_sampling_locations=encoder_locations,
            decoder_sampling_locations=decoder_locations,
            enc_outputs_class=decoded.enc_outputs_class,
            enc_outputs_coord_logits=decoded.enc_outputs_coord_logits,
            feature_maps=tuple(feature_maps) if output_feature_maps else None,
            projected_feature_maps=tuple(projected) if output_feature_maps else None,
            pyramid=pyramid if output_feature_maps else None,
            group_hidden_states=group_states,
            group_reference_points=group_references,
        )
        if return_dict is None:
            return_dict = self.config.return_dict
        return output if return_dict else output.to_tuple()


class ObjectDetector(DetectionPreTrainedModel):
    """Heads and loss on a `DetectionTransformer`, which a subclass puts at `self.model`.

    Args:
        config: configuration of the variant.
    """

    model: DetectionTransformer
    criterion: DetectionCriterion

    @abstractmethod
    def predict(
        self, layer_states: Tensor, reference_points: tuple[Tensor, ...] | None
    ) -> tuple[Tensor, Tensor]:
        """Hook: logits (N, B, Q, C') and boxes (N, B, Q, 4) of the last N decoder layers.

        Given are their states (N, B, Q, D) and, where there are any, their references.
        """

    def forward(
        self,
        pixel_values: Tensor,
        pixel_mask: Tensor | None = None,
        labels: list[dict[str, Tensor]] | None = None,
        output_hidden_states: bool | None = None,
        output_attentions: bool | None = None,
        return_dict: bool | None = None,
    ) -> ObjectDetectionOutput | tuple:
        """Detect objects; with labels, also compute the loss.

        Args:
            pixel_values: (B, 3, H, W), normalised; zeros on padding.
            pixel_mask: (B, H, W), 1 on real pixels and 0 on padding; None if all are real.
            labels: per image a dict with `class_labels` (n,), integers in 0 … C-1, and `boxes`
                (n, 4) as (cx, cy, w, h) in [0, 1] relative to the image without its padding.
            output_hidden_states: also return the states between layers.
            output_attentions: also return attention weights.
            return_dict: False returns a tuple instead.

        Raises:
            ValueError, TypeError: if images or labels can't be used, in words.
        """
        outputs = self.model(
            pixel_values, pixel_mask, output_hidden_states, output_attentions, return_dict=True
        )
        output, _ = self.detect(outputs, labels, output_attentions)
        if return_dict is None:
            return_dict = self.config.return_dict
        return output if return_dict else output.to_tuple()

    def detect(
        self,
        outputs: DetectionModelOutput,
        labels: list[dict[str, Tensor]] | None,
        output_attentions: bool | None,
    ) -> tuple[ObjectDetectionOutput, LastMatches | None]:
        """Predictions, and if there are labels the loss and the matches, from queries' states."""
        every_layer = labels is not None and self.config.auxiliary_loss
        layers = slice(None) if every_layer else slice(-1, None)
        logits, pred_boxes = self._predict_layers(
            layers, outputs.intermediate_hidden_states, outputs.reference_points
        )
        loss = loss_dict = matches = auxiliary_outputs = None
        if labels is not None:
            loss, loss_dict, matches = self.criterion.match_and_compare(logits, pred_boxes, labels)
            if outputs.group_hidden_states is not None:
                in_groups = self._predict_layers(
                    layers, outputs.group_hidden_states, outputs.group_reference_points
                )
                loss = self.criterion.mean_with_groups(loss, *in_groups, labels, matches.totals)
            if outputs.enc_outputs_class is not None:
                proposals = outputs.enc_outputs_class, outputs.enc_outputs_coord_logits.sigmoid()
                proposal_loss, proposal_dict = self.criterion.proposal_loss(
                    *proposals, labels, matches.totals
                )
                loss, loss_dict = loss + proposal_loss, {**loss_dict, **proposal_dict}
            if self.config.auxiliary_loss:
                auxiliary_outputs = [
                    {"logits": layer_logits, "pred_boxes": layer_boxes}
                    for layer_logits, layer_boxes in zip(logits[:-1], pred_boxes[:-1], strict=True)
                ]
        output = ObjectDetectionOutput(
            loss=loss,
            loss_dict=loss_dict,
            logits=logits[-1],
            pred_boxes=pred_boxes[-1],
            auxiliary_outputs=auxiliary_outputs,
            last_hidden_state=outputs.last_hidden_state,
            decoder_hidden_states=outputs.decoder_hidden_states,
            decoder_attentions=outputs.decoder_attentions,
            cross_attentions=outputs.cross_attentions,
            encoder_last_hidden_state=outputs.encoder_last_hidden_state,
            encoder_hidden_states=outputs.encoder_hidden_states,
            encoder_attentions=outputs.encoder_attentions,
            encoder_sampling_locations=outputs.encoder_sampling_locations,
            decoder_sampling_locations=outputs.decoder_sampling_locations,
            reference_points=outputs.reference_points if output_attentions else None,
            enc_outputs_class=outputs.enc_outputs_class,
            enc_outputs_coord_logits=outputs.enc_outputs_coord_logits,
        )
        return output, matches

    def _predict_layers(
        self, layers: slice, states: Tensor, references: tuple[Tensor, ...] | None
    ) -> tuple[Tensor, Tensor]:
        return self.predict(states[layers], None if references is None else references[layers])


def check_images(pixel_values: Tensor, pixel_mask: Tensor | None, num_channels: int) -> None:
    """Refuse a batch whose shapes don't fit.

    Raises:
        ValueError: naming the shape that was got and the one that was expected.
    """
    if pixel_values.ndim != 4 or pixel_values.shape[1] != num_channels:
        raise ValueError(
            f"pixel_values has shape {tuple(pixel_values.shape)}; expected (batch, "
            f"{num_channels}, height, width), as the image processor returns it."
        )
    batch_size, _, height, width = pixel_values.shape
    if pixel_mask is not None and pixel_mask.shape != (batch_size, height, width):
        raise ValueError(
            f"pixel_mask has shape {tuple(pixel_mask.shape)}; expected (batch, height, width) = "
            f"{(batch_size, height, width)}, 1 on real pixels and 0 on padding."
        )
