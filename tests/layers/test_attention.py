"""Protects attention: both paths, masks, and equality with torch's own module."""

import math

import pytest
import torch
from torch import Tensor, nn

from hf_detr.layers.attention import MultiHeadAttention, ProjectedAttention, multi_head_attention


def naive_attention(
    query: Tensor, key: Tensor, value: Tensor, num_heads: int, mask: Tensor | None
) -> tuple[Tensor, Tensor]:
    """Attention head by head, image by image, as the formula says."""
    width, value_width = query.shape[-1] // num_heads, value.shape[-1] // num_heads
    outputs, weights = [], []
    for image in range(len(query)):
        for head in range(num_heads):
            columns = slice(head * width, (head + 1) * width)
            scores = query[image, :, columns] @ key[image, :, columns].T / math.sqrt(width)
            if mask is not None:
                scores = scores.masked_fill(~mask.expand(2, *mask.shape[1:])[image], -torch.inf)
            weights.append(scores.softmax(-1))
            columns = slice(head * value_width, (head + 1) * value_width)
            outputs.append(weights[-1] @ value[image, :, columns])
    outputs = torch.stack(outputs).unflatten(0, (-1, num_heads))  # (B, M, Q, width)
    return outputs.transpose(1, 2).flatten(-2), torch.stack(weights).unflatten(0, (-1, num_heads))


def random_inputs(value_width: int = 12) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Query (2, 5, 8), key (2, 7, 8), value (2, 7, value_width) and a mask (2, 7)."""
    torch.manual_seed(0)
    mask = torch.ones(2, 7, dtype=torch.bool)
    mask[0, 4:] = False
    mask[1, [0, 6]] = False
    return torch.randn(2, 5, 8), torch.randn(2, 7, 8), torch.randn(2, 7, value_width), mask


def some_mask(kind: str) -> Tensor | None:
    """No mask, one over keys (2, 7), or one over pairs: (2, 5, 7), or (1, 5, 7) for all images."""
    keys = random_inputs()[-1]
    pairs = torch.rand(2, 5, 7, generator=torch.Generator().manual_seed(3)) < 0.5
    pairs[..., 2] = True
    return {"none": None, "keys": keys, "pairs": pairs, "shared pairs": pairs[:1]}[kind]


@pytest.mark.parametrize("masked", ["none", "keys", "pairs", "shared pairs"])
@pytest.mark.parametrize("value_width", [4, 8, 12])
def test_both_paths_equal_the_formula(masked: str, value_width: int) -> None:
    """Protects the fused and the explicit path, with values of another width, and the weights."""
    query, key, value, _ = random_inputs(value_width)
    mask = some_mask(masked)
    expected, expected_weights = naive_attention(query, key, value, 2, mask)
    fused, no_weights = multi_head_attention(query, key, value, 2, mask)
    explicit, weights = multi_head_attention(query, key, value, 2, mask, return_weights=True)
    assert no_weights is None
    torch.testing.assert_close(fused, expected, atol=1e-5, rtol=0)
    torch.testing.assert_close(explicit, expected, atol=1e-5, rtol=0)
    torch.testing.assert_close(weights, expected_weights, atol=1e-6, rtol=0)


def test_weights_are_shares_of_what_may_be_seen() -> None:
    """Protects that weights sum to one and are exactly zero on padding."""
    query, key, value, mask = random_inputs()
    _, weights = multi_head_attention(query, key, value, 2, mask, return_weights=True)
    assert weights.shape == (2, 2, 5, 7)
    torch.testing.assert_close(weights.sum(-1), torch.ones(2, 2, 5), atol=1e-6, rtol=0)
    assert (weights[0, ..., 4:] == 0).all() and (weights[1][..., [0, 6]] == 0).all()


def test_padding_has_no_influence() -> None:
    """Protects that masked keys and values, however wild, change nothing."""
    query, key, value, mask = random_inputs()
    wild_key, wild_value = key.clone(), value.clone()
    wild_key[~mask], wild_value[~mask] = 100.0, 1e4
    for return_weights in (False, True):
        expected, _ = multi_head_attention(query, key, value, 2, mask, 0.0, return_weights)
        got, _ = multi_head_attention(query, wild_key, wild_value, 2, mask, 0.0, return_weights)
        torch.testing.assert_close(got, expected, atol=1e-5, rtol=0)


def test_full_mask_is_no_mask() -> None:
    """Protects that a mask of all real keys equals none."""
    query, key, value, mask = random_inputs()
    everything = torch.ones_like(mask)
    for return_weights in (False, True):
        expected, _ = multi_head_attention(query, key, value, 2, None, 0.0, return_weights)
        got, _ = multi_head_attention(query, key, value, 2, everything, 0.0, return_weights)
        torch.testing.assert_close(got, expected, atol=1e-6, rtol=0)


def with_weights_of(theirs: nn.MultiheadAttention) -> MultiHeadAttention:
    """Ours with torch's weights: rows of its fused projection are query, key, value."""
    ours = MultiHeadAttention(theirs.embed_dim, theirs.num_heads, dropout=0.0)
    projections = (ours.q_proj, ours.k_proj, ours.v_proj)
    weights, biases = theirs.in_proj_weight.chunk(3), theirs.in_proj_bias.chunk(3)
    with torch.no_grad():
        for projection, weight, bias in zip(projections, weights, biases, strict=True):
            projection.weight.copy_(weight)
            projection.bias.copy_(bias)
        ours.out_proj.load_state_dict(theirs.out_proj.state_dict())
    return ours


