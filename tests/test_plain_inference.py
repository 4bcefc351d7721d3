"""Protects graphs and training from short cuts that are meant for plain inference on CPU."""

import pytest
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from hf_detr.plain_inference import is_plain_inference


class Answer(nn.Module):
    """Adds 1 where short cuts may be taken."""

    def forward(self, x: Tensor) -> Tensor:
        return x + 1 if is_plain_inference(x) else x + 0


def test_only_without_gradients_and_on_cpu() -> None:
    """Protects training, other devices and whatever isn't a tensor."""
    tensor = torch.zeros(2)
    assert not is_plain_inference(tensor)
    with torch.no_grad():
        assert is_plain_inference(tensor)
        assert not is_plain_inference(tensor.to("meta"))
        assert not is_plain_inference("tensor")
    with torch.inference_mode():
        assert is_plain_inference(torch.zeros(2))


@pytest.mark.filterwarnings("ignore:`torch.jit.trace:FutureWarning")
def test_nobody_who_records_sees_a_short_cut() -> None:
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
