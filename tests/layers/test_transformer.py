"""Protects the encoder and the transformer layer: against torch's own post-norm encoder."""

import math
import weakref
from collections.abc import Callable
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor, nn

from hf_detr.layers import transformer
from hf_detr.layers.feature_pyramid import FeaturePyramid
from hf_detr.layers.transformer import Encoder, EncoderLayer, GlobalSelfAttention, TransformerLayer

WIDTH, HEADS, HIDDEN = 16, 4, 24


def make_config(**changes: object) -> SimpleNamespace:
    """What encoder and layers read of a configuration."""
    values = {
        "d_model": WIDTH,
        "encoder_layers": 2,
        "encoder_ffn_dim": HIDDEN,
        "dropout": 0.0,
        "activation_dropout": 0.0,
        "activation_function": "relu",
        "normalize_before": False,
    }
    return SimpleNamespace(**{**values, **changes})


def make_encoder(**changes: object) -> Encoder:
    """An encoder with global attention, whose biases and norms aren't trivial."""
    torch.manual_seed(0)
    encoder = Encoder(make_config(**changes), lambda _: GlobalSelfAttention(WIDTH, HEADS, 0.0))
    for parameter in encoder.parameters():
        if parameter.ndim == 1:
            nn.init.normal_(parameter, mean=0.5)
    return encoder.eval()


def random_tokens() -> tuple[Tensor, Tensor, FeaturePyramid]:
    """Tokens and positions (2, 6, D), and a pyramid whose second image has 4 real tokens."""
    torch.manual_seed(1)
    mask = torch.tensor([[True] * 6, [True] * 4 + [False] * 2])
    pyramid = FeaturePyramid(mask, [(2, 3)], valid_ratios=torch.ones(2, 1, 2))
    return torch.randn(2, 6, WIDTH), torch.randn(2, 6, WIDTH), pyramid


def torch_layer(layer: EncoderLayer) -> nn.TransformerEncoderLayer:
    """torch's post-norm layer with the same weights."""
    theirs = nn.TransformerEncoderLayer(WIDTH, HEADS, HIDDEN, dropout=0.0, batch_first=True).eval()
    attention = layer.self_attn
    projections = (attention.q_proj, attention.k_proj, attention.v_proj)
    with torch.no_grad():
        theirs.self_attn.in_proj_weight.copy_(torch.cat([p.weight for p in projections]))
        theirs.self_attn.in_proj_bias.copy_(torch.cat([p.bias for p in projections]))
    for our_part, their_part in (
        (attention.out_proj, theirs.self_attn.out_proj),
        (layer.fc1, theirs.linear1),
        (layer.fc2, theirs.linear2),
        (layer.self_attn_layer_norm, theirs.norm1),
        (layer.final_layer_norm, theirs.norm2),
    ):
        their_part.load_state_dict(our_part.state_dict())
    return theirs


def test_encoder_equals_torch_without_positions() -> None:
    """Protects residuals, norms, feed-forward and their order, on the real tokens."""
    encoder = make_encoder()
    tokens, positions, pyramid = random_tokens()
    got = encoder(tokens, torch.zeros_like(positions), pyramid).last_hidden_state
    expected = tokens
    for layer in encoder.layers:
        expected = torch_layer(layer)(expected, src_key_padding_mask=~pyramid.mask)
    torch.testing.assert_close(got[pyramid.mask], expected[pyramid.mask], atol=1e-5, rtol=0)


def calls_of_fc1(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, ...]]:
    """Shapes that the first linear layer of all feed-forward networks gets from now on."""
    shapes = []

    def record(layer: nn.Module, tensor: Tensor) -> Tensor:
        if getattr(layer, "out_features", None) == HIDDEN:
            shapes.append(tuple(tensor.shape))
        return layer(tensor)

    monkeypatch.setattr(transformer, "linear", record)
    return shapes


