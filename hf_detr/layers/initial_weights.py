"""Initial weights of torch's own layers, as the papers' code draws them.

Layers stay of torch's classes, which tools look for: dynamic quantization converts `nn.Linear`, but
not its subclasses. How one starts is therefore its attribute `draw_weights`, a function of the
layer, which models also call for weights that a checkpoint lacks.
"""

from collections.abc import Callable
from functools import partial
from typing import TypeVar

from torch import nn

Layer = TypeVar("Layer", bound=nn.Module)


def starting(layer: Layer, draw_weights: Callable[[nn.Module], None]) -> Layer:
    """The layer, with weights drawn by `draw_weights`, now and when a model initializes it."""
    layer.draw_weights = draw_weights
    draw_weights(layer)
    return layer


def xavier_linear(width_in: int, width_out: int) -> nn.Linear:
    """Linear layer with Xavier weights and torch's bias, as the original's feed-forward network."""
    return starting(nn.Linear(width_in, width_out), draw_xavier_weight)


def output_projection(width_in: int, width_out: int) -> nn.Linear:
    """Linear layer with Xavier weights and zero bias, as behind an attention's heads."""
    return starting(nn.Linear(width_in, width_out), draw_xavier)


def input_projection(width_in: int, width_out: int) -> nn.Linear:
    """Projection of queries, keys or values; starts as a third of the original's fused one."""
    # A (3D, D) matrix starts smaller than (D, D).
    return starting(nn.Linear(width_in, width_out), partial(draw_xavier, gain=0.5**0.5))


def draw_xavier(layer: nn.Module, gain: float = 1.0) -> None:
    """Xavier weights, and zero bias."""
    nn.init.xavier_uniform_(layer.weight, gain)
    nn.init.zeros_(layer.bias)


def draw_xavier_weight(layer: nn.Module) -> None:
    """Xavier weights, and torch's bias."""
    layer.reset_parameters()
    nn.init.xavier_uniform_(layer.weight)


def draw_zeros(layer: nn.Module) -> None:
    """Zero weights, and zero bias."""
    nn.init.zeros_(layer.weight)
    nn.init.zeros_(layer.bias)
