"""Exponential moving average of a model's weights, which are often better than the last ones."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn


class ModelEma:
    """Exponential moving average of a model's trainable parameters.

    It averages over about `1 / (1 - decay)` steps, and over fewer at the beginning, which reduces
    the influence of the initial weights.

    Args:
        model: the trained model, wrapped or not; its parameters must not be replaced later.
        decay: in [0, 1).

    Raises:
        ValueError: if `decay` is out of range.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        if not 0 <= decay < 1:
            raise ValueError(f"decay is {decay}; expected a number in [0, 1), such as 0.999.")
        self.decay = decay
        self.parameters = [p for p in model.parameters() if p.requires_grad]
        self.averages = [p.detach().clone().float() for p in self.parameters]

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Update the average after optimizer step `step`, counted from 1."""
        weight = 1 - min(self.decay, step / (step + 9))  # 0.9, 0.82, 0.75, …
        for average, parameter in zip(self.averages, self.parameters, strict=True):
            average.lerp_(parameter.float(), weight)

    @contextmanager
    def applied(self) -> Iterator[None]:
        """Set the model's weights to the average within the context, for evaluating and saving."""
        # Weights are copied and not swapped, because half precision would round the averages.
        weights = [parameter.detach().clone() for parameter in self.parameters]
        self._set(self.averages)
        try:
            yield
        finally:
            self._set(weights)

    @torch.no_grad()
    def _set(self, values: list[Tensor]) -> None:
        for parameter, value in zip(self.parameters, values, strict=True):
            parameter.copy_(value)

    @torch.no_grad()
    def restart(self) -> None:
        """Set the average to the model's weights, for example after loading them."""
        for average, parameter in zip(self.averages, self.parameters, strict=True):
            average.copy_(parameter)
