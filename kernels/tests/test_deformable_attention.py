"""Protects a finished build, imported by its name, against the formula written as loops."""

import itertools
import math

import deformable_attention as kernel
import pytest
import torch
from torch import Tensor

pytestmark = pytest.mark.kernels_ci

SHAPES = [(5, 3), (2, 4)]
SIZES = [5, 3, 2, 4]
BATCH, QUERIES, HEADS, POINTS, WIDTH = 2, 4, 2, 3, 8


def random_inputs(device: str, dtype: torch.dtype = torch.float64) -> list[Tensor]:
    """Value, locations (some of them outside) and weights, all with gradients."""
    generator = torch.Generator().manual_seed(0)
    points = (BATCH, QUERIES, HEADS, len(SHAPES), POINTS)
    tokens = sum(height * width for height, width in SHAPES)
    double = {"dtype": torch.float64, "generator": generator}
    value = torch.randn(BATCH, tokens, HEADS, WIDTH, **double)
    locations = torch.rand(*points, 2, **double) * 1.4 - 0.2
    weights = torch.rand(points, **double).flatten(3).softmax(-1).view(points)
    return [tensor.to(device, dtype).requires_grad_() for tensor in (value, locations, weights)]


def random_fused_inputs(device: str, coordinates: int) -> list[Tensor]:
    """Value, references, offsets of up to some pixels, and logits, all with gradients."""
    value, locations, weights = (tensor.detach() for tensor in random_inputs("cpu"))
    generator = torch.Generator().manual_seed(1)
    size = (BATCH, QUERIES, len(SHAPES), coordinates)
    references = torch.rand(size, dtype=torch.float64, generator=generator)
    tensors = (value, references, 5 * (locations - 0.5), 3 * weights)
    return [tensor.to(device).requires_grad_() for tensor in tensors]


def sample(image: Tensor, x: float, y: float) -> Tensor:
    """Bilinear sample of an image (h, w, C) at pixel (x, y), zeros outside."""
    result = torch.zeros_like(image[0, 0])
    corners = itertools.product(
        (math.floor(x), math.floor(x) + 1), (math.floor(y), math.floor(y) + 1)
    )
    for column, row in corners:
        if 0 <= row < image.shape[0] and 0 <= column < image.shape[1]:
            result += (1 - abs(x - column)) * (1 - abs(y - row)) * image[row, column]
    return result


def naive(value: Tensor, locations: Tensor, weights: Tensor) -> Tensor:
    """Eq. 3 of the paper, point by point, in float64 on the CPU."""
    value, locations, weights = (t.detach().cpu().double() for t in (value, locations, weights))
    output = value.new_zeros(BATCH, QUERIES, HEADS, WIDTH)
    levels = value.split([height * width for height, width in SHAPES], dim=1)
    for b, q, m, level, k in itertools.product(*map(range, weights.shape)):
        height, width = SHAPES[level]
        x, y = locations[b, q, m, level, k].tolist()
        image = levels[level][b, :, m].view(height, width, -1)
        pixel = sample(image, x * width - 0.5, y * height - 0.5)
        output[b, q, m] += weights[b, q, m, level, k] * pixel
    return output.flatten(2)


def naive_fused(value: Tensor, references: Tensor, offsets: Tensor, logits: Tensor) -> Tensor:
    references, offsets, logits = (t.detach().cpu() for t in (references, offsets, logits))
    references = references[:, :, None, :, None]
    if references.shape[-1] == 2:
        sizes = torch.tensor([(width, height) for height, width in SHAPES], dtype=torch.float64)
        locations = references + offsets / sizes[:, None]
    else:
        locations = references[..., :2] + offsets / POINTS * references[..., 2:] / 2
    return naive(value, locations, logits.flatten(3).softmax(-1).view(logits.shape))


def attend(*inputs: Tensor) -> Tensor:
    return kernel.deformable_attention(inputs[0], SHAPES, *inputs[1:])


def attend_fused(*inputs: Tensor) -> Tensor:
    return kernel.fused_deformable_attention(inputs[0], SHAPES, *inputs[1:])


@pytest.mark.parametrize(
    ("dtype", "tolerance"),
    [
        (torch.float64, 1e-12),
        (torch.float32, 1e-5),
        (torch.float16, 5e-3),
        (torch.bfloat16, 4e-2),
    ],
)
def test_equals_the_formula(device: str, dtype: torch.dtype, tolerance: float) -> None:
    """Every dtype, against the rounded inputs in float64."""
    inputs = random_inputs(device, dtype)
    output = attend(*inputs)
    assert output.dtype == dtype and output.device.type == device
    expected = naive(*inputs)
    torch.testing.assert_close(output.cpu().double(), expected, atol=tolerance, rtol=tolerance)


def test_half_precision_beside_float32(device: str) -> None:
    """Locations in float32 with a value in half precision, as under autocast."""
    value, locations, weights = random_inputs(device, torch.float32)
    inputs = (value.half(), locations, weights)
    expected = naive(*inputs)
    torch.testing.assert_close(attend(*inputs).cpu().double(), expected, atol=5e-3, rtol=5e-3)


@pytest.mark.parametrize("coordinates", [2, 4])
def test_fused_equals_the_formula(device: str, coordinates: int) -> None:
    """Reference points and boxes."""
    inputs = random_fused_inputs(device, coordinates)
    torch.testing.assert_close(attend_fused(*inputs).cpu(), naive_fused(*inputs))


def test_gradients(device: str) -> None:
    """All derivatives, against finite differences."""
    assert torch.autograd.gradcheck(attend, random_inputs(device), fast_mode=True)
    for coordinates in (2, 4):
        inputs = random_fused_inputs(device, coordinates)
        assert torch.autograd.gradcheck(attend_fused, inputs, fast_mode=True)


@pytest.mark.filterwarnings("ignore:The .grad attribute")  # which opcheck reads
def test_operators_keep_torch_rules(device: str) -> None:
    """Schemas, shapes without data, autograd and compilation."""
    opcheck, ops = torch.library.opcheck, kernel.ops
    grad = torch.ones(BATCH, QUERIES, HEADS * WIDTH, dtype=torch.float64, device=device)
    inputs = random_inputs(device)
    opcheck(ops.deformable_attention.default, (*inputs, SIZES))
    constants = [tensor.detach() for tensor in inputs]
    opcheck(ops.deformable_attention_backward.default, (grad, *constants, SIZES, False))
    for coordinates in (2, 4):
        inputs = random_fused_inputs(device, coordinates)
        opcheck(ops.fused_deformable_attention.default, (*inputs, SIZES))
        constants = [tensor.detach() for tensor in inputs]
        arguments = (grad, *constants, SIZES, coordinates == 2, False)
        opcheck(ops.fused_deformable_attention_backward.default, arguments)


def test_no_second_derivative(device: str) -> None:
    """It raises an error instead of being omitted silently."""
    inputs = random_inputs(device)
    grads = torch.autograd.grad(attend(*inputs).sum(), inputs, create_graph=True)
    with pytest.raises(RuntimeError, match="no second derivative"):
        grads[0].sum().backward()


def test_layer(device: str) -> None:
    """The layer for models of transformers is the function with their arguments."""
    value, locations, weights = inputs = random_inputs(device)
    layer = kernel.layers.MultiScaleDeformableAttention()
    shapes, starts = torch.tensor(SHAPES, device=device), torch.tensor([0, 15], device=device)
    output = layer(value, shapes, SHAPES, starts, locations, weights, 64)
    torch.testing.assert_close(output, attend(*inputs), atol=0, rtol=0)
