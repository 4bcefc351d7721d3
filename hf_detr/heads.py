"""The heads that read classes and boxes off the decoder's states."""

from torch import Tensor, nn
from torch.nn import functional as F


class MLP(nn.Module):
    """Linear layers with ReLU between them.

    Args:
        input_dim, hidden_dim, output_dim: widths.
        num_layers: number of linear layers.
    """

    def __init__(self, input_dim: int, hidden_dim: int, output_dim: int, num_layers: int) -> None:
        super().__init__()
        widths = [input_dim] + [hidden_dim] * (num_layers - 1) + [output_dim]
        self.layers = nn.ModuleList(
            nn.Linear(width_in, width_out)
            for width_in, width_out in zip(widths, widths[1:], strict=False)
        )

    def forward(self, hidden_states: Tensor) -> Tensor:
        """Map (..., input_dim) to (..., output_dim)."""
        *inner, last = self.layers
        for layer in inner:
            hidden_states = F.relu(layer(hidden_states))
        return last(hidden_states)


def make_box_head(d_model: int) -> MLP:
    """Three-layer perceptron from a query (..., D) to box deltas (..., 4)."""
    return MLP(d_model, d_model, 4, num_layers=3)
