"""Tests averaged weights."""

import pytest
import torch
from torch import nn
from torch.testing import assert_close

from hf_detr.training.model_ema import ModelEma


def make_model() -> nn.Linear:
    """A model with two weights of 1."""
    model = nn.Linear(2, 1, bias=False)
    nn.init.ones_(model.weight)
    return model


def test_average_by_hand() -> None:
    """The average equals the formula, with a smaller decay in the first steps."""
    model = make_model()
    ema = ModelEma(model, decay=0.5)
    expected = 1.0
    for step, decay in ((1, 0.1), (2, 2 / 11), (3, 0.25), (100, 0.5)):
        nn.init.constant_(model.weight, 10.0 * step)
        ema.update(step)
        expected = decay * expected + (1 - decay) * 10 * step
        assert_close(ema.averages[0], torch.full((1, 2), expected), atol=1e-4, rtol=1e-6)


def test_applied_weights_are_restored() -> None:
    """The weights are restored after the context, also after an error."""
    model = make_model()
    ema = ModelEma(model, decay=0.9)
    nn.init.constant_(model.weight, 5.0)
    with pytest.raises(RuntimeError), ema.applied():
        assert_close(model.weight.detach(), torch.ones(1, 2), atol=0, rtol=0)
        raise RuntimeError
    assert_close(model.weight.detach(), torch.full((1, 2), 5.0), atol=0, rtol=0)
    assert_close(ema.averages[0], torch.ones(1, 2), atol=0, rtol=0)


def test_frozen_weights_have_no_average() -> None:
    """Only trainable parameters are averaged."""
    model = nn.Sequential(make_model(), make_model())
    model[0].requires_grad_(False)
    assert len(ModelEma(model, 0.9).averages) == 1


def test_half_precision_is_averaged_in_float32() -> None:
    """Small changes, which bfloat16 would round, are kept: 1 + 0.001 * 1."""
    model = make_model().bfloat16()
    ema = ModelEma(model, decay=0.999)
    nn.init.constant_(model.weight, 2.0)
    ema.update(10**6)
    assert_close(ema.averages[0], torch.full((1, 2), 1.001), atol=1e-6, rtol=0)


def test_applying_does_not_round() -> None:
    """Applying averages to weights in half precision doesn't change the averages."""
    model = make_model().bfloat16()
    ema = ModelEma(model, decay=0.9)
    ema.averages[0].fill_(1.001)
    with ema.applied():
        pass
    assert_close(ema.averages[0], torch.full((1, 2), 1.001), atol=0, rtol=0)


def test_invalid_decay() -> None:
    """A decay of 1 is rejected."""
    with pytest.raises(ValueError, match="decay is 1"):
        ModelEma(make_model(), 1)
