"""The heads that read classes and boxes off the decoder's states."""

import math
from collections.abc import Callable, Sequence
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import initialization as init

from ..layers.initial_weights import starting
from ..layers.onednn import linear
from ..losses.classification import Classification


class MLP(nn.Module):
    """Linear layers with ReLU between them.

    Args:
        input_dim, hidden_dim, output_dim: widths.
        num_layers: number of linear layers.
        make_linear: makes a linear layer of two widths, which starts as it decides.
    """

    def __init__(
        self,
        input_dim: int,
        hidden_dim: int,
        output_dim: int,
        num_layers: int,
        make_linear: Callable[[int, int], nn.Linear] = nn.Linear,
    ) -> None:
        super().__init__()
        widths = [input_dim] + [hidden_dim] * (num_layers - 1) + [output_dim]
        self.layers = nn.ModuleList(
            make_linear(width_in, width_out)
            for width_in, width_out in zip(widths, widths[1:], strict=False)
        )

    def forward(self, hidden_states: Tensor) -> Tensor:
        """Map (..., input_dim) to (..., output_dim)."""
        *inner, last = self.layers
        for layer in inner:
            hidden_states = F.relu(linear(layer, hidden_states))
        return linear(last, hidden_states)


def draw_reference(layer: nn.Linear, size_bias: float) -> None:
    """Zero weights; biases (0, 0, size, size), so that boxes start at their references.

    A `size_bias` of 0 is half the image, or the reference's own size.
    """
    nn.init.zeros_(layer.weight)
    init.copy_(layer.bias, torch.tensor([0.0, 0.0, size_bias, size_bias]))


def draw_prior(layer: nn.Linear, probability: float) -> None:
    """Torch's weights; biases are a logit, which gives every class the same small probability."""
    layer.reset_parameters()
    nn.init.constant_(layer.bias, math.log(probability / (1 - probability)))


def make_class_head(d_model: int, classification: Classification) -> nn.Linear:
    """Linear classifier of a query (..., D), as wide and as biased as the classification wants."""
    head = nn.Linear(d_model, classification.num_logits)
    probability = classification.prior_probability
    return (
        head
        if probability is None
        else starting(head, partial(draw_prior, probability=probability))
    )


def make_box_head(d_model: int, size_bias: float | None = None) -> MLP:
    """Three-layer perceptron from a query (..., D) to box deltas (..., 4).

    With a `size_bias` its boxes start at their references, see `draw_reference`.
    """
    head = MLP(d_model, d_model, 4, num_layers=3)
    if size_bias is not None:
        starting(head.layers[-1], partial(draw_reference, size_bias=size_bias))
    return head


def resize_class_head(head: nn.Linear, sources: Sequence[Sequence[int]]) -> None:
    """Change the logits of a class head; each new one is the mean of some old ones.

    Args:
        head: the class head; its weight and bias are replaced.
        sources: for each new logit, indices of old ones.
    """
    average_rows(head, sources)
    head.out_features = len(sources)


@torch.no_grad()
def average_rows(module: nn.Module, sources: Sequence[Sequence[int]]) -> None:
    """Change the rows of a module's parameters; each new one is the mean of some old ones."""
    for name, old in list(module.named_parameters(recurse=False)):
        new = torch.stack([old[list(rows)].mean(0) for rows in sources])
        setattr(module, name, nn.Parameter(new, requires_grad=old.requires_grad))
