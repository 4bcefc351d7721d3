"""Protects the operator: values and gradients of the compiled one and of both torch ones."""

import math
from functools import partial
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from hf_detr.ops import embedding_bag_sampling
from hf_detr.ops.multi_scale_deformable_attention import locate, multi_scale_deformable_attention

from ..operator_cases import attend, naive_attention, random_inputs, starts

FIXTURES = Path(__file__).parents[1] / "fixtures"
NAMES = ("value", "sampling_locations", "attention_weights")


@pytest.mark.parametrize("seed", range(6))
def test_equals_the_formula(kernel: str, seed: int) -> None:
    """Protects the sum of Eq. 3 for any number of levels, points, heads, channels and images."""
    generator = torch.Generator().manual_seed(seed)

    def draw(most: int) -> int:
        return int(torch.randint(1, most + 1, (1,), generator=generator))

    shapes = [(draw(7), draw(7)) for _ in range(draw(5))]
    inputs = random_inputs(shapes, draw(3), draw(6), draw(3), draw(4), draw(9), seed=seed)
    inputs = [tensor.detach() for tensor in inputs]
    expected = naive_attention(shapes, *inputs)
    torch.testing.assert_close(attend(kernel, shapes, *inputs), expected, atol=1e-12, rtol=0)


def check_reference(cases: dict[str, Tensor], kernel: str) -> None:
    names = sorted({key.split("/")[0] for key in cases})
    for name in names:
        case = {key.split("/")[1]: cases[key] for key in cases if key.split("/")[0] == name}
        inputs = [case[key].requires_grad_() for key in NAMES]
        shapes, level_starts = case["spatial_shapes"], case["level_start_index"]
        assert level_starts.tolist() == starts(shapes.tolist())
        output = attend(kernel, shapes.tolist(), *inputs)
        grads = torch.autograd.grad(output, inputs, case["grad_output"])
        torch.testing.assert_close(output, case["output"], atol=1e-10, rtol=0, msg=name)
        for key, grad in zip(NAMES, grads, strict=True):
            expected = case[f"grad_{key}"]
            torch.testing.assert_close(grad, expected, atol=1e-10, rtol=0, msg=f"{name} {key}")


def test_reference_of_the_fixture(kernel: str) -> None:
    """Protects output and gradients, samples exactly on pixels and on the outer border too."""
    check_reference(load_file(FIXTURES / "ms_deform_attn_reference.safetensors"), kernel)


def test_reference_of_all_shapes(kernel: str, reference_dir: Path) -> None:
    """Protects output and gradients against all recorded cases of the original."""
    check_reference(load_file(reference_dir / "ops" / "ms_deform_attn.safetensors"), kernel)


def test_gradients_are_those_of_the_output(kernel: str) -> None:
    """Protects all gradients against finite differences."""
    shapes = [(3, 4), (2, 1)]
    inputs = random_inputs(shapes, num_points=2, width=3)
    assert torch.autograd.gradcheck(
        lambda *tensors: attend(kernel, shapes, *tensors),
        inputs,
        eps=1e-6,
        nondet_tol=1e-12,  # a GPU adds in any order
    )


