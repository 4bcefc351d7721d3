"""Protects the compiled operators on CPU: torch's rules, all dtypes, every instruction set."""

import itertools
import math
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from hf_detr.ops import compiled_attention
from hf_detr.ops.kernel_loader import KernelStatus

from ..operator_cases import (
    attend,
    attend_fused,
    device_of,
    naive_attention,
    random_inputs,
    require_compiled,
)

REPOSITORY = Path(__file__).parents[2]
Shapes = list[tuple[int, int]]


@pytest.fixture(scope="module")
def operators() -> object:
    """The compiled operators in `torch.ops`."""
    return getattr(torch.ops, require_compiled("required"))


def move(tensors: list[Tensor], device: str) -> list[Tensor]:
    return [tensor.detach().to(device).requires_grad_() for tensor in tensors]


def sizes_of(shapes: Shapes) -> list[int]:
    return [size for shape in shapes for size in shape]


def fused_inputs(
    shapes: Shapes, coordinates: int = 2, dtype: torch.dtype = torch.float64, **sizes: int
) -> list[Tensor]:
    """Value, references, offsets of some pixels, and logits, all with gradients."""
    value, locations, weights = (t.detach() for t in random_inputs(shapes, **sizes))
    generator = torch.Generator().manual_seed(3)
    batch_size, num_queries, num_heads, num_levels, num_points = weights.shape
    references = torch.rand(
        batch_size, num_queries, num_levels, coordinates, dtype=torch.float64, generator=generator
    )
    logits = 3 * torch.randn(weights.shape, dtype=torch.float64, generator=generator)
    tensors = [value, references, 5 * (locations - 0.5), logits]
    return [tensor.to(dtype).requires_grad_() for tensor in tensors]


def values_and_gradients(attention, inputs: list[Tensor]) -> list[Tensor]:
    """Output and gradients for one fixed random gradient of the output."""
    output = attention(*inputs)
    direction = torch.randn(output.shape, generator=torch.Generator().manual_seed(5))
    return [output, *torch.autograd.grad(output, inputs, direction.to(output.dtype))]


# ---------------------------------------------------------------- values


@settings(max_examples=60, deadline=None)
@given(
    shapes=st.lists(st.tuples(st.integers(1, 9), st.integers(1, 9)), min_size=1, max_size=5),
    batch_size=st.integers(1, 3),
    num_queries=st.integers(1, 9),
    num_heads=st.integers(1, 3),
    num_points=st.integers(1, 5),
    width=st.integers(1, 70),
    spread=st.sampled_from([1.0, 3.0, 1e4, 1e30]),
    seed=st.integers(0, 2**31),
)
def test_equals_the_formula_for_any_shapes(
    compiled: str, shapes: Shapes, spread: float, seed: int, **sizes: int
) -> None:
    """Protects values for any sizes and for locations near and far outside."""
    value, locations, weights = (t.detach() for t in random_inputs(shapes, **sizes, seed=seed))
    locations = (locations - 0.5) * spread + 0.5
    expected = naive_attention(shapes, value, locations, weights)
    got = attend(compiled, shapes, value, locations, weights)
    torch.testing.assert_close(got, expected, atol=1e-11, rtol=0)


WIDTHS = [1, 2, 4, 7, 16, 20, 32, 48, 64, 100]


@pytest.mark.parametrize("num_queries", [3, 150])
@pytest.mark.parametrize("width", WIDTHS)
def test_gradients_equal_torch(compiled: str, width: int, num_queries: int) -> None:
    """Protects all gradients, with and without the table of pixels, for every slice of channels."""
    shapes = [(9, 7), (4, 5), (1, 1)]
    inputs = random_inputs(shapes, width=width, num_queries=num_queries, num_points=4)
    got = values_and_gradients(lambda *tensors: attend(compiled, shapes, *tensors), inputs)
    expected = values_and_gradients(lambda *tensors: attend("torch", shapes, *tensors), inputs)
    torch.testing.assert_close(got, expected, atol=1e-11, rtol=1e-11)


@pytest.mark.parametrize("num_queries", [3, 150])
@pytest.mark.parametrize("coordinates", [2, 4])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-11), (torch.float32, 3e-5)])
def test_fused_equals_its_parts(
    compiled: str, coordinates: int, num_queries: int, dtype: torch.dtype, tolerance: float
) -> None:
    """Protects locations, softmax and all gradients of the fused operator."""
    shapes = [(9, 7), (4, 5), (1, 1)]
    inputs = fused_inputs(shapes, coordinates, width=20, num_queries=num_queries)
    expected = values_and_gradients(lambda *t: attend_fused("torch", shapes, *t), inputs)
    inputs = [tensor.detach().to(dtype).requires_grad_() for tensor in inputs]
    got = values_and_gradients(lambda *t: attend_fused(compiled, shapes, *t), inputs)
    for tensor, exact in zip(got, expected, strict=True):
        torch.testing.assert_close(tensor.double(), exact, atol=tolerance, rtol=tolerance)


