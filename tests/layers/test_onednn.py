"""Protects oneDNN's operators: torch's results, and only where torch would compute them itself."""

import copy

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.profiler import ProfilerActivity, profile

from hf_detr.layers import onednn
from hf_detr.layers.onednn import FusedConvolution, by_onednn, has_fast_onednn, linear

pytestmark = pytest.mark.skipif(not has_fast_onednn(), reason="needs oneDNN and AVX2")
DTYPES = [torch.float32, torch.bfloat16]


@pytest.fixture(autouse=True)
def used_whatever_the_size(monkeypatch: pytest.MonkeyPatch) -> None:
    """The tensors of these tests are small."""
    monkeypatch.setattr(onednn, "LEAST_VALUES", 0)


def takes_onednn(layer: nn.Module, tensor: Tensor) -> bool:
    """Whether `linear` calls oneDNN's operator, after comparing its result with the layer's."""
    with torch.no_grad():
        expected = layer(tensor)
        with profile(activities=[ProfilerActivity.CPU]) as record:
            got = linear(layer, tensor)
    tolerance = 1e-5 if got.dtype == torch.float32 else 1e-2
    torch.testing.assert_close(got, expected, atol=tolerance, rtol=tolerance)
    return any(event.name == "mkldnn::_linear_pointwise" for event in record.events())


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("bias", [True, False])
def test_linear(dtype: torch.dtype, bias: bool) -> None:
    """Protects results of contiguous and other tensors, of any number of dimensions."""
    layer = nn.Linear(24, 7, bias=bias, dtype=dtype)
    x = torch.randn(3, 24, 5, dtype=dtype)
    expected = has_fast_onednn(dtype)
    for tensor in (x.transpose(1, 2), x.transpose(1, 2).contiguous(), x[0].T, torch.ones(0, 24)):
        assert takes_onednn(layer, tensor.to(dtype)) is expected


def test_linear_of_few_tokens(monkeypatch: pytest.MonkeyPatch) -> None:
    """Protects small inputs, for which torch's product is as fast."""
    monkeypatch.setattr(onednn, "LEAST_VALUES", 9)
    layer = nn.Linear(2, 3)
    assert not takes_onednn(layer, torch.randn(4, 2)) and takes_onednn(layer, torch.randn(5, 2))


class Doubled(nn.Linear):
    """A subclass with another result, as adapters and quantization make them."""

    def forward(self, x: Tensor) -> Tensor:
        return 2 * super().forward(x)


def test_what_other_packages_change() -> None:
    """Protects subclasses, replaced methods, hooks of one module and of all, and other dtypes."""
    x = torch.randn(5, 2)
    hooked, replaced = nn.Linear(2, 3), nn.Linear(2, 3)
    hooked.register_forward_hook(lambda module, args, output: output + 1)
    replaced.forward = lambda x: x + 1
    double = nn.Linear(2, 3).double()
    assert not takes_onednn(Doubled(2, 3), x)
    assert not takes_onednn(hooked, x)
    assert not takes_onednn(replaced, x)
    assert not takes_onednn(double, x.double())
    handle = nn.modules.module.register_module_forward_hook(lambda module, args, output: output + 1)
    try:
        assert not takes_onednn(nn.Linear(2, 3), x)
    finally:
        handle.remove()


def test_wrong_width() -> None:
    """Protects torch's message, which names both shapes."""
    with torch.no_grad(), pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
        linear(nn.Linear(2, 3), torch.randn(5, 4))


def test_nan_stays() -> None:
    """Protects from plausible numbers of a model that diverged."""
    with torch.no_grad():
        assert linear(nn.Linear(2, 3), torch.tensor([[1.0, torch.nan]])).isnan().all()


def test_gradients_are_left_to_torch() -> None:
    """Protects training: the operator has no backward pass."""
    layer, x = nn.Linear(2, 3), torch.randn(5, 2)
    linear(layer, x).sum().backward()
    assert layer.weight.grad is not None


def test_settings_of_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    """Protects autocast's dtype, and a switched-off oneDNN."""
    layer, x = nn.Linear(2, 3), torch.randn(5, 2)
    convolution = by_onednn(nn.Conv2d(3, 3, 1))
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        assert (
            linear(layer, x).dtype == convolution(torch.randn(1, 3, 2, 2)).dtype == torch.bfloat16
        )
    monkeypatch.setattr(torch._C, "_get_mkldnn_enabled", lambda: False)
    assert not takes_onednn(layer, x)


def test_question_draws_no_random_numbers() -> None:
    """Protects seeds: asking for the operators doesn't change what is drawn next."""
    has_fast_onednn.cache_clear()
    torch.manual_seed(0)
    expected = torch.rand(3)
    torch.manual_seed(0)
    assert has_fast_onednn()
    assert torch.equal(torch.rand(3), expected)