def test_formulations_agree_over_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Protects block boundaries: more queries than a block, several images, all gradients."""
    monkeypatch.setattr(embedding_bag_sampling, "QUERIES_PER_THREAD", 3)
    shapes = [(6, 5), (3, 2)]
    inputs = random_inputs(shapes, num_queries=6 * torch.get_num_threads() + 2)
    results = []
    for is_exporting in (False, True):
        monkeypatch.setattr(torch.compiler, "is_exporting", lambda result=is_exporting: result)
        output = attend("torch", shapes, *inputs)
        grads = torch.autograd.grad(output.sin().sum(), inputs)
        results.append([output, *grads])
    torch.testing.assert_close(*results, atol=1e-9, rtol=1e-9)


@pytest.mark.parametrize(
    ("dtype", "tolerance"), [(torch.float32, 2e-6), (torch.bfloat16, 8e-3), (torch.float16, 1e-3)]
)
def test_dtypes(kernel: str, dtype: torch.dtype, tolerance: float) -> None:
    """Protects that each dtype's error is that of rounding its result once."""
    shapes = [(6, 5), (3, 2)]
    inputs = [tensor.to(dtype).detach().requires_grad_() for tensor in random_inputs(shapes)]
    exact = [tensor.detach().double().requires_grad_() for tensor in inputs]
    output, expected = attend(kernel, shapes, *inputs), attend(kernel, shapes, *exact)
    assert output.dtype == dtype
    torch.testing.assert_close(output.double(), expected, atol=tolerance, rtol=tolerance)
    direction = torch.randn_like(output)
    grads = torch.autograd.grad(output, inputs, direction)
    expected_grads = torch.autograd.grad(expected, exact, direction.double())
    for tensor, grad, expected in zip(inputs, grads, expected_grads, strict=True):
        assert grad.dtype == tensor.dtype
        atol = 8 * tolerance  # location gradients are multiplied by the level's size
        torch.testing.assert_close(grad.double(), expected, atol=atol, rtol=tolerance)


def test_mixed_dtypes(kernel: str) -> None:
    """Protects autocast: half values with float32 locations, whose precision is kept."""
    shapes = [(6, 5), (3, 2)]
    value, locations, weights = random_inputs(shapes, dtype=torch.float32)
    got = attend(kernel, shapes, value.bfloat16(), locations, weights)
    expected = attend(kernel, shapes, value.bfloat16().float(), locations, weights)
    assert got.dtype == torch.bfloat16
    torch.testing.assert_close(got, expected.bfloat16(), atol=0, rtol=0)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64])
def test_locations_keep_the_offsets_precision(dtype: torch.dtype) -> None:
    """Protects which pixels are sampled: no offset is rounded, for references of any dtype."""
    offset = torch.full((1, 1, 1, 1, 1, 2), 1 / 3, dtype=dtype)
    for references in (torch.zeros(1, 1, 1, 2, dtype=dtype), torch.zeros(1, 1, 1, 2)):
        got = locate(references, offset, [(7, 7)])
        exact = torch.promote_types(dtype, torch.float32)
        torch.testing.assert_close(got, offset.to(exact) / 7, atol=0, rtol=0)


@pytest.mark.parametrize("far", [math.inf, -math.inf, 1e30, -1e30, 1e9, -3.0])
def test_far_locations_sample_zero(kernel: str, far: float) -> None:
    """Protects that no location, however far, becomes an index or a gradient."""
    shapes = [(3, 4), (2, 1)]
    value, locations, weights = random_inputs(shapes, dtype=torch.float32)
    locations = locations.detach().clone()
    locations[0, 1, :, 0, :, 0] = far
    locations[1, 2, :, 1, 0] = far
    locations.requires_grad_()
    output = attend(kernel, shapes, value, locations, weights)
    kept = weights.detach().clone()
    kept[0, 1, :, 0] = 0
    kept[1, 2, :, 1, 0] = 0
    with torch.no_grad():
        expected = attend(kernel, shapes, value, locations.nan_to_num(0, 0, 0).clamp(-1, 2), kept)
    torch.testing.assert_close(output, expected, atol=1e-6, rtol=0)
    grads = torch.autograd.grad(output.sum(), (value, locations, weights))
    assert all(grad.isfinite().all() for grad in grads)
    assert not grads[1][0, 1, :, 0].any() and not grads[2][1, 2, :, 1, 0].any()


def test_nan_locations_show(kernel: str) -> None:
    """Protects that NaN reaches the output of its query's head, and no other output."""
    shapes = [(3, 4), (2, 1)]
    value, locations, weights = (tensor.detach() for tensor in random_inputs(shapes))
    expected = attend(kernel, shapes, value, locations, weights).unflatten(-1, (2, 4))
    locations[1, 2, 0, 1, 1, 0] = math.nan
    locations[0, 3, 1, 0, 0] = math.nan
    got = attend(kernel, shapes, value, locations, weights).unflatten(-1, (2, 4))
    assert got[1, 2, 0].isnan().all() and got[0, 3, 1].isnan().all()
    expected[1, 2, 0], expected[0, 3, 1] = math.nan, math.nan
    torch.testing.assert_close(got, expected, equal_nan=True, atol=1e-12, rtol=0)


