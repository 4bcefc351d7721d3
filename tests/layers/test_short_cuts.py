"""Protects graphs, hooks and gradients from short cuts of inference."""

import pytest
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from hf_detr.layers.short_cuts import has_global_hooks, inference_only, only_runs_its_class


class Answer(nn.Module):
    """Adds 1 where short cuts are allowed."""

    def forward(self, x: Tensor) -> Tensor:
        return x + 1 if inference_only(x) else x + 0


def test_only_without_gradients_and_on_cpu() -> None:
    """Protects training, other devices and arguments that aren't tensors."""
    tensor = torch.zeros(2)
    assert not inference_only(tensor)
    with torch.no_grad():
        assert inference_only(tensor)
        assert not inference_only(tensor.to("meta"))
        assert not inference_only("tensor")
    with torch.inference_mode():
        assert inference_only(torch.zeros(2))


@pytest.mark.filterwarnings("ignore:`torch.jit.trace:FutureWarning")
def test_recorded_operators_contain_no_short_cut() -> None:
    """Protects compiled, exported and traced graphs, and tools that count operators."""
    x = torch.zeros(2)
    model = Answer()
    with torch.no_grad():
        assert model(x).tolist() == [1, 1]
        assert torch.compile(model, backend="eager", fullgraph=True)(x).tolist() == [0, 0]
        assert torch.export.export(model, (x,)).module()(x).tolist() == [0, 0]
        assert torch.jit.trace(model, x, check_trace=False)(x).tolist() == [0, 0]
        with FlopCounterMode(display=False):
            assert model(x).tolist() == [0, 0]


@pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated:FutureWarning")  # torch's own
def test_forward_mode_and_transforms() -> None:
    """Protects torch.func and forward-mode gradients, which `no_grad` doesn't switch off."""
    x, model = torch.zeros(2), Answer()
    with torch.no_grad():
        assert torch.func.jvp(model, (x,), (x,))[0].tolist() == [0, 0]
        assert torch.func.vmap(model)(x).tolist() == [0, 0]
        with torch.autograd.forward_ad.dual_level():
            assert model(x).tolist() == [0, 0]
        assert model(x).tolist() == [1, 1]


@pytest.mark.parametrize("hook", ["forward", "forward_pre", "full_backward", "full_backward_pre"])
def test_hooks_are_noticed(hook: str) -> None:
    """Protects hooks of one module, which code that only takes its weights wouldn't call."""
    module = nn.Linear(1, 1)
    assert only_runs_its_class(module)
    handle = getattr(module, f"register_{hook}_hook")(lambda *_: None)
    assert not only_runs_its_class(module)
    handle.remove()
    assert only_runs_its_class(module)


def test_replaced_forward_is_noticed() -> None:
    """Protects modules that were compiled in place, or whose method another package replaced."""
    compiled, replaced = nn.Linear(1, 1), nn.Linear(1, 1)
    compiled.compile(backend="eager")
    replaced.forward = lambda x: x
    assert not only_runs_its_class(compiled) and not only_runs_its_class(replaced)


def test_global_hooks_are_noticed() -> None:
    """Protects tools that hook every module."""
    assert not has_global_hooks()
    handle = nn.modules.module.register_module_forward_hook(lambda *_: None)
    try:
        assert has_global_hooks()
    finally:
        handle.remove()
    assert not has_global_hooks()
