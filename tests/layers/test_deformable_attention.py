"""Tests the attention module: names on disk, values, gradients and initial weights."""

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from transformers import DeformableDetrConfig
from transformers.models.deformable_detr.modeling_deformable_detr import (
    DeformableDetrMultiscaleDeformableAttention as TheirAttention,
)

from hf_detr.layers.deformable_attention import MultiScaleDeformableAttention

from ..operator_cases import starts

SHAPES = [(6, 5), (3, 2)]


def random_module(kernel: str = "auto") -> MultiScaleDeformableAttention:
    """A module of 16 channels, 4 heads, 2 levels, 3 points, far from its initial weights."""
    torch.manual_seed(0)
    attention = MultiScaleDeformableAttention(16, 4, num_levels=2, num_points=3, kernel=kernel)
    for parameter in attention.parameters():
        nn.init.normal_(parameter, std=0.3)
    return attention


def module_inputs(coordinates: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Query (2, 5, 16), value_states (2, 36, 16), mask (2, 36), reference points."""
    torch.manual_seed(1)
    mask = torch.ones(2, 36, dtype=torch.bool)
    mask[1, [4, 9, 33]] = False
    references = torch.rand(2, 5, 2, coordinates)
    query, states = torch.randn(2, 5, 16), torch.randn(2, 36, 16)
    return query.requires_grad_(), states.requires_grad_(), mask, references.requires_grad_()


def their_module(ours: MultiScaleDeformableAttention) -> TheirAttention:
    config = DeformableDetrConfig(d_model=16, num_feature_levels=2, disable_custom_kernels=True)
    theirs = TheirAttention(config, num_heads=4, n_points=3)
    theirs.load_state_dict(ours.state_dict())
    return theirs


@pytest.mark.parametrize("coordinates", [2, 4])
@pytest.mark.parametrize("masked", [False, True])
def test_module_equals_transformers(kernel: str, coordinates: int, masked: bool) -> None:
    """Names on disk, output, weights and gradients equal those of transformers."""
    ours = random_module(kernel)
    theirs = their_module(ours)
    query, states, mask, references = module_inputs(coordinates)
    arguments = (query, states, mask if masked else None, references, SHAPES, starts(SHAPES))
    output, nothing = ours(*arguments)
    again, (weights, locations) = ours(*arguments, return_weights=True)
    assert nothing is None
    torch.testing.assert_close(again, output, atol=1e-6, rtol=0)
    expected, expected_weights = theirs(
        query,
        attention_mask=mask if masked else None,
        encoder_hidden_states=states,
        reference_points=references,
        spatial_shapes=torch.tensor(SHAPES),
        spatial_shapes_list=SHAPES,
        level_start_index=torch.tensor(starts(SHAPES)),
    )
    torch.testing.assert_close(output, expected, atol=1e-5, rtol=0)
    torch.testing.assert_close(weights, expected_weights, atol=1e-6, rtol=0)
    assert locations.shape == (2, 5, 4, 2, 3, 2)
    inputs = (query, states, references)
    grads = torch.autograd.grad(output.square().sum(), [*inputs, *ours.parameters()])
    expected = torch.autograd.grad(expected.square().sum(), [*inputs, *theirs.parameters()])
    for grad, expected_grad in zip(grads, expected, strict=True):
        torch.testing.assert_close(grad, expected_grad, atol=1e-5, rtol=1e-4)


def test_shapes_as_tensor_and_as_list_agree() -> None:
    """Shapes may be a tensor or a list; weights are returned only if asked for."""
    query, states, mask, references = module_inputs(2)
    attention = random_module()
    expected, nothing = attention(query, states, mask, references, SHAPES, starts(SHAPES))
    assert nothing is None
    tensors = torch.tensor(SHAPES), torch.tensor(starts(SHAPES))
    got, _ = attention(query, states, mask, references, *tensors)
    torch.testing.assert_close(got, expected, atol=0, rtol=0)


def test_masked_tokens_have_no_influence() -> None:
    """Padding is sampled as zeros, whatever its values are."""
    query, states, mask, references = module_inputs(2)
    attention = random_module()
    expected, _ = attention(query, states, mask, references, SHAPES, starts(SHAPES))
    wild = states.detach().clone()
    wild[~mask] = 1e4
    got, _ = attention(query, wild, mask, references, SHAPES, starts(SHAPES))
    torch.testing.assert_close(got, expected, atol=0, rtol=0)


def test_initial_weights() -> None:
    """Offsets start as a ring of 8 directions, 1 to K pixels away, with equal attention."""
    torch.manual_seed(0)
    attention = MultiScaleDeformableAttention(64, 8, num_levels=2, num_points=3)
    ring = [(1, 0), (1, 1), (0, 1), (-1, 1), (-1, 0), (-1, -1), (0, -1), (1, -1)]
    expected = torch.tensor(ring).float()[:, None, None] * torch.arange(1, 4)[:, None]
    got = attention.sampling_offsets.bias.view(8, 2, 3, 2)
    torch.testing.assert_close(got, expected.expand(8, 2, 3, 2), atol=1e-5, rtol=0)
    assert not attention.sampling_offsets.weight.any()
    assert not any(parameter.any() for parameter in attention.attention_weights.parameters())
    bound = math.sqrt(6 / 128)
    for projection in (attention.value_proj, attention.output_proj):
        assert 0.98 * bound < projection.weight.abs().max() <= bound + 1e-6
        assert not projection.bias.any()


def test_initialisation_from_meta_and_of_loaded_weights() -> None:
    """Initial weights are the same after a start on the meta device, and loaded ones stay."""
    with torch.device("meta"):
        attention = MultiScaleDeformableAttention(16, 4, num_levels=2, num_points=3)
    attention = attention.to_empty(device="cpu")
    offsets = attention.sampling_offsets
    offsets.draw_weights(offsets)
    fresh = MultiScaleDeformableAttention(16, 4, num_levels=2, num_points=3)
    torch.testing.assert_close(offsets.bias, fresh.sampling_offsets.bias, atol=0, rtol=0)
    nn.init.ones_(offsets.bias)
    offsets.bias._is_hf_initialized = True
    offsets.draw_weights(offsets)
    assert (offsets.bias == 1).all()


def test_module_in_half_precision_and_autocast() -> None:
    """bfloat16 modules and autocast work, although their tensors differ in dtype."""
    query, states, mask, references = module_inputs(2)
    attention = random_module()
    arguments = (mask, references, SHAPES, starts(SHAPES))
    expected, _ = attention(query, states, *arguments)
    with torch.autocast("cpu", torch.bfloat16):
        got, _ = attention(query, states, *arguments)
    got.float().sum().backward()
    assert query.grad.isfinite().all()
    torch.testing.assert_close(got.float(), expected, atol=0.1, rtol=0)
    half = attention.bfloat16()(query.bfloat16(), states.bfloat16(), *arguments)[0]
    assert half.dtype == torch.bfloat16
    torch.testing.assert_close(half.float(), expected, atol=0.1, rtol=0)


def test_gradient_checkpointing() -> None:
    """Gradient checkpointing gives the same gradients."""
    query, states, mask, references = module_inputs(2)
    attention = random_module()

    def run(query: Tensor, states: Tensor) -> Tensor:
        return attention(query, states, mask, references, SHAPES, starts(SHAPES))[0]

    expected = torch.autograd.grad(run(query, states).square().sum(), (query, states))
    output = torch.utils.checkpoint.checkpoint(run, query, states, use_reentrant=False)
    got = torch.autograd.grad(output.square().sum(), (query, states))
    torch.testing.assert_close(got, expected, atol=0, rtol=0)


class OnFeatureMaps(nn.Module):
    """Attention of 5 queries to two feature maps, as a detector calls it."""

    def __init__(self) -> None:
        super().__init__()
        self.attention = random_module()

    def forward(self, query: Tensor, references: Tensor, fine: Tensor, coarse: Tensor) -> Tensor:
        states = torch.cat([fine.flatten(2), coarse.flatten(2)], dim=2).transpose(1, 2)
        shapes = [tuple(level.shape[-2:]) for level in (fine, coarse)]
        level_starts = [0, shapes[0][0] * shapes[0][1]]
        return self.attention(query, states, None, references, shapes, level_starts)[0]


def feature_maps(batch_size: int, height: int, width: int) -> tuple[Tensor, ...]:
    torch.manual_seed(2)
    fine = torch.randn(batch_size, 16, 2 * height, 2 * width)
    coarse = torch.randn(batch_size, 16, height, width)
    return torch.randn(batch_size, 5, 16), torch.rand(batch_size, 5, 2, 2), fine, coarse


@torch.no_grad()
def test_compiles_to_one_graph() -> None:
    """Compiled inference has no graph breaks and works for other sizes."""
    module = OnFeatureMaps()
    graphs = []

    def backend(graph: torch.fx.GraphModule, inputs: list) -> Callable:
        graphs.append(graph)
        return graph.forward

    compiled = torch.compile(module, fullgraph=True, dynamic=True, backend=backend)
    for sizes in [(3, 4, 7), (2, 6, 9), (4, 5, 6)]:
        inputs = feature_maps(*sizes)
        torch.testing.assert_close(compiled(*inputs), module(*inputs), atol=5e-6, rtol=0)
    assert len(graphs) == 1


def test_compiles_for_training() -> None:
    """Gradients of a compiled module equal those of the module."""
    module = OnFeatureMaps()
    inputs = [tensor.requires_grad_() for tensor in feature_maps(2, 4, 3)]
    compiled = torch.compile(module, fullgraph=True, backend="aot_eager")
    got = torch.autograd.grad(compiled(*inputs).square().sum(), inputs)
    expected = torch.autograd.grad(module(*inputs).square().sum(), inputs)
    torch.testing.assert_close(got, expected, atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_exports_with_dynamic_sizes() -> None:
    """The exported graph works for any batch and image size and has only torch's operators."""
    module = OnFeatureMaps()
    dynamic = torch.export.Dim.DYNAMIC
    sizes = ({0: dynamic}, {0: dynamic}, *[{0: dynamic, 2: dynamic, 3: dynamic}] * 2)
    program = torch.export.export(module, feature_maps(2, 4, 3), dynamic_shapes=sizes)
    assert "hf_detr" not in str(program.graph)
    for size in [(3, 5, 7), (2, 9, 4)]:
        inputs = feature_maps(*size)
        torch.testing.assert_close(program.module()(*inputs), module(*inputs), atol=1e-5, rtol=0)


def test_module_errors() -> None:
    """A wrong width, wrong references and wrong shapes are named."""
    with pytest.raises(ValueError, match="d_model 10 must be divisible by num_heads 4"):
        MultiScaleDeformableAttention(10, 4, num_levels=2, num_points=3)
    query, states, mask, references = module_inputs(2)
    attention = random_module()
    geometry = SHAPES, starts(SHAPES)
    for return_weights in (False, True):
        for shape in ((2, 5, 2, 3), (2, 5, 3, 2)):
            with pytest.raises(ValueError, match=r"must be \(2, 5, 2, 2 or 4\)"):
                attention(query, states, mask, torch.rand(shape), *geometry, return_weights)
    with pytest.raises(ValueError, match="value has 35 tokens"):
        attention(query, states[:, 1:], mask[:, 1:], references, *geometry)
