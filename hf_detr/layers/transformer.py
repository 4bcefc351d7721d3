"""Base of encoder and decoder layers, and the transformer encoder."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import PreTrainedConfig
from transformers.activations import ACT2FN
from transformers.modeling_layers import GradientCheckpointingLayer

from .attention import MultiHeadAttention
from .feature_pyramid import FeaturePyramid
from .initial_weights import xavier_linear
from .onednn import linear
from .short_cuts import has_global_hooks, inference_only, only_runs_its_class

PART_BYTES = 2**23  # of the widest map of tokens that are transformed together


class TransformerLayer(GradientCheckpointingLayer):
    """Base of the layers; a subclass puts its attention before `feed_forward`.

    Args:
        config: `d_model`, activation, dropout, and where norms are.
        ffn_dim: hidden width of the feed-forward network.
    """

    def __init__(self, config: PreTrainedConfig, ffn_dim: int) -> None:
        super().__init__()
        self.normalize_before = config.normalize_before
        self.dropout = config.dropout
        self.activation_dropout = config.activation_dropout
        self.ffn_dim = ffn_dim
        self.activation = ACT2FN[config.activation_function]
        if isinstance(self.activation, nn.ReLU):
            self.activation.inplace = True  # its input isn't used again
        self.fc1 = xavier_linear(config.d_model, ffn_dim)
        self.fc2 = xavier_linear(ffn_dim, config.d_model)
        self.final_layer_norm = nn.LayerNorm(config.d_model)

    def norm_before(self, hidden_states: Tensor, norm: nn.LayerNorm) -> Tensor:
        """The input of a sub-layer, normalised if norms are before sub-layers."""
        return norm(hidden_states) if self.normalize_before else hidden_states

    def add_and_norm(self, hidden_states: Tensor, update: Tensor, norm: nn.LayerNorm) -> Tensor:
        """Add the output of a sub-layer, after dropout; normalise the sum unless its input was."""
        hidden_states = hidden_states + F.dropout(update, self.dropout, self.training)
        return hidden_states if self.normalize_before else norm(hidden_states)

    def feed_forward(self, hidden_states: Tensor) -> Tensor:
        """The layer's last step, on tokens (B, tokens, D)."""
        inner = self.norm_before(hidden_states, self.final_layer_norm)
        inner = self.activation(linear(self.fc1, inner))
        inner = F.dropout(inner, self.activation_dropout, self.training)
        return self.add_and_norm(hidden_states, linear(self.fc2, inner), self.final_layer_norm)


@dataclass(frozen=True)
class EncoderOutput:
    """Outputs of the encoder: memory (B, S, D), and per layer what was asked for.

    Attributes:
        last_hidden_state: (B, S, D).
        hidden_states: input of the first layer and output of every layer, or None.
        attentions: attention weights of every layer, or None.
    """

    last_hidden_state: Tensor
    hidden_states: tuple[Tensor, ...] | None
    attentions: tuple[Tensor, ...] | None


class GlobalSelfAttention(MultiHeadAttention):
    """Every token attends to every real token; positions are added to queries and keys."""

    def forward(
        self,
        hidden_states: Tensor,
        position_embeddings: Tensor,
        pyramid: FeaturePyramid,
        return_weights: bool,
    ) -> tuple[Tensor, Tensor | None]:
        """Attend within `hidden_states` (B, S, D); weights are (B, M, S, S)."""
        query = hidden_states + position_embeddings
        return super().forward(query, query, hidden_states, pyramid.mask, return_weights)


