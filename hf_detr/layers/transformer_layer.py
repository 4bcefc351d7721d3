"""What every encoder and decoder layer shares: residual, norm and feed-forward network."""

from torch import Tensor, nn
from torch.nn import functional as F
from transformers import PreTrainedConfig
from transformers.activations import ACT2FN
from transformers.modeling_layers import GradientCheckpointingLayer


class XavierLinear(nn.Linear):
    """Linear layer with Xavier weights and torch's bias, as the original's feed-forward network."""

    def reset_parameters(self) -> None:
        """Draw the weights anew."""
        super().reset_parameters()
        nn.init.xavier_uniform_(self.weight)


class TransformerLayer(GradientCheckpointingLayer):
    """Base of the layers; a subclass puts its attention before `feed_forward`.

    Args:
        config: `d_model`, activation and dropout.
        ffn_dim: hidden width of the feed-forward network.
    """

    def __init__(self, config: PreTrainedConfig, ffn_dim: int) -> None:
        super().__init__()
        self.dropout = config.dropout
        self.activation_dropout = config.activation_dropout
        self.activation = ACT2FN[config.activation_function]
        if isinstance(self.activation, nn.ReLU):
            self.activation.inplace = True  # nobody else reads what goes in
        self.fc1 = XavierLinear(config.d_model, ffn_dim)
        self.fc2 = XavierLinear(ffn_dim, config.d_model)
        self.final_layer_norm = nn.LayerNorm(config.d_model)

    def add_and_norm(self, hidden_states: Tensor, update: Tensor, norm: nn.LayerNorm) -> Tensor:
        """Add what a sub-layer computed, after dropout, and normalise the sum."""
        return norm(hidden_states + F.dropout(update, self.dropout, self.training))

    def feed_forward(self, hidden_states: Tensor) -> Tensor:
        """The layer's last step, on tokens (B, tokens, D)."""
        inner = self.activation(self.fc1(hidden_states))
        inner = F.dropout(inner, self.activation_dropout, self.training)
        return self.add_and_norm(hidden_states, self.fc2(inner), self.final_layer_norm)