@pytest.mark.parametrize("normalize_before", [False, True])
def test_tokens_by_parts(normalize_before: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Protects that many tokens, transformed some at a time in inference, give the same."""
    encoder = make_encoder(normalize_before=normalize_before)
    inputs = random_tokens()
    expected = encoder(*inputs).last_hidden_state
    monkeypatch.setattr(transformer, "PART_BYTES", 2 * HIDDEN * 4)
    shapes = calls_of_fc1(monkeypatch)
    with torch.no_grad():
        got = encoder(*inputs).last_hidden_state
    assert shapes == 2 * 6 * [(2, WIDTH)]
    torch.testing.assert_close(got, expected, atol=1e-5, rtol=0)


def hook(encoder: Encoder) -> None:
    encoder.layers[0].fc1.register_forward_hook(lambda *_: None)
    encoder.layers[1].final_layer_norm.register_forward_pre_hook(lambda *_: None)


def replace(encoder: Encoder) -> None:
    for layer in encoder.layers:
        layer.fc2 = nn.Sequential(layer.fc2)


class OwnEncoderLayer(EncoderLayer):
    """A layer whose feed-forward network might mix tokens."""


def subclass(encoder: Encoder) -> None:
    for layer in encoder.layers:
        layer.__class__ = OwnEncoderLayer


@pytest.mark.parametrize("change", [hook, replace, subclass, Encoder.train])
def test_tokens_at_once(
    change: Callable[[Encoder], object], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Protects hooks, replaced layers, subclasses and dropout, which may depend on all tokens."""
    encoder, inputs = make_encoder(), random_tokens()
    monkeypatch.setattr(transformer, "PART_BYTES", 2 * HIDDEN * 4)
    change(encoder)
    shapes = calls_of_fc1(monkeypatch)
    with torch.no_grad():
        encoder(*inputs)
    encoder(*inputs)  # with gradients
    assert shapes == 4 * [(2, 6, WIDTH)]


def test_exported_layers_take_any_number_of_tokens(monkeypatch: pytest.MonkeyPatch) -> None:
    """Protects graphs from a limit on tokens, which are transformed at once in them."""
    monkeypatch.setattr(transformer, "PART_BYTES", 16 * HIDDEN * 4)
    layer = make_encoder().layers[0]

    class Layer(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = layer

        def forward(self, tokens: Tensor, positions: Tensor) -> Tensor:
            pyramid = FeaturePyramid(None, [(2, 3)], valid_ratios=torch.ones(1, 1, 2))
            return self.layer(tokens, positions, pyramid)[0]

    few, many = torch.randn(2, 6, WIDTH), torch.randn(2, 80, WIDTH)
    count = torch.export.Dim("count", max=1000)
    with torch.no_grad():
        exported = torch.export.export(Layer(), (few, few), dynamic_shapes=2 * ({1: count},))
        got, expected = exported.module()(many, many), Layer()(many, many)
    torch.testing.assert_close(got, expected, atol=1e-5, rtol=0)


def test_positions_go_to_queries_and_keys_only() -> None:
    """Protects that positions steer attention and aren't mixed into what is attended to."""
    attention = make_encoder().layers[0].self_attn
    tokens, positions, pyramid = random_tokens()
    got, _ = attention(tokens, positions, pyramid, False)
    moved = tokens + positions
    expected, _ = super(GlobalSelfAttention, attention).forward(moved, moved, tokens, pyramid.mask)
    torch.testing.assert_close(got, expected, atol=1e-6, rtol=0)


def test_every_layer_gets_the_positions() -> None:
    """Protects that positions are added in each layer, not once at the input."""
    encoder = make_encoder()
    tokens, positions, pyramid = random_tokens()
    expected = tokens
    for layer in encoder.layers:
        expected, _ = layer(expected, positions, pyramid)
    got = encoder(tokens, positions, pyramid).last_hidden_state
    torch.testing.assert_close(got, expected, atol=1e-6, rtol=0)
    once, _ = encoder.layers[1](
        encoder.layers[0](tokens, positions, pyramid)[0], torch.zeros_like(positions), pyramid
    )
    assert (got - once).abs().max() > 1e-2


def test_padding_has_no_influence_on_real_tokens() -> None:
    """Protects the memory of an image from the padding beside it."""
    encoder = make_encoder()
    tokens, positions, pyramid = random_tokens()
    wild = tokens.clone()
    wild[~pyramid.mask] = 50.0
    expected = encoder(tokens, positions, pyramid).last_hidden_state[pyramid.mask]
    got = encoder(wild, positions, pyramid).last_hidden_state[pyramid.mask]
    torch.testing.assert_close(got, expected, atol=1e-5, rtol=0)


def test_states_and_weights_only_when_asked() -> None:
    """Protects what is returned: input and every layer's output, one tensor of weights a layer."""
    encoder = make_encoder(encoder_layers=3)
    tokens, positions, pyramid = random_tokens()
    bare = encoder(tokens, positions, pyramid)
    assert bare.hidden_states is None and bare.attentions is None
    full = encoder(tokens, positions, pyramid, output_hidden_states=True, output_attentions=True)
    assert len(full.hidden_states) == 4 and len(full.attentions) == 3
    assert torch.equal(full.hidden_states[0], tokens)
    assert torch.equal(full.hidden_states[-1], full.last_hidden_state)
    torch.testing.assert_close(full.last_hidden_state, bare.last_hidden_state, atol=1e-5, rtol=0)
    for weights in full.attentions:
        assert weights.shape == (2, HEADS, 6, 6)
        assert (weights[1, ..., 4:] == 0).all()


def test_feed_forward_by_formula() -> None:
    """Protects norm(x + W2 act(W1 x)) and the activation that the configuration names."""
    torch.manual_seed(0)
    layer = TransformerLayer(make_config(activation_function="gelu"), ffn_dim=HIDDEN).eval()
    tokens = torch.randn(2, 3, WIDTH)
    inner = nn.functional.gelu(layer.fc1(tokens))
    expected = layer.final_layer_norm(tokens + layer.fc2(inner))
    torch.testing.assert_close(layer.feed_forward(tokens), expected, atol=1e-6, rtol=0)


@pytest.mark.parametrize("kind", ["dropout", "activation_dropout"])
def test_both_dropouts_act_in_training_only(kind: str) -> None:
    """Protects dropout on what is added, and inside the feed-forward network."""
    torch.manual_seed(0)
    layer = TransformerLayer(make_config(**{kind: 0.5}), ffn_dim=HIDDEN)
    tokens = torch.randn(2, 3, WIDTH)
    layer.train()
    assert not torch.equal(layer.feed_forward(tokens), layer.feed_forward(tokens))
    layer.eval()
    assert torch.equal(layer.feed_forward(tokens), layer.feed_forward(tokens))


def test_dropped_updates_leave_the_residual() -> None:
    """Protects that dropout takes the update away, never the token itself."""
    layer = TransformerLayer(make_config(dropout=1.0), ffn_dim=HIDDEN).train()
    tokens = torch.randn(2, 3, WIDTH)
    expected = layer.final_layer_norm(tokens)
    torch.testing.assert_close(layer.feed_forward(tokens), expected, atol=1e-6, rtol=0)


def test_initialisation() -> None:
    """Protects Xavier uniform for the feed-forward weights."""
    torch.manual_seed(0)
    layer = TransformerLayer(make_config(d_model=64), ffn_dim=192)
    bound = math.sqrt(6 / (64 + 192))
    for linear in (layer.fc1, layer.fc2):
        assert 0.99 * bound < linear.weight.abs().max() <= bound + 1e-6


def test_gradient_checkpointing_keeps_the_gradients() -> None:
    """Protects that layers recompute to the same gradients, positions' included."""
    encoder = make_encoder().train()
    tokens, positions, pyramid = random_tokens()
    positions.requires_grad_()

    def gradients() -> tuple[Tensor, ...]:
        total = encoder(tokens, positions, pyramid).last_hidden_state[pyramid.mask].square().sum()
        return torch.autograd.grad(total, (positions, *encoder.parameters()))

    expected = gradients()
    calls = []

    def recompute(function, *args):
        calls.append(function)
        return torch.utils.checkpoint.checkpoint(function, *args, use_reentrant=False)

    for layer in encoder.layers:
        layer.gradient_checkpointing = True
        layer._gradient_checkpointing_func = recompute
    for got, grad in zip(gradients(), expected, strict=True):
        torch.testing.assert_close(got, grad, atol=1e-4, rtol=1e-4)
    assert len(calls) == len(encoder.layers)


def test_states_between_layers_are_freed() -> None:
    """In inference an output that nobody asked for is gone as soon as the next layer has run."""
    encoder, (tokens, *geometry) = make_encoder(encoder_layers=4), random_tokens()
    outputs: list[weakref.ref[Tensor]] = []

    def remember(layer: nn.Module, inputs: tuple, output: tuple[Tensor, Tensor | None]) -> None:
        assert [ref() is not None for ref in outputs[:-1]] == [False] * len(outputs[:-1])
        outputs.append(weakref.ref(output[0]))

    for layer in encoder.layers:
        layer.register_forward_hook(remember)
    with torch.no_grad():
        encoder(tokens, *geometry)
    assert len(outputs) == 4
