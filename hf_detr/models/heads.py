"""The heads that read classes and boxes off the decoder's states."""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import initialization as init

from ..losses.classification import Classification


class MLP(nn.Module):
    """Linear layers with ReLU between them.

    Args:
        input_dim, hidden_dim, output_dim: widths.
        num_layers: number of linear layers.
        linear: class of the linear layers, which decides how they start.
    """

    def __init__(
        self,
        input_dim: int,
        hidden_dim: int,
        output_dim: int,
        num_layers: int,
        linear: type[nn.Linear] = nn.Linear,
    ) -> None:
        super().__init__()
        widths = [input_dim] + [hidden_dim] * (num_layers - 1) + [output_dim]
        self.layers = nn.ModuleList(
            linear(width_in, width_out)
            for width_in, width_out in zip(widths, widths[1:], strict=False)
        )

    def forward(self, hidden_states: Tensor) -> Tensor:
        """Map (..., input_dim) to (..., output_dim)."""
        *inner, last = self.layers
        for layer in inner:
            hidden_states = F.relu(layer(hidden_states))
        return last(hidden_states)


class ReferenceLinear(nn.Linear):
    """Last layer of a box head; it starts with boxes at their references, of one given size.

    Args:
        d_model: width of its input.
        size_bias: logit of width and height at first; 0 is half the image, or the reference's.
    """

    def __init__(self, d_model: int, size_bias: float) -> None:
        self.size_bias = size_bias  # torch resets parameters while it builds
        super().__init__(d_model, 4)

    def reset_parameters(self) -> None:
        """Zero weights; biases (0, 0, size, size)."""
        nn.init.zeros_(self.weight)
        bias = torch.tensor([0.0, 0.0, self.size_bias, self.size_bias])
        init.copy_(self.bias, bias)


class PriorLinear(nn.Linear):
    """Class head that gives every class the same small probability at first.

    Args:
        d_model: width of a query.
        num_logits: number of logits.
        prior_probability: the probability.
    """

    def __init__(self, d_model: int, num_logits: int, prior_probability: float) -> None:
        self.prior_probability = prior_probability  # torch resets parameters while it builds
        super().__init__(d_model, num_logits)

    def reset_parameters(self) -> None:
        """Torch's weights; biases are the prior's logit."""
        super().reset_parameters()
        prior = self.prior_probability
        nn.init.constant_(self.bias, math.log(prior / (1 - prior)))


def make_class_head(d_model: int, classification: Classification) -> nn.Linear:
    """Linear classifier of a query (..., D), as wide and as biased as the classification wants."""
    if classification.prior_probability is None:
        return nn.Linear(d_model, classification.num_logits)
    return PriorLinear(d_model, classification.num_logits, classification.prior_probability)


def make_box_head(d_model: int, size_bias: float | None = None) -> MLP:
    """Three-layer perceptron from a query (..., D) to box deltas (..., 4).

    With a `size_bias` its boxes start at their references, see `ReferenceLinear`.
    """
    head = MLP(d_model, d_model, 4, num_layers=3)
    if size_bias is not None:
        head.layers[-1] = ReferenceLinear(d_model, size_bias)
    return head
