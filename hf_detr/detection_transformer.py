"""The skeleton of every variant: extract, encode, decode, predict, loss.

`DetectionTransformer` goes from pixels to decoder states, `ObjectDetector` puts heads and a loss
on it. A variant subclasses both and fills in the hooks: how features are projected, how the
encoder attends, how queries are decoded, and which heads read them.
"""

from abc import abstractmethod
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedConfig, PreTrainedModel

from .backbone import Backbone, reset_timm_module
from .criterion import DetectionCriterion
from .encoder import Encoder
from .feature_pyramid import FeaturePyramid, build_pyramid
from .outputs import DecoderOutput, DetectionModelOutput, ObjectDetectionOutput
from .position_encoding import make_position_encoding


class DetectionPreTrainedModel(PreTrainedModel):
    """What the bare model and the detector share: loading, initialisation, backbone, queries."""

    base_model_prefix = "model"
    main_input_name = "pixel_values"
    input_modalities = ("image",)
    supports_gradient_checkpointing = True
    _supports_sdpa = True
    # Frozen batch norm has no use for them, but files hold them.
    _keys_to_ignore_on_load_unexpected = [r"num_batches_tracked"]
    # Without it the Trainer would not average the loss over accumulated batches.
    accepts_loss_kwargs = False

    @classmethod
    def from_pretrained(cls, *args: Any, **kwargs: Any) -> Any:
        """Load config and safetensors from a folder or the Hub; as in transformers otherwise.

        Raises:
            ValueError: if asked to load a pickle.
        """
        if not kwargs.setdefault("use_safetensors", True):
            raise ValueError(
                "use_safetensors=False would unpickle weights, which can run code; hf_detr loads "
                "safetensors only. transformers can convert: load there, save_pretrained."
            )
        loaded = super().from_pretrained(*args, **kwargs)
        model = loaded[0] if isinstance(loaded, tuple) else loaded  # with output_loading_info
        model.base_model.backbone.restore_buffers()
        return loaded

    def _init_weights(self, module: nn.Module) -> None:
        # Each module with weights, torch's or ours, draws its own; transformers doesn't come here
        # for modules that only contain others. Not every timm module spares loaded weights.
        weights = list(module.parameters(recurse=False))
        if weights and all(getattr(weight, "_is_hf_initialized", False) for weight in weights):
            return
        if hasattr(module, "reset_parameters"):
            module.reset_parameters()
        else:
            reset_timm_module(module)

    def freeze_backbone(self) -> None:
        """Train nothing of the backbone."""
        self.base_model.backbone.freeze()

    def unfreeze_backbone(self, num_frozen_stages: int = 1) -> None:
        """Train the backbone but for its stem and first stages (paper: 1); 0 trains all of it.

        Batch norm keeps its statistics in any case.
        """
        self.base_model.backbone.freeze(num_frozen_stages)

    @torch.no_grad()
    def resize_queries(self, num_queries: int) -> None:
        """Change the number of object queries; learned ones stay, in order.

        Additional queries are drawn anew: queries must differ to learn different objects, so
        copies of learned ones would not do. Fewer queries keep the first ones.

        Raises:
            ValueError: if `num_queries` isn't positive.
        """
        if num_queries < 1:
            raise ValueError(f"num_queries is {num_queries}; a detector needs at least 1.")
        old = self.base_model.query_position_embeddings
        new = nn.Embedding(
            num_queries, old.embedding_dim, device=old.weight.device, dtype=old.weight.dtype
        )
        kept = min(num_queries, old.num_embeddings)
        new.weight[:kept] = old.weight[:kept]
        new.weight.requires_grad_(old.weight.requires_grad)
        self.base_model.query_position_embeddings = new
        self.config.num_queries = num_queries


