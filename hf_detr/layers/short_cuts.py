"""When a forward pass may take short cuts that a graph, a hook or a gradient would miss."""

from torch import Tensor, compiler, is_grad_enabled, jit, nn
from torch.nn.modules.module import _has_any_global_hook
from torch.utils._python_dispatch import _get_current_dispatch_mode

from ..ops.multi_scale_deformable_attention import is_transformed


def inference_only(tensor: Tensor) -> bool:
    """Whether values of `tensor` can be read (see `is_readable`), and no gradients are computed.

    Only then may a forward pass take short cuts. Compiled and exported graphs, and tools that
    record operators (FLOP counters, fake tensors), need the original model.
    """
    return is_readable(tensor) and not is_grad_enabled()


def is_readable(tensor: Tensor) -> bool:
    """Whether `tensor` is on the CPU, and operators aren't traced or recorded.

    Graphs can't depend on values, and on accelerators reading them waits for the device.
    """
    return (
        not compiler.is_compiling()  # first: a compiler evaluates nothing after it
        and not jit.is_tracing()
        and not is_transformed()  # `no_grad` doesn't switch these gradients off
        and _get_current_dispatch_mode() is None
        and isinstance(tensor, Tensor)
        and tensor.device.type == "cpu"
    )


def only_runs_its_class(module: nn.Module) -> bool:
    """Whether calling a module does what its class does, without hooks of its own."""
    return not (
        module._forward_hooks
        or module._forward_pre_hooks
        or module._backward_hooks
        or module._backward_pre_hooks
        or module._compiled_call_impl
        or "forward" in vars(module)
    )


def has_global_hooks() -> bool:
    """Whether hooks run with every module of the process."""
    return bool(_has_any_global_hook())
