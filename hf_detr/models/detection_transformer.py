"""The skeleton of every variant: extract, encode, decode, predict, loss.

`DetectionTransformer` goes from pixels to decoder states, `ObjectDetector` puts heads and a loss
on it. A variant subclasses both and fills in the hooks: how features are projected and their
positions encoded, how the encoder attends, how queries are made and decoded, which queries exist in
training alone, and which heads read them.
"""

from abc import abstractmethod
from dataclasses import fields, replace

import torch
from torch import Tensor, nn
from transformers import PreTrainedConfig

from ..layers.backbone import Backbone
from ..layers.feature_pyramid import FeaturePyramid, build_pyramid, check_images
from ..layers.folded_backbone import inference_only
from ..layers.position_encoding import make_position_encoding
from ..layers.transformer import Encoder, GlobalSelfAttention
from ..losses.criterion import DetectionCriterion, FinalLayerMatches, LossPart
from ..losses.loss_terms import LossNormalizers, count_loss_normalizers
from .outputs import DecoderOutput, DetectionModelOutput, ObjectDetectionOutput
from .pretrained_model import DetectionPreTrainedModel
from .training_queries import Queries, QueryGroups, TrainingQueries

Labels = list[dict[str, Tensor]]
DETECTOR_FIELDS = frozenset(field.name for field in fields(ObjectDetectionOutput))