def test_operators_of_another_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    """Protects versions of torch without these operators: its own layers compute."""
    layer, x = nn.Linear(2, 3), torch.randn(5, 2)

    def missing(*_: object) -> None:
        raise AttributeError("no such operator")

    monkeypatch.setattr(onednn, "_linear", missing)
    has_fast_onednn.cache_clear()
    try:
        assert not takes_onednn(layer, x)
    finally:
        has_fast_onednn.cache_clear()


ACTIVATIONS = {None: lambda x: x, nn.ReLU: F.relu, nn.ReLU6: F.relu6}


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("kernel_size", [1, 3])
def test_convolution(activation: type | None, dtype: torch.dtype, kernel_size: int) -> None:
    """Protects a convolution with addition and activation in every combination."""
    convolution = nn.Conv2d(8, 6, kernel_size, padding=kernel_size // 2, dtype=dtype)
    x = 4 * torch.randn(2, 8, 5, 7, dtype=dtype).contiguous(memory_format=torch.channels_last)
    residual = torch.randn(2, 6, 5, 7, dtype=dtype)
    with torch.no_grad():
        plain = convolution(x)
        fused = by_onednn(convolution)
        fused.activation = activation and activation()
        maps = (residual, residual.contiguous(memory_format=torch.channels_last))
        for other in (None, *(maps if activation is not nn.ReLU6 else ())):
            summed = plain if other is None else plain + other
            expected = ACTIVATIONS[activation](summed)
            tolerance = 1e-5 if dtype == torch.float32 else 3e-2
            torch.testing.assert_close(fused(x, other), expected, atol=tolerance, rtol=tolerance)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("groups", [1, 2, 16])
def test_maps_of_several_sizes(dtype: torch.dtype, groups: int) -> None:
    """Protects the weight's order, which is made for one size, when sizes change."""
    convolution = nn.Conv2d(16, 32, 3, stride=2, padding=1, groups=groups, dtype=dtype)
    fused, seen = by_onednn(convolution), set()
    tolerance = 1e-5 if dtype == torch.float32 else 3e-2
    with torch.no_grad():
        for size in ((1, 9), (1, 9), (1, 9), (3, 9), (1, 9), (1, 40), (1, 40), (1, 9), (1, 9)):
            x = torch.randn(size[0], 16, size[1], 11, dtype=dtype)
            weights = (fused.weight, fused.bias, 2, 1, 1, groups)
            expected = F.conv2d(x, *weights)
            torch.testing.assert_close(fused(x), expected, atol=tolerance, rtol=tolerance)
            seen.add((size, fused.ordered[1] is not None))
        with pytest.raises(RuntimeError, match="expected input"):
            fused(x[:, 1:])  # torch's error
        assert torch.equal(copy.deepcopy(fused)(x), fused(x))
    assert seen == {
        ((1, 9), False),
        ((1, 9), True),
        ((3, 9), False),
        ((1, 40), False),
        ((1, 40), True),
    }


def test_residual_of_another_shape() -> None:
    """Protects broadcasting, which oneDNN's addition in place doesn't do."""
    fused, x = by_onednn(nn.Conv2d(4, 4, 1)), torch.randn(2, 4, 3, 3)
    fused.activation = nn.ReLU()
    with torch.no_grad():
        for shape in ((2, 4, 1, 1), (1, 4, 3, 3), (2, 1, 3, 3)):
            residual = torch.randn(shape)
            expected = F.relu(F.conv2d(x, fused.weight, fused.bias) + residual)
            torch.testing.assert_close(fused(x, residual), expected, atol=1e-5, rtol=0)


def test_which_convolutions() -> None:
    """Protects subclasses and paddings that oneDNN's operator doesn't take."""
    for convolution in (nn.Conv2d(1, 1, 3, padding="same"), nn.Conv2d(1, 1, 3, padding=1)):
        is_number = convolution.padding == (1, 1)
        assert (type(by_onednn(convolution)) is FusedConvolution) is is_number
    reflecting = nn.Conv2d(1, 1, 3, padding=1, padding_mode="reflect")
    assert type(by_onednn(reflecting)) is nn.Conv2d


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"kernel_size": 1}, True),
        ({"kernel_size": 3, "padding": 1}, True),
        ({"kernel_size": 3, "padding": 2, "dilation": 2}, True),
        ({"kernel_size": 3}, False),
        ({"kernel_size": 1, "stride": 2}, False),
        ({"kernel_size": 2, "padding": 1}, False),
    ],
)
def test_keeps_size(settings: dict[str, int], expected: bool) -> None:
    """Protects what decides whether a residual map has the output's size."""
    convolution = by_onednn(nn.Conv2d(1, 1, **settings))
    assert convolution.keeps_size() is expected
    assert (convolution(torch.zeros(1, 1, 8, 8)).shape[2:] == (8, 8)) is expected