class EncoderLayer(TransformerLayer):
    """Self-attention and feed-forward network, each added to its input.

    Args:
        config: widths, activation and dropout.
        self_attn: called with tokens, positions, geometry and whether to return weights.
    """

    def __init__(self, config: PreTrainedConfig, self_attn: nn.Module) -> None:
        super().__init__(config, config.encoder_ffn_dim)
        self.self_attn = self_attn
        self.self_attn_layer_norm = nn.LayerNorm(config.d_model)

    def forward(
        self,
        hidden_states: Tensor,
        position_embeddings: Tensor,
        pyramid: FeaturePyramid,
        return_weights: bool = False,
    ) -> tuple[Tensor, Tensor | None]:
        """Transform tokens (B, S, D), given their position embeddings (B, S, D).

        Returns:
            Tokens (B, S, D), and the attention weights if asked for, else None.
        """
        attended, weights = self.self_attn(
            self.norm_before(hidden_states, self.self_attn_layer_norm),
            position_embeddings,
            pyramid,
            return_weights,
        )
        return self._by_parts(hidden_states, attended), weights

    def _by_parts(self, hidden_states: Tensor, attended: Tensor) -> Tensor:
        """What follows attention, in inference on CPU some tokens at a time if there are many.

        What is computed for a part stays in the cache and reuses memory that the process has.
        """
        # Sizes are only read in inference: graphs can't depend on them.
        if not (inference_only(hidden_states) and self._takes_parts()):
            return self._after_attention(hidden_states, attended)
        size = max(1, PART_BYTES // (self.ffn_dim * hidden_states.element_size()))
        has_many = hidden_states.shape[:-1].numel() > 4 * size
        if not has_many or attended.shape != hidden_states.shape:
            return self._after_attention(hidden_states, attended)
        parts = (tokens.flatten(0, -2).split(size) for tokens in (hidden_states, attended))
        outputs = [self._after_attention(*part) for part in zip(*parts, strict=True)]
        return torch.cat(outputs).view_as(hidden_states)

    def _after_attention(self, hidden_states: Tensor, attended: Tensor) -> Tensor:
        hidden_states = self.add_and_norm(hidden_states, attended, self.self_attn_layer_norm)
        return self.feed_forward(hidden_states)

    def _takes_parts(self) -> bool:
        """Whether tokens don't depend on each other, and nobody sees how often modules run."""
        modules = (self.fc1, self.fc2, self.final_layer_norm, self.self_attn_layer_norm)
        return (
            type(self) is EncoderLayer
            and not self.training
            and not has_global_hooks()
            and all(only_runs_its_class(module) for module in (self.activation, *modules))
            # Not quantised layers, whose scale is that of all tokens, nor norms over tokens.
            and all(type(module) in (nn.Linear, nn.LayerNorm) for module in modules)
            and all(type(module.weight) is nn.Parameter for module in modules)
        )


class Encoder(nn.Module):
    """A stack of encoder layers, with a norm for their sum if layers normalise their inputs only.

    Args:
        config: depth and what the layers need.
        make_attention: makes the self-attention of one layer.
    """

    def __init__(
        self, config: PreTrainedConfig, make_attention: Callable[[PreTrainedConfig], nn.Module]
    ) -> None:
        super().__init__()
        self.layers = nn.ModuleList(
            EncoderLayer(config, make_attention(config)) for _ in range(config.encoder_layers)
        )
        self.layernorm = nn.LayerNorm(config.d_model) if config.normalize_before else None

    def forward(
        self,
        hidden_states: Tensor,
        position_embeddings: Tensor,
        pyramid: FeaturePyramid,
        output_hidden_states: bool = False,
        output_attentions: bool = False,
    ) -> EncoderOutput:
        """Transform tokens (B, S, D) into the memory that the decoder reads."""
        # Kept only if asked for: one layer's tokens are among the largest tensors of inference.
        all_states, all_weights = (hidden_states,), ()
        for layer in self.layers:
            hidden_states, weights = layer(
                hidden_states, position_embeddings, pyramid, output_attentions
            )
            all_states = (*all_states, hidden_states) if output_hidden_states else ()
            all_weights = (*all_weights, weights) if output_attentions else ()
        return EncoderOutput(
            hidden_states if self.layernorm is None else self.layernorm(hidden_states),
            all_states if output_hidden_states else None,
            all_weights if output_attentions else None,
        )