class DetectionTransformer(DetectionPreTrainedModel):
    """From pixels to decoder states. Subclasses add queries and a decoder, and the hooks.

    Args:
        config: configuration of the variant.
    """

    _keys_to_ignore_on_save = ["query_groups.embeddings.weight"]
    needs_corner = False  # real pixels must begin in the upper left corner
    input_projection: nn.Conv2d
    query_position_embeddings: nn.Embedding
    decoder: nn.Module

    def __init__(self, config: PreTrainedConfig) -> None:
        super().__init__(config)
        self.backbone = Backbone(config.backbone_config)
        self.position_embedding = self.make_position_encoding(config)
        self.level_embed: nn.Parameter | None = None  # (L, D), in variants with several levels
        self.encoder = self.make_encoder(config)
        self.query_groups: QueryGroups | None = None  # see `add_query_groups`

    @staticmethod
    def make_position_encoding(config: PreTrainedConfig) -> nn.Module:
        """Hook: turns a mask (B, h, w), and whether all of it is real, into (B, D, h, w)."""
        return make_position_encoding(config.position_embedding_type, config.d_model)

    def make_encoder(self, config: PreTrainedConfig) -> nn.Module:
        """Hook: the encoder, called as `Encoder.forward` is."""
        return Encoder(config, self.make_encoder_attention)

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

    def prepare_queries(self, embeddings: Tensor) -> Queries:
        """Hook: queries from learned embeddings (B, Q, …), their positions unless overridden."""
        return Queries(torch.zeros_like(embeddings), embeddings)

    def training_queries(
        self,
        labels: Labels | None,
        memory: Tensor,
        position_embeddings: Tensor,
        pyramid: FeaturePyramid,
    ) -> TrainingQueries | None:
        """Hook: queries that exist in training alone; called in training mode.

        Unless overridden, the groups of `add_query_groups`, if there are any.

        Args:
            labels: as the detector got them, unchecked and on any device; None if there are none.
            memory: (B, S, D).
            position_embeddings: (B, S, D).
            pyramid: geometry of the memory.
        """
        groups = self.query_groups
        return None if groups is None else groups(memory, self.prepare_queries)

    def decode(
        self,
        memory: Tensor,
        position_embeddings: Tensor,
        pyramid: FeaturePyramid,
        training_queries: TrainingQueries | None,
        output_hidden_states: bool,
        output_attentions: bool,
    ) -> DecoderOutput:
        """Hook: from memory (B, S, D), its positions (B, S, D) and geometry to query states.

        The states are those of the detector's own queries, then those of the training queries.
        Unless overridden, the decoder starts from the learned embeddings.
        """
        queries = self.prepare_queries(self.query_embeddings(memory))
        if training_queries is not None:
            queries = training_queries.join(queries)
        return self.decoder(
            queries, memory, position_embeddings, pyramid, output_hidden_states, output_attentions
        )

    def query_embeddings(self, memory: Tensor) -> Tensor:
        """Learned embeddings (B, Q, …) of the queries, for a memory (B, S, D)."""
        # Called, not read: Accelerate may keep the table elsewhere until then.
        indices = torch.arange(self.config.num_queries, device=memory.device)
        return self.query_position_embeddings(indices).expand(memory.shape[0], -1, -1)

    @property
    def num_queries(self) -> int:
        """The detector's own queries per image."""
        return self.config.num_queries

    def forward(
        self,
        pixel_values: Tensor,
        pixel_mask: Tensor | None = None,
        *,
        output_hidden_states: bool | None = None,
        output_attentions: bool | None = None,
        return_dict: bool | None = None,
        output_feature_maps: bool = False,
        labels: Labels | None = None,
    ) -> DetectionModelOutput | tuple:
        """Encode images and decode queries.

        Args:
            pixel_values: (B, 3, H, W), normalised; zeros on padding.
            pixel_mask: (B, H, W), 1 on real pixels and 0 on padding; None if all are real.
            output_hidden_states: also return the states between layers.
            output_attentions: also return attention weights.
            return_dict: False returns a tuple instead.
            output_feature_maps: also return feature maps, for masks.
            labels: as for the detector; training queries may be made of them.

        Raises:
            TypeError, ValueError: if images or mask can't be used, see `check_images`.
        """
        asked_for = (
            _given(output_hidden_states, self.config.output_hidden_states),
            _given(output_attentions, self.config.output_attentions),
        )
        check_images(pixel_values, pixel_mask, self.config.num_channels)
        if pixel_mask is not None and inference_only(pixel_mask) and pixel_mask.all():
            pixel_mask = None  # nothing is padded, and without a mask it is faster

        feature_maps = self.backbone(pixel_values.to(self.dtype))
        projected = self.project(feature_maps)
        tokens, positions, pyramid = build_pyramid(
            projected, pixel_mask, self.position_embedding, self.level_embed, self.needs_corner
        )
        encoded = self.encoder(tokens, positions, pyramid, *asked_for)
        memory = encoded.last_hidden_state
        training = None
        if self.training:
            training = self.training_queries(labels, memory, positions, pyramid)
        decoded = self.decode(memory, positions, pyramid, training, *asked_for)

        maps = (tuple(feature_maps), tuple(projected), pyramid) if output_feature_maps else ()
        output = DetectionModelOutput.from_stages(encoded, decoded, training, *maps)
        return output if _given(return_dict, self.config.return_dict) else output.to_tuple()


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

    def proposal_labels(self, labels: Labels) -> Labels:
        """Hook: what the encoder's proposals learn; unless overridden, "some object", class 0."""
        return [{**t, "class_labels": torch.zeros_like(t["class_labels"])} for t in labels]

    def forward(
        self,
        pixel_values: Tensor,
        pixel_mask: Tensor | None = None,
        *,
        labels: Labels | None = None,
        output_hidden_states: bool | None = None,
        output_attentions: bool | None = None,
        return_dict: bool | None = None,
        loss_normalizers: LossNormalizers | None = None,
    ) -> ObjectDetectionOutput | tuple:
        """Detect objects; with labels, also compute the loss.

        Args:
            pixel_values, pixel_mask, output_hidden_states, output_attentions, return_dict: as in
                `DetectionTransformer.forward`.
            labels: per image a dict with `class_labels` (n,), integers in 0 … C-1, and `boxes`
                (n, 4) as (cx, cy, w, h) in [0, 1] relative to the image without its padding.
            loss_normalizers: counts of a larger batch that this one is a part of, from
                `count_loss_normalizers`; None: of this batch.

        Raises:
            ValueError, TypeError: if images or labels can't be used.
        """
        outputs = self.model(
            pixel_values,
            pixel_mask,
            output_hidden_states=output_hidden_states,
            output_attentions=output_attentions,
            return_dict=True,
            labels=labels,
        )
        output, _ = self.detect(outputs, labels, output_attentions, loss_normalizers)
        return output if _given(return_dict, self.config.return_dict) else output.to_tuple()

    def detect(
        self,
        outputs: DetectionModelOutput,
        labels: Labels | None,
        output_attentions: bool | None,
        loss_normalizers: LossNormalizers | None = None,
    ) -> tuple[ObjectDetectionOutput, FinalLayerMatches | None]:
        """Predictions, and if there are labels the loss and the matches, from queries' states."""
        every_layer = labels is not None and self.config.auxiliary_loss
        layers = slice(None) if every_layer else slice(-1, None)
        logits, pred_boxes = self._predict_layers(
            layers,
            outputs.intermediate_hidden_states,
            outputs.undetached_reference_points or outputs.reference_points,
        )
        states = {name: value for name, value in outputs.items() if name in DETECTOR_FIELDS}
        if not output_attentions:
            states.pop("reference_points", None)
        loss = loss_dict = matches = auxiliary_outputs = None
        if labels is not None:
            parts = self._loss_parts(LossPart(logits, pred_boxes), outputs, labels, layers)
            loss, loss_dict, matches = self.criterion.sum_parts(parts, labels, loss_normalizers)
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
            **states,
        )
        return output, matches

    def count_loss_normalizers(self, labels: Labels) -> LossNormalizers:
        """What the losses of the parts of a larger batch are divided by, for accumulated gradients.

        The sum of the parts' losses is then the loss of the whole batch. All processes must call
        this at the same time, each with the labels of its own parts.

        Args:
            labels: of all parts; of each image only `class_labels` is needed.
        """
        counts = [len(target["class_labels"]) for target in labels]
        return count_loss_normalizers(counts, self.model.num_queries, self.device)

    def _predict_layers(
        self, layers: slice, states: Tensor, references: tuple[Tensor, ...] | None
    ) -> tuple[Tensor, Tensor]:
        return self.predict(states[layers], None if references is None else references[layers])

    def _loss_parts(
        self, own: LossPart, outputs: DetectionModelOutput, labels: Labels, layers: slice
    ) -> list[LossPart]:
        """The detector's own predictions, those of training queries, and the proposals."""
        parts = [own]
        if (training := outputs.training_queries) is not None:
            states = outputs.training_states
            references = states.undetached_reference_points or states.reference_points
            predicted = self._predict_layers(layers, states.layer_states, references)
            own = replace(own, weight=training.own_weight)
            parts = [own, *training.loss_parts(*predicted)]
        if outputs.enc_outputs_class is not None:
            parts.append(
                LossPart(
                    outputs.enc_outputs_class[None],
                    outputs.enc_outputs_coord_logits.sigmoid()[None],
                    suffix="_enc",
                    labels=self.proposal_labels(labels),
                    source="the encoder's proposals",
                )
            )
        return parts


def _given(value: bool | None, otherwise: bool) -> bool:
    return otherwise if value is None else value
