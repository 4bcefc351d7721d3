"""When a forward pass may take short cuts: nothing is learned from it, and nobody records it."""

import torch
from torch import Tensor
from torch.utils._python_dispatch import _get_current_dispatch_mode


def is_plain_inference(tensor: Tensor) -> bool:
    """Whether `tensor` is on the CPU, without gradients, and nothing traces or watches operators.

    Compiled and exported graphs, and tools that look at operators (FLOP counters, fake tensors),
    see the model as it is; on accelerators a look at values would wait for the device.
    """
    return (
        not torch.compiler.is_compiling()  # first: a compiler evaluates nothing behind it
        and not torch.is_grad_enabled()
        and not torch.jit.is_tracing()
        and _get_current_dispatch_mode() is None
        and isinstance(tensor, Tensor)
        and tensor.device.type == "cpu"
    )