@pytest.mark.parametrize("wild", [math.inf, -math.inf, math.nan])
def test_fused_softmax_of_wild_logits(compiled: str, wild: float) -> None:
    """Protects infinite and NaN logits: the result is that of torch's softmax."""
    shapes = [(3, 4), (2, 1)]
    for dtype in (torch.float32, torch.float64):
        inputs = [t.detach() for t in fused_inputs(shapes, dtype=dtype)]
        inputs[3][0, 1, 0, 1, 2] = wild
        got = attend_fused(compiled, shapes, *inputs)
        expected = attend_fused("torch", shapes, *inputs)
        torch.testing.assert_close(got, expected, atol=1e-5, rtol=0, equal_nan=True)


# Bounds relative to the largest value: rounding once in half precision, sums in float32.
BOUNDS = {torch.float32: 2e-6, torch.bfloat16: 4e-3, torch.float16: 5e-4}


@pytest.mark.parametrize("dtype", BOUNDS)
@pytest.mark.parametrize("is_fused", [False, True])
def test_dtypes_stay_within_their_bound(compiled: str, dtype: torch.dtype, is_fused: bool) -> None:
    """Protects accumulation in float32: 64 points and 300 queries add no more error than one."""
    shapes = [(9, 7), (4, 5), (6, 6), (3, 2)]
    make, run = (fused_inputs, attend_fused) if is_fused else (random_inputs, attend)
    inputs = make(shapes, dtype=dtype, width=32, num_queries=300, num_points=16)
    exact = [tensor.detach().double().requires_grad_() for tensor in inputs]
    got = values_and_gradients(lambda *tensors: run(compiled, shapes, *tensors), inputs)
    expected = values_and_gradients(lambda *tensors: run(compiled, shapes, *tensors), exact)
    for index, (tensor, reference) in enumerate(zip(got, expected, strict=True)):
        assert tensor.dtype == dtype
        error = (tensor.double() - reference).abs().max() / reference.abs().max()
        # The output's gradient is rounded to the dtype too.
        assert error < BOUNDS[dtype] * (1 if index == 0 else 3), index


@pytest.mark.parametrize("num_queries", [3, 150])
@pytest.mark.parametrize("width", [1, 5, 12, 40, 64])
@pytest.mark.parametrize("is_fused", [False, True])
def test_bfloat16_equals_float32(
    operators: object, is_fused: bool, width: int, num_queries: int
) -> None:
    """Protects bfloat16 on CPU, read and written without copies: float32's bits, rounded once."""
    shapes = [(9, 7), (4, 5), (1, 1)]
    make, run = (fused_inputs, attend_fused) if is_fused else (random_inputs, attend)
    inputs = make(shapes, dtype=torch.float32, width=width, num_queries=num_queries)
    value, *references, points, weights = (tensor.detach() for tensor in inputs)
    value[0, 5, 1, 0], value[1, 70, 0, -1] = math.nan, math.inf
    points[0, 2, 1, 0, 1, 0], points[1, 0, 1, 1, 0, 1] = math.nan, -math.inf
    weights[0, 1, 0, 2, 1], weights[1, 1, 1, 0, 0] = math.nan, -math.inf
    for reference in references:  # a NaN that would become zero if it was rounded as a number
        reference[1, 2, 0, 0] = torch.tensor(2**31 - 1, dtype=torch.int32).view(torch.float32)
    halves = [tensor.bfloat16() for tensor in (value, points, weights)]
    value, *rest = (tensor.float() for tensor in halves)
    expected = run("required", shapes, value, *references, *rest).bfloat16()
    views = [half.transpose(0, 1).contiguous().transpose(0, 1) for half in halves]
    for value, *rest in (halves, views):
        got = run("required", shapes, value, *references, *rest)
        torch.testing.assert_close(got, expected, atol=0, rtol=0, equal_nan=True)
    assert expected.isnan().any() and expected.isfinite().any()