def test_module_equals_torch() -> None:
    """Protects outputs, weights and gradients against the module the original is made of."""
    torch.manual_seed(0)
    theirs = nn.MultiheadAttention(16, 4, batch_first=True)
    nn.init.normal_(theirs.in_proj_bias)
    nn.init.normal_(theirs.out_proj.bias)
    ours = with_weights_of(theirs)
    query = torch.randn(2, 5, 16, requires_grad=True)
    key, value = torch.randn(2, 7, 16), torch.randn(2, 7, 16)
    mask = random_inputs()[-1]
    expected, expected_weights = theirs(
        query, key, value, key_padding_mask=~mask, average_attn_weights=False
    )
    (expected_grad,) = torch.autograd.grad(expected.square().sum(), query)
    for return_weights in (False, True):
        got, weights = ours(query, key, value, mask, return_weights)
        torch.testing.assert_close(got, expected, atol=1e-5, rtol=0)
        (grad,) = torch.autograd.grad(got.square().sum(), query)
        torch.testing.assert_close(grad, expected_grad, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(weights, expected_weights, atol=1e-6, rtol=0)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("return_weights", [False, True])
def test_half_precision(dtype: torch.dtype, return_weights: bool) -> None:
    """Protects that half precision runs, stays in its dtype and is about as exact as it can be."""
    torch.manual_seed(0)
    attention = MultiHeadAttention(8, 2, dropout=0.0)
    query, key, value, mask = random_inputs(value_width=8)
    expected, _ = attention(query, key, value, mask)
    inputs = (tensor.to(dtype) for tensor in (query, key, value))
    got, _ = attention.to(dtype)(*inputs, mask, return_weights)
    assert got.dtype == dtype
    torch.testing.assert_close(got.float(), expected, atol=3e-2, rtol=0)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("autocast", [False, True])
def test_gradients_in_half_precision(dtype: torch.dtype, autocast: bool) -> None:
    """Protects training on CPUs: the fused path computes in float32, also within autocast."""
    *values, mask = random_inputs(value_width=6)
    halves = [value.to(dtype) for value in values]
    got, expected = ([one.clone().requires_grad_() for one in halves] for _ in range(2))
    with torch.autocast("cpu", dtype, enabled=autocast):
        output = multi_head_attention(*got, 2, mask)[0]
    assert output.dtype == dtype
    exact = naive_attention(*(one.float() for one in expected), 2, mask)[0]
    torch.testing.assert_close(output, exact.to(dtype), atol=0, rtol=0.01)
    output.sum().backward()
    exact.to(dtype).sum().backward()
    for one, other in zip(got, expected, strict=True):
        torch.testing.assert_close(one.grad, other.grad, atol=1e-4, rtol=0.01)


@pytest.mark.filterwarnings("ignore")  # of the tracer
def test_traced_in_half_precision() -> None:
    """Protects torch.jit.trace, which records with gradients and checks the graph without."""
    inputs = [value.bfloat16().requires_grad_() for value in random_inputs(value_width=8)[:3]]
    traced = torch.jit.trace(lambda *tensors: multi_head_attention(*tensors, 2)[0], inputs)
    expected = multi_head_attention(*inputs, 2)[0]
    torch.testing.assert_close(traced(*inputs), expected, atol=2e-2, rtol=0)


@pytest.mark.parametrize("return_weights", [False, True])
def test_dropout_only_in_training(return_weights: bool) -> None:
    """Protects that dropout acts in training, on weights, and not at inference."""
    torch.manual_seed(0)
    attention = MultiHeadAttention(8, 2, dropout=0.5)
    query, key, value, mask = random_inputs(value_width=8)

    def run() -> Tensor:
        return attention(query, key, value, mask, return_weights)[0]

    attention.train()
    assert not torch.equal(run(), run())
    attention.eval()
    assert torch.equal(run(), run())


def test_initialisation() -> None:
    """Protects Xavier of the original's fused (3D, D) projection, of (D, D), and zero biases."""
    torch.manual_seed(0)
    width = 64
    attention = MultiHeadAttention(width, 4, dropout=0.0)
    fused_bound, bound = math.sqrt(6 / (4 * width)), math.sqrt(6 / (2 * width))
    for projection in (attention.q_proj, attention.k_proj, attention.v_proj):
        assert 0.99 * fused_bound < projection.weight.abs().max() <= fused_bound + 1e-6
        assert not projection.bias.any()
    assert 0.99 * bound < attention.out_proj.weight.abs().max() <= bound + 1e-6
    assert not attention.out_proj.bias.any()


def test_wider_queries_than_values() -> None:
    """Protects attention with queries and keys twice as wide as values (1e-5)."""
    torch.manual_seed(0)
    attention = ProjectedAttention(8, num_heads=2, dropout=0.0)
    query, key, value = torch.randn(2, 3, 16), torch.randn(2, 5, 16), torch.randn(2, 5, 8)
    got, _ = attention(query, key, value)
    heads = []
    for head in range(2):
        q, k = query[..., head * 8 : head * 8 + 8], key[..., head * 8 : head * 8 + 8]
        weights = (q @ k.transpose(1, 2) / 8**0.5).softmax(-1)
        heads.append(weights @ value[..., head * 4 : head * 4 + 4])
    expected = attention.out_proj(torch.cat(heads, dim=-1))
    torch.testing.assert_close(got, expected, atol=1e-5, rtol=0)
