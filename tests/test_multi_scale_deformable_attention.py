"""Protects deformable attention: values and gradients of both formulations, and the module."""

import itertools
import math
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers import DeformableDetrConfig
from transformers.models.deformable_detr.modeling_deformable_detr import (
    DeformableDetrMultiscaleDeformableAttention as TheirAttention,
)

from hf_detr import embedding_bag_sampling
from hf_detr.multi_scale_deformable_attention import (
    MultiScaleDeformableAttention,
    multi_scale_deformable_attention,
)

FIXTURES = Path(__file__).parent / "fixtures"
NAMES = ("value", "sampling_locations", "attention_weights")


@pytest.fixture(params=["embedding_bag", "grid_sample"])
def formulation(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Runs a test with what the CPU uses, then with what accelerators and exports use."""
    if request.param == "grid_sample":
        monkeypatch.setattr(torch.compiler, "is_exporting", lambda: True)
    return request.param


def starts(shapes: list[tuple[int, int]]) -> list[int]:
    return [0, *itertools.accumulate(height * width for height, width in shapes)][:-1]


def random_inputs(
    shapes: list[tuple[int, int]],
    batch_size: int = 2,
    num_queries: int = 5,
    num_heads: int = 2,
    num_points: int = 3,
    width: int = 4,
    dtype: torch.dtype = torch.float64,
    seed: int = 0,
) -> list[Tensor]:
    """Value, locations (a fifth of them outside) and weights, all with gradients."""
    generator = torch.Generator().manual_seed(seed)
    points = (batch_size, num_queries, num_heads, len(shapes), num_points)
    tokens = sum(height * width for height, width in shapes)
    value = torch.randn(
        batch_size, tokens, num_heads, width, dtype=torch.float64, generator=generator
    )
    locations = torch.rand(*points, 2, dtype=torch.float64, generator=generator) * 1.4 - 0.2
    weights = torch.rand(points, dtype=torch.float64, generator=generator)
    weights = weights / weights.sum((-2, -1), keepdim=True)
    return [tensor.to(dtype).requires_grad_() for tensor in (value, locations, weights)]


def attend(shapes: list[tuple[int, int]], value: Tensor, *points: Tensor) -> Tensor:
    return multi_scale_deformable_attention(value, shapes, starts(shapes), *points)


def naive_sample(image: Tensor, x: float, y: float) -> Tensor:
    """Bilinear sample of `image` (h, w, C) at pixel (x, y); zeros outside."""
    sample = torch.zeros_like(image[0, 0])
    for column, line in itertools.product(
        (math.floor(x), math.floor(x) + 1), (math.floor(y), math.floor(y) + 1)
    ):
        if 0 <= line < image.shape[0] and 0 <= column < image.shape[1]:
            sample += (1 - abs(x - column)) * (1 - abs(y - line)) * image[line, column]
    return sample


def naive_attention(
    shapes: list[tuple[int, int]], value: Tensor, locations: Tensor, weights: Tensor
) -> Tensor:
    """Eq. 3 of the paper, point by point."""
    batch_size, num_queries, num_heads, num_levels, num_points = weights.shape
    output = value.new_zeros(batch_size, num_queries, num_heads, value.shape[-1])
    levels = value.split([height * width for height, width in shapes], dim=1)
    for b, q, m, level, k in itertools.product(*map(range, weights.shape)):
        height, width = shapes[level]
        image = levels[level][b, :, m].view(height, width, -1)
        x, y = locations[b, q, m, level, k].tolist()
        sample = naive_sample(image, x * width - 0.5, y * height - 0.5)
        output[b, q, m] += weights[b, q, m, level, k] * sample
    return output.flatten(2)


# ---------------------------------------------------------------- the operator


@pytest.mark.parametrize("seed", range(6))
def test_equals_the_formula(formulation: str, seed: int) -> None:
    """Protects the sum of Eq. 3 for any number of levels, points, heads, channels and images."""
    generator = torch.Generator().manual_seed(seed)

    def draw(most: int) -> int:
        return int(torch.randint(1, most + 1, (1,), generator=generator))

    shapes = [(draw(7), draw(7)) for _ in range(draw(5))]
    inputs = random_inputs(shapes, draw(3), draw(6), draw(3), draw(4), draw(9), seed=seed)
    inputs = [tensor.detach() for tensor in inputs]
    expected = naive_attention(shapes, *inputs)
    torch.testing.assert_close(attend(shapes, *inputs), expected, atol=1e-12, rtol=0)


def check_reference(cases: dict[str, Tensor]) -> None:
    names = sorted({key.split("/")[0] for key in cases})
    for name in names:
        case = {key.split("/")[1]: cases[key] for key in cases if key.split("/")[0] == name}
        inputs = [case[key].requires_grad_() for key in NAMES]
        shapes, level_starts = case["spatial_shapes"], case["level_start_index"]
        output = multi_scale_deformable_attention(inputs[0], shapes, level_starts, *inputs[1:])
        grads = torch.autograd.grad(output, inputs, case["grad_output"])
        torch.testing.assert_close(output, case["output"], atol=1e-10, rtol=0, msg=name)
        for key, grad in zip(NAMES, grads, strict=True):
            expected = case[f"grad_{key}"]
            torch.testing.assert_close(grad, expected, atol=1e-10, rtol=0, msg=f"{name} {key}")


def test_reference_of_the_fixture(formulation: str) -> None:
    """Protects output and gradients, samples exactly on pixels and on the outer border too."""
    check_reference(load_file(FIXTURES / "ms_deform_attn_reference.safetensors"))


def test_reference_of_all_shapes(formulation: str, reference_dir: Path) -> None:
    """Protects output and gradients against all recorded cases of the original."""
    check_reference(load_file(reference_dir / "ops" / "ms_deform_attn.safetensors"))


def test_gradients_are_those_of_the_output(formulation: str) -> None:
    """Protects all gradients against finite differences."""
    shapes = [(3, 4), (2, 1)]
    inputs = random_inputs(shapes, num_points=2, width=3)
    assert torch.autograd.gradcheck(lambda *tensors: attend(shapes, *tensors), inputs, eps=1e-6)


def test_formulations_agree_over_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Protects block boundaries: more queries than a block, several images, all gradients."""
    monkeypatch.setattr(embedding_bag_sampling, "QUERIES_PER_THREAD", 3)
    shapes = [(6, 5), (3, 2)]
    inputs = random_inputs(shapes, num_queries=6 * torch.get_num_threads() + 2)
    results = []
    for is_exporting in (False, True):
        monkeypatch.setattr(torch.compiler, "is_exporting", lambda result=is_exporting: result)
        output = attend(shapes, *inputs)
        grads = torch.autograd.grad(output.sin().sum(), inputs)
        results.append([output, *grads])
    torch.testing.assert_close(*results, atol=1e-9, rtol=1e-9)


@pytest.mark.parametrize(
    ("dtype", "tolerance"), [(torch.float32, 2e-6), (torch.bfloat16, 8e-3), (torch.float16, 1e-3)]
)
def test_dtypes(formulation: str, dtype: torch.dtype, tolerance: float) -> None:
    """Protects that each dtype's error is that of rounding its result once."""
    shapes = [(6, 5), (3, 2)]
    inputs = [tensor.to(dtype).detach().requires_grad_() for tensor in random_inputs(shapes)]
    exact = [tensor.detach().double().requires_grad_() for tensor in inputs]
    output, expected = attend(shapes, *inputs), attend(shapes, *exact)
    assert output.dtype == dtype
    torch.testing.assert_close(output.double(), expected, atol=tolerance, rtol=tolerance)
    direction = torch.randn_like(output)
    grads = torch.autograd.grad(output, inputs, direction)
    expected_grads = torch.autograd.grad(expected, exact, direction.double())
    for tensor, grad, expected in zip(inputs, grads, expected_grads, strict=True):
        assert grad.dtype == tensor.dtype
        atol = 8 * tolerance  # location gradients are multiplied by the level's size
        torch.testing.assert_close(grad.double(), expected, atol=atol, rtol=tolerance)


def test_mixed_dtypes(formulation: str) -> None:
    """Protects autocast: half values with float32 locations, whose precision is kept."""
    shapes = [(6, 5), (3, 2)]
    value, locations, weights = random_inputs(shapes, dtype=torch.float32)
    got = attend(shapes, value.bfloat16(), locations, weights)
    expected = attend(shapes, value.bfloat16().float(), locations, weights)
    assert got.dtype == torch.bfloat16
    torch.testing.assert_close(got, expected.bfloat16(), atol=0, rtol=0)


@pytest.mark.parametrize("far", [math.inf, -math.inf, 1e30, -1e30, 1e9, -3.0])
def test_far_locations_sample_zero(formulation: str, far: float) -> None:
    """Protects that no location, however far, becomes an index or a gradient."""
    shapes = [(3, 4), (2, 1)]
    value, locations, weights = random_inputs(shapes, dtype=torch.float32)
    locations = locations.detach().clone()
    locations[0, 1, :, 0, :, 0] = far
    locations[1, 2, :, 1, 0] = far
    locations.requires_grad_()
    output = attend(shapes, value, locations, weights)
    kept = weights.detach().clone()
    kept[0, 1, :, 0] = 0
    kept[1, 2, :, 1, 0] = 0
    with torch.no_grad():
        expected = attend(shapes, value, locations.nan_to_num(0, 0, 0).clamp(-1, 2), kept)
    torch.testing.assert_close(output, expected, atol=1e-6, rtol=0)
    grads = torch.autograd.grad(output.sum(), (value, locations, weights))
    assert all(grad.isfinite().all() for grad in grads)
    assert not grads[1][0, 1, :, 0].any() and not grads[2][1, 2, :, 1, 0].any()


def test_nan_locations_show(formulation: str) -> None:
    """Protects that NaN reaches the output of its query's head, and no other output."""
    shapes = [(3, 4), (2, 1)]
    value, locations, weights = (tensor.detach() for tensor in random_inputs(shapes))
    expected = attend(shapes, value, locations, weights).unflatten(-1, (2, 4))
    locations[1, 2, 0, 1, 1, 0] = math.nan
    locations[0, 3, 1, 0, 0] = math.nan
    got = attend(shapes, value, locations, weights).unflatten(-1, (2, 4))
    assert got[1, 2, 0].isnan().all() and got[0, 3, 1].isnan().all()
    expected[1, 2, 0], expected[0, 3, 1] = math.nan, math.nan
    torch.testing.assert_close(got, expected, equal_nan=True, atol=1e-12, rtol=0)


def test_wild_values_stay_where_they_are(formulation: str) -> None:
    """Protects that samples outside don't read pixels: a NaN there would spread."""
    shapes = [(3, 4), (2, 1)]
    value, locations, weights = (tensor.detach() for tensor in random_inputs(shapes))
    locations[:] = 1.5
    output = attend(shapes, torch.full_like(value, math.nan), locations, weights)
    torch.testing.assert_close(output, torch.zeros_like(output), atol=0, rtol=0)


@pytest.mark.parametrize("empty", ["batch_size", "num_queries", "num_points", "width"])
def test_empty_inputs(empty: str) -> None:
    """Protects that nothing in gives nothing, or zeros, out and gradients of the right shape."""
    shapes = [(3, 4), (2, 1)]
    inputs = random_inputs(shapes, **{empty: 0})
    output = attend(shapes, *inputs)
    batch_size, num_queries, num_heads = inputs[2].shape[:3]
    assert output.shape == (batch_size, num_queries, num_heads * inputs[0].shape[-1])
    grads = torch.autograd.grad(output.sum(), inputs)
    for tensor, grad in zip(inputs, grads, strict=True):
        torch.testing.assert_close(grad, torch.zeros_like(tensor), atol=0, rtol=0)


def test_strides_do_not_matter(formulation: str) -> None:
    """Protects inputs and output gradients that are transposed or expanded views."""
    shapes = [(3, 4), (2, 1)]
    inputs = random_inputs(shapes)
    expected = attend(shapes, *inputs)
    grads = torch.autograd.grad(expected.sum(), inputs)
    views = [tensor.detach().transpose(0, 1).contiguous().transpose(0, 1) for tensor in inputs]
    views = [view.requires_grad_() for view in views]
    assert not any(view.is_contiguous() for view in views)
    got = attend(shapes, *views)
    torch.testing.assert_close(got, expected, atol=1e-12, rtol=0)
    got_grads = torch.autograd.grad(got.sum(), views)  # of an expanded scalar
    torch.testing.assert_close(got_grads, grads, atol=1e-12, rtol=0)


@pytest.mark.filterwarnings("ignore:The .grad attribute")  # which opcheck reads
def test_operator_keeps_torch_rules() -> None:
    """Protects schema, shapes and strides under tracing, and autograd of the registered op."""
    shapes = [(3, 4), (2, 1)]
    sizes = [size for shape in shapes for size in shape]
    operator = torch.ops.hf_detr.sample_with_embedding_bag.default
    torch.library.opcheck(operator, (*random_inputs(shapes, dtype=torch.float32), sizes))


def test_second_derivatives_are_refused() -> None:
    """Protects from a second derivative that would silently lack terms."""
    shapes = [(3, 4)]
    inputs = random_inputs(shapes)
    (grad,) = torch.autograd.grad(attend(shapes, *inputs).sum(), inputs[1], create_graph=True)
    with pytest.raises(RuntimeError):
        grad.sum().backward()


ERRORS = [
    ({"value": torch.zeros(1, 14, 2, 4, dtype=torch.long)}, TypeError, "value must hold floating"),
    ({"value": torch.zeros(1, 14, 8)}, ValueError, r"value must be \(B, S, M, C\)"),
    ({"value": torch.zeros(2, 14, 2, 4)}, ValueError, "agree in B and M"),
    ({"value": torch.zeros(1, 13, 2, 4)}, ValueError, "value has 13 tokens"),
    ({"sampling_locations": torch.zeros(1, 5, 2, 2, 3, 3)}, ValueError, "last axis of 2"),
    ({"sampling_locations": torch.zeros(1, 4, 2, 2, 3, 2)}, ValueError, "shape of attention_w"),
    ({"spatial_shapes": [(3, 4)]}, ValueError, "2 levels, but spatial_shapes has 1"),
    ({"spatial_shapes": [(3, 4), (2,)]}, ValueError, r"must be \(h, w\)"),
    ({"spatial_shapes": [(-3, -4), (2, 1)]}, ValueError, "must be positive"),
    ({"spatial_shapes": torch.tensor([3, 4])}, ValueError, r"must be \(L, 2\)"),
    ({"spatial_shapes": torch.ones(2, 2)}, TypeError, "must hold integers"),
    ({"level_start_index": [0]}, ValueError, "level_start_index 1"),
    ({"level_start_index": [0, 11]}, ValueError, r"is \[0, 11\], not \[0, 12\]"),
    ({"level_start_index": torch.tensor([1, 12])}, ValueError, r"is \[1, 12\], not \[0, 12\]"),
]


@pytest.mark.parametrize(("change", "error", "message"), ERRORS)
def test_errors_in_words(change: dict, error: type[Exception], message: str) -> None:
    """Protects that wrong inputs are named before anything is computed."""
    arguments = {
        "value": torch.zeros(1, 14, 2, 4),
        "spatial_shapes": [(3, 4), (2, 1)],
        "level_start_index": [0, 12],
        "sampling_locations": torch.zeros(1, 5, 2, 2, 3, 2),
        "attention_weights": torch.zeros(1, 5, 2, 2, 3),
    }
    multi_scale_deformable_attention(**arguments)
    with pytest.raises(error, match=message):
        multi_scale_deformable_attention(**(arguments | change))


# ---------------------------------------------------------------- the module

SHAPES = [(6, 5), (3, 2)]


def random_module(seed: int = 0) -> MultiScaleDeformableAttention:
    """A module of 16 channels, 4 heads, 2 levels, 3 points, far from its initial weights."""
    torch.manual_seed(seed)
    attention = MultiScaleDeformableAttention(16, 4, num_levels=2, num_points=3)
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
def test_module_equals_transformers(formulation: str, coordinates: int, masked: bool) -> None:
    """Protects names on disk, output, weights and gradients for reference points and boxes."""
    ours = random_module()
    theirs = their_module(ours)
    query, states, mask, references = module_inputs(coordinates)
    mask = mask if masked else None
    output, (weights, locations) = ours(
        query, states, mask, references, SHAPES, starts(SHAPES), return_weights=True
    )
    expected, expected_weights = theirs(
        query,
        attention_mask=mask,
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
    """Protects both ways to give the geometry, and that weights come only when asked for."""
    query, states, mask, references = module_inputs(2)
    attention = random_module()
    expected, nothing = attention(query, states, mask, references, SHAPES, starts(SHAPES))
    assert nothing is None
    tensors = torch.tensor(SHAPES), torch.tensor(starts(SHAPES))
    got, _ = attention(query, states, mask, references, *tensors)
    torch.testing.assert_close(got, expected, atol=0, rtol=0)


def test_masked_tokens_have_no_influence() -> None:
    """Protects that padding, however wild, is sampled as zeros."""
    query, states, mask, references = module_inputs(2)
    attention = random_module()
    expected, _ = attention(query, states, mask, references, SHAPES, starts(SHAPES))
    wild = states.detach().clone()
    wild[~mask] = 1e4
    got, _ = attention(query, wild, mask, references, SHAPES, starts(SHAPES))
    torch.testing.assert_close(got, expected, atol=0, rtol=0)


def test_initial_weights() -> None:
    """Protects the paper's start: a ring of 8 directions, 1 to K pixels, equal attention."""
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
    """Protects that a start on the meta device gives the same weights, and loaded ones stay."""
    with torch.device("meta"):
        attention = MultiScaleDeformableAttention(16, 4, num_levels=2, num_points=3)
    attention = attention.to_empty(device="cpu")
    offsets = attention.sampling_offsets
    offsets.reset_parameters()
    fresh = MultiScaleDeformableAttention(16, 4, num_levels=2, num_points=3)
    torch.testing.assert_close(offsets.bias, fresh.sampling_offsets.bias, atol=0, rtol=0)
    nn.init.ones_(offsets.bias)
    offsets.bias._is_hf_initialized = True
    offsets.reset_parameters()
    assert (offsets.bias == 1).all()


def test_module_in_half_precision_and_autocast() -> None:
    """Protects bf16 modules and autocast, whose tensors differ in dtype."""
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
    """Protects that a recomputed forward gives the same gradients."""
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
    """Protects compiled inference without graph breaks, and with sizes that change."""
    module = OnFeatureMaps()
    graphs = []

    def backend(graph: torch.fx.GraphModule, inputs: list) -> Callable:
        graphs.append(graph)
        return graph.forward

    compiled = torch.compile(module, fullgraph=True, dynamic=True, backend=backend)
    for sizes in [(3, 4, 7), (2, 6, 9), (4, 5, 6)]:
        inputs = feature_maps(*sizes)
        torch.testing.assert_close(compiled(*inputs), module(*inputs), atol=1e-6, rtol=0)
    assert len(graphs) == 1


def test_compiles_for_training() -> None:
    """Protects gradients of a compiled module."""
    module = OnFeatureMaps()
    inputs = [tensor.requires_grad_() for tensor in feature_maps(2, 4, 3)]
    compiled = torch.compile(module, fullgraph=True, backend="aot_eager")
    got = torch.autograd.grad(compiled(*inputs).square().sum(), inputs)
    expected = torch.autograd.grad(module(*inputs).square().sum(), inputs)
    torch.testing.assert_close(got, expected, atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_exports_with_dynamic_sizes() -> None:
    """Protects export for any batch and image size, with standard operators only."""
    module = OnFeatureMaps()
    dynamic = torch.export.Dim.DYNAMIC
    sizes = ({0: dynamic}, {0: dynamic}, *[{0: dynamic, 2: dynamic, 3: dynamic}] * 2)
    program = torch.export.export(module, feature_maps(2, 4, 3), dynamic_shapes=sizes)
    assert "hf_detr" not in str(program.graph)
    for size in [(3, 5, 7), (2, 9, 4)]:
        inputs = feature_maps(*size)
        torch.testing.assert_close(program.module()(*inputs), module(*inputs), atol=1e-5, rtol=0)


def test_module_errors_in_words() -> None:
    """Protects that a wrong width, wrong references and wrong shapes are named."""
    with pytest.raises(ValueError, match="d_model 10 must be divisible by num_heads 4"):
        MultiScaleDeformableAttention(10, 4, num_levels=2, num_points=3)
    query, states, mask, references = module_inputs(2)
    attention = random_module()
    geometry = SHAPES, starts(SHAPES)
    with pytest.raises(ValueError, match="must have 2 or 4 coordinates, not 3"):
        attention(query, states, mask, torch.rand(2, 5, 2, 3), *geometry)
    with pytest.raises(ValueError, match=r"must be \(B, Q, 2, 2 or 4\)"):
        attention(query, states, mask, torch.rand(2, 5, 3, 2), *geometry)
    with pytest.raises(ValueError, match="value has 35 tokens"):
        attention(query, states[:, 1:], mask[:, 1:], references, *geometry)