@pytest.mark.parametrize("num_queries", [1, 8])
def test_bfloat16_equals_float32_for_all_numbers(operators: object, num_queries: int) -> None:
    """Protects rounding: means of neighbours are ties, of all others, NaN and infinity too."""
    numbers = torch.arange(2**16, dtype=torch.int32).to(torch.int16).view(torch.bfloat16)
    for partner in (numbers.roll(-1), numbers.roll(12345), numbers.flip(0)):
        value = torch.stack([numbers, partner])[None, :, None]  # two pixels beside each other
        points = torch.full((1, num_queries, 1, 1, 1, 2), 0.5, dtype=torch.bfloat16)
        weights = torch.linspace(1, 3, num_queries, dtype=torch.bfloat16).view(1, -1, 1, 1, 1)
        halves = (value, points, weights)
        got = attend("required", [(1, 2)], *halves)
        expected = attend("required", [(1, 2)], *(half.float() for half in halves)).bfloat16()
        torch.testing.assert_close(got, expected, atol=0, rtol=0, equal_nan=True)


def test_two_runs_are_equal(operators: object) -> None:
    """Protects determinism with threads, in torch's deterministic mode and out of it."""
    shapes = [(20, 30), (10, 15)]
    inputs = random_inputs(shapes, width=32, num_queries=750, num_heads=1, dtype=torch.float32)
    threads = torch.get_num_threads()
    runs = []
    try:
        for number in (4, 4, 9, 9):
            torch.set_num_threads(number)
            runs.append(values_and_gradients(lambda *t: attend("required", shapes, *t), inputs))
    finally:
        torch.set_num_threads(threads)
    torch.testing.assert_close(runs[0], runs[1], atol=0, rtol=0)
    torch.testing.assert_close(runs[2], runs[3], atol=0, rtol=0)
    torch.testing.assert_close(runs[0], runs[2], atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("capability", ["default", "avx2"])
def test_other_instruction_sets(operators: object, capability: str) -> None:
    """Protects older processors: the same tests in a process with fewer instructions."""
    names = ["test_gradients_equal_torch", "test_fused_equals", "test_dtypes_stay", "wild_logits"]
    names += ["test_bfloat16_equals"]
    command = [sys.executable, "-m", "pytest", "-q", "-n0", "-p", "no:cacheprovider", __file__]
    result = subprocess.run(
        [*command, "-k", f"({' or '.join(names)}) and not cuda"],
        cwd=REPOSITORY,
        env={**os.environ, "ATEN_CPU_CAPABILITY": capability},
        capture_output=True,
        text=True,
    )
    assert result.returncode == 0, result.stdout[-3000:]
    assert " passed" in result.stdout and "skipped" not in result.stdout


def test_more_than_two_to_the_31_numbers(operators: object) -> None:
    """Protects offsets beyond 32 bits. Pages that are never touched take no memory."""
    shape = (8192, 8192)
    value = torch.empty(5, shape[0] * shape[1], 1, 8, dtype=torch.float32)
    assert value.numel() > 2**31
    value[4, -1], value[4, 0] = 2.0, 3.0
    locations = torch.tensor([[8191.5 / 8192, 8191.5 / 8192], [0.5 / 8192, 0.5 / 8192]])
    locations = locations.view(1, 1, 1, 1, 2, 2).repeat(5, 1, 1, 1, 1, 1)
    locations[:4] = 2.0  # outside
    weights = torch.tensor([1.0, 10.0]).expand(5, 1, 1, 1, 2)
    output = attend("required", [shape], value, locations, weights)
    torch.testing.assert_close(output[:4], torch.zeros(4, 1, 8), atol=0, rtol=0)
    torch.testing.assert_close(output[4], torch.full((1, 8), 32.0), atol=0, rtol=0)


# ---------------------------------------------------------------- torch's rules


@pytest.mark.filterwarnings("ignore:The .grad attribute")  # which opcheck reads
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("num_queries", [3, 40])
def test_operators_keep_torch_rules(compiled: str, dtype: torch.dtype, num_queries: int) -> None:
    """Protects schemas, shapes and strides under tracing, and registered autograd."""
    shapes, device = [(3, 4), (2, 1)], device_of(compiled)
    operators = getattr(torch.ops, require_compiled(compiled))
    sizes = sizes_of(shapes)
    inputs = move(random_inputs(shapes, dtype=dtype, num_queries=num_queries), device)
    torch.library.opcheck(operators.deformable_attention.default, (*inputs, sizes))
    grad = torch.ones(2, num_queries, 8, dtype=dtype, device=device)
    constants = [tensor.detach() for tensor in inputs]
    backward = operators.deformable_attention_backward.default
    torch.library.opcheck(backward, (grad, *constants, sizes, False))
    inputs = move(fused_inputs(shapes, 4, dtype=dtype, num_queries=num_queries), device)
    exact = torch.float64 if dtype == torch.float64 else torch.float32
    inputs[1] = inputs[1].detach().to(exact).requires_grad_()
    torch.library.opcheck(operators.fused_deformable_attention.default, (*inputs, sizes))
    constants = [tensor.detach() for tensor in inputs]
    for reference_grad in (False, True):
        backward = operators.fused_deformable_attention_backward.default
        torch.library.opcheck(backward, (grad, *constants, sizes, reference_grad, False))


def test_fused_gradients_are_those_of_the_output(compiled: str) -> None:
    """Protects all gradients of the fused operator against finite differences."""
    shapes = [(3, 4), (2, 1)]
    for coordinates in (2, 4):
        inputs = fused_inputs(shapes, coordinates, width=3, num_points=2)
        assert torch.autograd.gradcheck(
            lambda *tensors: attend_fused(compiled, shapes, *tensors),
            inputs,
            eps=1e-6,
            nondet_tol=1e-12,  # a GPU adds in any order
        )


def test_references_get_a_gradient_only_where_asked(compiled: str) -> None:
    """Protects the encoder from an unused gradient."""
    shapes, device = [(3, 4)], device_of(compiled)
    operators = getattr(torch.ops, require_compiled(compiled))
    inputs = [tensor.detach() for tensor in move(fused_inputs(shapes), device)]
    grad = torch.ones(2, 5, 8, dtype=torch.float64, device=device)
    backward = operators.fused_deformable_attention_backward
    assert backward(grad, *inputs, sizes_of(shapes), False, False)[1].shape == (0,)
    assert backward(grad, *inputs, sizes_of(shapes), True, False)[1].shape == inputs[1].shape


def test_second_derivatives_are_refused(compiled: str) -> None:
    """Protects from a second derivative with missing terms."""
    shapes = [(3, 4)]
    for run, inputs in ((attend, random_inputs(shapes)), (attend_fused, fused_inputs(shapes))):
        output = run(compiled, shapes, *inputs)
        (grad,) = torch.autograd.grad(output.sum(), inputs[1], create_graph=True)
        with pytest.raises(RuntimeError, match="no second derivative"):
            grad.sum().backward()


class Attention(nn.Module):
    """The fused operator on two feature maps whose sizes are those of the maps."""

    def __init__(self, kernel: str) -> None:
        super().__init__()
        self.kernel = kernel

    def forward(self, fine: Tensor, coarse: Tensor, *points: Tensor) -> Tensor:
        shapes = [tuple(level.shape[1:3]) for level in (fine, coarse)]
        value = torch.cat([fine.flatten(1, 2), coarse.flatten(1, 2)], dim=1)
        return attend_fused(self.kernel, shapes, value, *points)


def map_inputs(batch_size: int, height: int, width: int) -> list[Tensor]:
    shapes = [(2 * height, 2 * width), (height, width)]
    value, *points = fused_inputs(shapes, batch_size=batch_size, dtype=torch.float32)
    tokens = [shape[0] * shape[1] for shape in shapes]
    maps = [
        level.unflatten(1, shape)
        for level, shape in zip(value.split(tokens, 1), shapes, strict=True)
    ]
    return [tensor.detach().requires_grad_() for tensor in (*maps, *points)]


def test_compiled_graphs_hold_the_operator_whole(operators: object) -> None:
    """Protects compiled training without graph breaks, with changing sizes."""
    module = Attention("required")
    compiled = torch.compile(module, fullgraph=True, dynamic=True, backend="aot_eager")
    for size in [(2, 3, 4), (3, 5, 2)]:
        inputs = map_inputs(*size)
        got = values_and_gradients(compiled, inputs)
        torch.testing.assert_close(got, values_and_gradients(module, inputs), atol=1e-6, rtol=0)


@torch.no_grad()
@pytest.mark.parametrize("kernel", ["auto", "compiled"])
def test_exports_hold_what_was_asked_for(operators: object, kernel: str) -> None:
    """Protects exports that run anywhere by default, and fast ones if requested, for any size."""
    dynamic = torch.export.Dim.DYNAMIC
    sizes = (*[{0: dynamic, 1: dynamic, 2: dynamic}] * 2, ({0: dynamic},) * 3)
    inputs = [tensor.detach() for tensor in map_inputs(2, 3, 4)]
    program = torch.export.export(Attention(kernel), tuple(inputs), dynamic_shapes=sizes)
    assert ("deformable_attention" in str(program.graph)) == (kernel == "compiled")
    inputs = [tensor.detach() for tensor in map_inputs(3, 5, 7)]
    got, expected = program.module()(*inputs), Attention("required")(*inputs)
    torch.testing.assert_close(got, expected, atol=1e-5, rtol=0)


# ---------------------------------------------------------------- what is refused

BAD = {
    "B": {"value": torch.zeros(2, 14, 2, 4)},
    "dtype": {"weights": torch.zeros(1, 5, 2, 2, 3, dtype=torch.float64)},
    "integers": {"value": torch.zeros(1, 14, 2, 4, dtype=torch.long)},
    "tokens": {"sizes": [3, 4, 2, 2]},
    "levels": {"sizes": [14, 1]},
    "negative": {"sizes": [-3, -4, 2, 1]},
    "zero": {"sizes": [14, 1, 0, 5]},
    "overflow": {"sizes": [2**33, 2**31, 2, 1]},
    "heads": {"locations": torch.zeros(1, 5, 3, 2, 3, 2)},
    "last axis": {"locations": torch.zeros(1, 5, 2, 2, 3, 1)},
}


@pytest.mark.parametrize("case", BAD)
def test_operators_check_for_themselves(operators: object, case: str) -> None:
    """Protects memory from calls of the operators without our Python checks."""
    arguments = {
        "value": torch.zeros(1, 14, 2, 4),
        "locations": torch.zeros(1, 5, 2, 2, 3, 2),
        "weights": torch.zeros(1, 5, 2, 2, 3),
        "sizes": [3, 4, 2, 1],
    }
    operators.deformable_attention(*arguments.values())
    wrong = (arguments | BAD[case]).values()
    with pytest.raises(RuntimeError):
        operators.deformable_attention(*wrong)
    with pytest.raises(RuntimeError):
        operators.deformable_attention_backward(torch.zeros(1, 5, 8), *wrong, False)


def test_gradients_of_another_shape_are_refused(operators: object) -> None:
    """Protects memory from a gradient that is too small."""
    inputs = [tensor.detach() for tensor in random_inputs([(3, 4)])]
    with pytest.raises(RuntimeError, match="grad"):
        operators.deformable_attention_backward(
            torch.zeros(2, 4, 8, dtype=torch.float64), *inputs, [3, 4], False
        )


# ---------------------------------------------------------------- what is chosen


def test_required_says_why_there_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    """Protects that "required" never uses torch's operators, and the others do."""
    status = KernelStatus(None, reason="there is no compiler")
    monkeypatch.setattr(compiled_attention, "load_kernel", lambda device_type: status)
    shapes = [(3, 4)]
    inputs = random_inputs(shapes)
    expected = attend("torch", shapes, *inputs)
    for kernel in ("auto", "compiled"):
        torch.testing.assert_close(attend(kernel, shapes, *inputs), expected, atol=0, rtol=0)
    with pytest.raises(RuntimeError, match="there is no compiler"):
        attend("required", shapes, *inputs)
    with pytest.raises(ValueError, match="kernel is 'fast'"):
        attend("fast", shapes, *inputs)


def test_torch_never_looks_for_a_kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    """Protects users of "torch" from a build."""

    def fail(device_type: str) -> KernelStatus:
        raise AssertionError("looked for a kernel")

    monkeypatch.setattr(compiled_attention, "load_kernel", fail)
    attend("torch", [(3, 4)], *random_inputs([(3, 4)]))


def test_devices_without_a_kernel_use_torch() -> None:
    """Protects shape inference on the meta device, and the error for "required"."""
    inputs = [tensor.detach().to("meta") for tensor in random_inputs([(3, 4)])]
    assert attend("auto", [(3, 4)], *inputs).shape == (2, 5, 8)
    with pytest.raises(RuntimeError, match="'meta'"):
        attend("required", [(3, 4)], *inputs)


@pytest.mark.parametrize(
    "mixed", list(itertools.product([torch.bfloat16, torch.float32], repeat=4))
)
def test_any_mixture_of_dtypes(compiled: str, mixed: tuple[torch.dtype, ...]) -> None:
    """Protects autocast, under which each tensor may come in another dtype."""
    shapes = [(6, 5), (3, 2)]
    inputs = [
        tensor.detach().to(torch.bfloat16).to(dtype)
        for tensor, dtype in zip(fused_inputs(shapes), mixed, strict=True)
    ]
    got = attend_fused(compiled, shapes, *inputs)
    expected = attend_fused(compiled, shapes, *(tensor.double() for tensor in inputs))
    assert got.dtype == mixed[0]
    torch.testing.assert_close(got.double(), expected, atol=2e-2, rtol=1e-2)
