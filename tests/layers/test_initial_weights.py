"""Protects how layers of torch's own classes start, and that loaded weights aren't drawn again."""

import copy
import math
import pickle

import pytest
import torch
from torch import nn

from hf_detr.layers.initial_weights import (
    draw_zeros,
    input_projection,
    output_projection,
    starting,
    xavier_linear,
)

from ..tiny import class_of, tiny_config


def test_distributions() -> None:
    """Xavier's bound, that of a fused projection of three, and torch's own bias or none."""
    torch.manual_seed(0)
    bound = math.sqrt(6 / (256 + 512))
    for make, expected, has_bias in (
        (xavier_linear, bound, True),
        (output_projection, bound, False),
        (input_projection, bound / math.sqrt(2), False),
    ):
        layer = make(256, 512)
        assert type(layer) is nn.Linear and layer.weight.shape == (512, 256)
        assert 0.99 * expected < layer.weight.abs().max() <= expected + 1e-6
        assert 0.9 * (256**-0.5 if has_bias else 0) <= layer.bias.abs().max() <= 256**-0.5
        assert has_bias or not layer.bias.any()


def test_copies_start_the_same_way() -> None:
    """Copied and unpickled layers draw their own weights, not those of the first one."""
    layer = starting(nn.Linear(3, 2), draw_zeros)
    for again in (copy.deepcopy(layer), pickle.loads(pickle.dumps(layer))):
        nn.init.ones_(again.weight)
        again.draw_weights(again)
        assert not again.weight.any()
    assert not layer.weight.any() and not layer.bias.any()


@pytest.mark.parametrize("part", ["weight", "bias"])
def test_models_draw_only_what_is_missing(variant: str, part: str) -> None:
    """`_init_weights` draws as the layer says, and leaves a loaded weight or bias alone."""
    model = class_of(variant, "Model")(tiny_config(variant))
    layer = starting(nn.Linear(3, 2), draw_zeros)
    for parameter in layer.parameters():
        nn.init.ones_(parameter)
    getattr(layer, part)._is_hf_initialized = True
    model.query_position_embeddings = layer
    model.initialize_weights()
    other = "bias" if part == "weight" else "weight"
    assert getattr(layer, part).all() and not getattr(layer, other).any()