class DetectionTransformer(DetectionPreTrainedModel):
    """From pixels to decoder states. Subclasses add queries and a decoder, and the hooks.

    Args:
        config: configuration of the variant.
    """

    query_position_embeddings: nn.Embedding
    decoder: nn.Module

    def __init__(self, config: PreTrainedConfig) -> None:
        super().__init__(config)
        self.backbone = Backbone(config.backbone_config)
        self.position_embedding = make_position_encoding(
            config.position_embedding_type, config.d_model
        )
        self.encoder = Encoder(config, self.make_encoder_attention)

    @staticmethod
    @abstractmethod
    def make_encoder_attention(config: PreTrainedConfig) -> nn.Module:
        """Hook: the self-attention of one encoder layer."""

    @abstractmethod
    def project(self, feature_maps: list[Tensor]) -> list[Tensor]:
        """Hook: from backbone features (B, C_l, h_l, w_l) to levels (B, D, h_l, w_l)."""

    def decode(
        self,
        memory: Tensor,
        position_embeddings: Tensor,
        pyramid: FeaturePyramid,
        output_hidden_states: bool,
        output_attentions: bool,
    ) -> DecoderOutput:
        """Hook: from memory (B, S, D), its positions (B, S, D) and geometry to query states.

        Unless overridden, the decoder starts from the learned embeddings of the queries.
        """
        queries = self.query_position_embeddings.weight.expand(memory.shape[0], -1, -1)  # (B, Q, D)
        return self.decoder(
            queries, memory, position_embeddings, pyramid, output_hidden_states, output_attentions
        )

    def forward(
        self,
        pixel_values: Tensor,
        pixel_mask: Tensor | None = None,
        output_hidden_states: bool | None = None,
        output_attentions: bool | None = None,
        return_dict: bool | None = None,
    ) -> DetectionModelOutput | tuple:
        """Encode images and decode queries.

        Args:
            pixel_values: (B, 3, H, W), normalised; zeros on padding.
            pixel_mask: (B, H, W), 1 on real pixels and 0 on padding; None if all are real.
            output_hidden_states: also return the states between layers.
            output_attentions: also return attention weights.
            return_dict: False returns a tuple instead.

        Raises:
            ValueError: if the shapes don't fit each other or the configuration.
        """
        if output_hidden_states is None:
            output_hidden_states = self.config.output_hidden_states
        if output_attentions is None:
            output_attentions = self.config.output_attentions
        check_images(pixel_values, pixel_mask, self.config.num_channels)

        feature_maps = self.backbone(pixel_values.to(self.dtype))
        hidden_states, position_embeddings, pyramid = build_pyramid(
            self.project(feature_maps), pixel_mask, self.position_embedding
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
        output = DetectionModelOutput(
            last_hidden_state=decoded.layer_states[-1],
            intermediate_hidden_states=decoded.layer_states,
            reference_points=decoded.reference_points,
            decoder_hidden_states=decoded.hidden_states,
            decoder_attentions=decoded.attentions,
            cross_attentions=decoded.cross_attentions,
            encoder_last_hidden_state=encoded.last_hidden_state,
            encoder_hidden_states=encoded.hidden_states,
            encoder_attentions=encoded.attentions,
        )
        return output if return_dict is not False else output.to_tuple()


class ObjectDetector(DetectionPreTrainedModel):
    """Heads and loss on a `DetectionTransformer`, which a subclass puts at `self.model`.

    Args:
        config: configuration of the variant.
    """

    model: DetectionTransformer
    criterion: DetectionCriterion

    @abstractmethod
    def predict(
        self, layer_states: Tensor, reference_points: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """Hook: logits (N, B, Q, C') and boxes (N, B, Q, 4) from states (N, B, Q, D)."""

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
        outputs = self.model(pixel_values, pixel_mask, output_hidden_states, output_attentions)
        every_layer = labels is not None and self.config.auxiliary_loss
        layers = slice(None) if every_layer else slice(-1, None)
        references = outputs.reference_points
        logits, pred_boxes = self.predict(
            outputs.intermediate_hidden_states[layers],
            None if references is None else references[layers],
        )
        loss = loss_dict = auxiliary_outputs = None
        if labels is not None:
            loss, loss_dict = self.criterion(logits, pred_boxes, labels)
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
        )
        return output if return_dict is not False else output.to_tuple()


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
