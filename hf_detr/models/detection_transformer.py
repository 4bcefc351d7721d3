"""The skeleton of every variant, from pixels to the decoder's states: extract, encode, decode.

A variant subclasses it and fills in the hooks: how features are projected and their positions
encoded, how the encoder attends, how queries are made and decoded, and which queries exist in
training alone. `object_detector.py` puts heads and a loss on it.
"""

from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedConfig

from ..layers.backbone import Backbone
from ..layers.feature_pyramid import FeaturePyramid, build_pyramid, check_images
from ..layers.position_encoding import make_position_encoding
from ..layers.short_cuts import inference_only
from ..layers.transformer import Encoder, GlobalSelfAttention
from .denoising import Denoising
from .outputs import DecoderOutput, DetectionModelOutput
from .pretrained_model import DetectionPreTrainedModel
from .training_queries import Queries, QueryGroups, TrainingQueries

Labels = list[dict[str, Tensor]]


class DetectionTransformer(DetectionPreTrainedModel):
    """From pixels to decoder states. Subclasses add queries and a decoder, and the hooks.

    Args:
        config: configuration of the variant.
    """

    _keys_to_ignore_on_save = [
        "query_groups.embeddings.weight",
        "denoising.label_embeddings.weight",
        *(f"denoising.box_positions.layers.{i}.{n}" for i in range(2) for n in ("weight", "bias")),
    ]
    _loss_function = None  # transformers' property would warn of an unknown one when traced
    samples_points = False  # as in `build_pyramid`
    input_projection: nn.Conv2d
    query_position_embeddings: nn.Embedding
    query_table = "query_position_embeddings"  # attribute with the learned embeddings of queries
    needs_query_positions = True  # of training queries; else the decoder makes them of references
    decoder: nn.Module

    def __init__(self, config: PreTrainedConfig) -> None:
        super().__init__(config)
        self.backbone = Backbone(config.backbone_config)
        self.position_embedding = self.make_position_encoding(config)
        self.level_embed: nn.Parameter | None = None  # (L, D), in variants with several levels
        self.encoder = self.make_encoder(config)
        self.query_groups: QueryGroups | None = None  # see `add_query_groups`
        self.denoising: Denoising | None = None  # see `add_denoising`

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

    def learned_queries(self) -> nn.Embedding:
        """The learned embeddings of queries.

        Raises:
            ValueError: if there are none.
        """
        queries = getattr(self, self.query_table, None)
        if queries is None:
            raise ValueError(
                "This model's queries are proposals of its encoder, not learned; "
                "model.resize_queries(n) gives it more of them."
            )
        return queries

    def make_query_groups(self, num_groups: int) -> QueryGroups:
        """Hook: groups of training queries; a variant that can't have them raises `ValueError`."""
        return QueryGroups(num_groups, self.learned_queries())

    def make_denoising(
        self,
        num_denoising_queries: int,
        label_noise_ratio: float | None,
        box_noise_scale: float | None,
    ) -> Denoising | None:
        """Hook: what makes denoising queries, see `Denoising`; None if there are to be none."""
        if num_denoising_queries == 0:
            return None
        noise = {"label_noise_ratio": label_noise_ratio, "box_noise_scale": box_noise_scale}
        return Denoising(
            self.config.num_labels,
            self.config.d_model,
            num_denoising_queries,
            encodes_boxes=self.needs_query_positions,
            **{name: value for name, value in noise.items() if value is not None},
        )

    def training_queries(
        self,
        labels: Labels | None,
        memory: Tensor,
        position_embeddings: Tensor,
        pyramid: FeaturePyramid,
    ) -> TrainingQueries | None:
        """Hook: queries that exist in training alone; called in training mode.

        Unless overridden, those of `add_denoising` or `add_query_groups`, if there are any.

        Args:
            labels: as the detector got them, unchecked and on any device; None if there are none.
            memory: (B, S, D).
            position_embeddings: (B, S, D).
            pyramid: geometry of the memory.

        Raises:
            ValueError: if both were added.
        """
        groups, denoising = self.query_groups, self.denoising
        if groups is not None and denoising is not None:
            raise ValueError(
                "The model has query groups and denoising; remove one of them by "
                "model.add_query_groups(0) or model.add_denoising(0)."
            )
        if denoising is not None and labels is not None:
            return denoising(labels, self.num_queries, memory)
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
        return getattr(self, self.query_table)(indices).expand(memory.shape[0], -1, -1)

    @property
    def num_queries(self) -> int:
        """The detector's own queries per image."""
        return self.config.queries_per_image

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
            given(output_hidden_states, self.config.output_hidden_states),
            given(output_attentions, self.config.output_attentions),
        )
        check_images(pixel_values, pixel_mask, self.config.num_channels)
        if pixel_mask is not None and inference_only(pixel_mask) and pixel_mask.all():
            pixel_mask = None  # nothing is padded, and without a mask it is faster

        feature_maps = self.backbone(pixel_values.to(self.dtype))
        projected = self.project(feature_maps)
        tokens, positions, pyramid = build_pyramid(
            projected, pixel_mask, self.position_embedding, self.level_embed, self.samples_points
        )
        encoded = self.encoder(tokens, positions, pyramid, *asked_for)
        memory = encoded.last_hidden_state
        training = None
        if self.training:
            training = self.training_queries(labels, memory, positions, pyramid)
        decoded = self.decode(memory, positions, pyramid, training, *asked_for)

        maps = (tuple(feature_maps), tuple(projected), pyramid) if output_feature_maps else ()
        output = DetectionModelOutput.from_stages(encoded, decoded, training, *maps)
        return output if given(return_dict, self.config.return_dict) else output.to_tuple()


def given(value: Any, otherwise: Any) -> Any:
    """An option of a call, or the configuration's if the call has none."""
    return otherwise if value is None else value
