"""The average of a model's weights over its training, which often detects better than the last."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn


class ModelEma:
    """Exponential moving average of what is trained of a model.

    The average is over about `1 / (1 - decay)` steps; over fewer at first, when the weights of
    the beginning would otherwise stay in it for long.

    Args:
        model: as it is trained, wrapped or not; its parameters must not be replaced later.
        decay: in [0, 1).

    Raises:
        ValueError: if `decay` is out of range.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        if not 0 <= decay < 1:
            raise ValueError(f"decay is {decay}; give a number from 0 to below 1, such as 0.999.")
        self.decay = decay
        self.parameters = [p for p in model.parameters() if p.requires_grad]
        self.averages = [p.detach().clone().float() for p in self.parameters]

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Take in the weights after optimiser step `step`, counted from 1."""
        weight = 1 - min(self.decay, step / (step + 9))  # 0.9, 0.82, 0.75, …
        for average, parameter in zip(self.averages, self.parameters, strict=True):
            average.lerp_(parameter.float(), weight)

    @contextmanager
    def applied(self) -> Iterator[None]:
        """Within it the model has the averaged weights, for evaluating and for saving."""
        # Not swapped: weights in half precision would round the averages, time after time.
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
        """Take the model's weights for the average, for example loaded ones."""
        for average, parameter in zip(self.averages, self.parameters, strict=True):
            average.copy_(parameter)