def test_wild_values_stay_where_they_are(kernel: str) -> None:
    """Protects that samples outside don't read pixels: a NaN there would spread."""
    shapes = [(3, 4), (2, 1)]
    value, locations, weights = (tensor.detach() for tensor in random_inputs(shapes))
    locations[:] = 1.5
    output = attend(kernel, shapes, torch.full_like(value, math.nan), locations, weights)
    torch.testing.assert_close(output, torch.zeros_like(output), atol=0, rtol=0)


@pytest.mark.parametrize("empty", ["batch_size", "num_queries", "num_points", "width"])
def test_empty_inputs(kernel: str, empty: str) -> None:
    """Protects empty inputs: outputs are empty or zero, and gradients have the right shape."""
    shapes = [(3, 4), (2, 1)]
    inputs = random_inputs(shapes, **{empty: 0})
    output = attend(kernel, shapes, *inputs)
    batch_size, num_queries, num_heads = inputs[2].shape[:3]
    assert output.shape == (batch_size, num_queries, num_heads * inputs[0].shape[-1])
    grads = torch.autograd.grad(output.sum(), inputs)
    for tensor, grad in zip(inputs, grads, strict=True):
        torch.testing.assert_close(grad, torch.zeros_like(tensor), atol=0, rtol=0)


def test_strides_do_not_matter(kernel: str) -> None:
    """Protects inputs and output gradients that are transposed or expanded views."""
    shapes = [(3, 4), (2, 1)]
    inputs = random_inputs(shapes)
    expected = attend(kernel, shapes, *inputs)
    grads = torch.autograd.grad(expected.sum(), inputs)
    views = [tensor.detach().transpose(0, 1).contiguous().transpose(0, 1) for tensor in inputs]
    views = [view.requires_grad_() for view in views]
    assert not any(view.is_contiguous() for view in views)
    got = attend(kernel, shapes, *views)
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
    """Protects from a second derivative with missing terms."""
    shapes = [(3, 4)]
    inputs = random_inputs(shapes)
    (grad,) = torch.autograd.grad(
        attend("torch", shapes, *inputs).sum(), inputs[1], create_graph=True
    )
    with pytest.raises(RuntimeError, match="no second derivative"):
        grad.sum().backward()


@pytest.mark.parametrize("kernel", ["torch", "auto"])
def test_transforms_of_torch_func(kernel: str) -> None:
    """Protects per-sample gradients and Jacobians, which custom operators don't take part in."""
    shapes = [(3, 4), (2, 1)]
    inputs = random_inputs(shapes)

    def total(*tensors: Tensor) -> Tensor:
        return attend(kernel, shapes, *tensors).square().sum()

    expected = torch.autograd.grad(total(*inputs), inputs)
    got = torch.func.grad(total, argnums=(0, 1, 2))(*inputs)
    torch.testing.assert_close(got, expected, atol=1e-10, rtol=1e-8)
    batch = [torch.stack([tensor, tensor.flip(1)]) for tensor in inputs]
    per_sample = torch.func.vmap(torch.func.grad(total))(*batch)
    torch.testing.assert_close(per_sample[0], expected[0], atol=1e-10, rtol=1e-8)


@pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated:FutureWarning")  # torch's own
def test_forward_mode_gradients_are_not_silently_zero() -> None:
    """Protects from tangents that a custom operator would drop; torch's sampler has none."""
    shapes = [(3, 4)]
    inputs = random_inputs(shapes)
    with pytest.raises(NotImplementedError, match="forward AD"):
        torch.func.jvp(partial(attend, "auto", shapes), tuple(inputs), tuple(inputs))
    with pytest.raises(RuntimeError, match="can't transform the compiled operator"):
        torch.func.vmap(partial(attend, "required", shapes))(*(t[None] for t in inputs))


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
    """Protects errors for wrong inputs, before anything is computed."""
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
