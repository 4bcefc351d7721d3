"""The compiled operators of `kernels/` as torch operators: shapes, autograd, dtypes."""

import functools
from typing import Literal, get_args

import torch
from torch import Tensor

from .embedding_bag_sampling import refuse_second_derivative, save_inputs
from .kernel_loader import load_kernel

# "auto": the compiled operator on CPU and CUDA, or torch, with one message that gives the reason;
# exports contain torch's own operators. "compiled": in exports too. "required": compiled or an
# error. "torch": never compiled.
Kernel = Literal["auto", "torch", "compiled", "required"]
KERNELS: tuple[str, ...] = get_args(Kernel)


@torch.compiler.assume_constant_result
def find_operators(device_type: str) -> tuple[str | None, str]:
    """Load or build the operators once, and register them with autograd.

    Returns:
        Their name in `torch.ops`, or None, and then the reason in one sentence.
    """
    if device_type not in ("cpu", "cuda"):
        return None, f"there is no compiled operator for the device type {device_type!r}"
    status = load_kernel(device_type)
    if status.namespace and status.source != "hub":  # the package of a Hub kernel registers its own
        _register(status.namespace)
    return status.namespace, status.reason


def sample_with_compiled_operator(
    namespace: str, value: Tensor, locations: Tensor, weights: Tensor, sizes: list[int]
) -> Tensor:
    """`sample_with_embedding_bag` for any floating-point dtypes; the result has value's."""
    operator = getattr(torch.ops, namespace).deformable_attention
    exact_value, locations, weights = _match_dtypes(value, locations, weights)
    return operator(exact_value, locations, weights, sizes).to(value.dtype)


def sample_with_fused_operator(
    namespace: str,
    value: Tensor,
    reference_points: Tensor,
    offsets: Tensor,
    logits: Tensor,
    sizes: list[int],
) -> Tensor:
    """The same from references (B, Q, L, 2 or 4), offsets (B, Q, M, L, K, 2) and logits."""
    operator = getattr(torch.ops, namespace).fused_deformable_attention
    exact_value, offsets, logits = _match_dtypes(value, offsets, logits, reference_points)
    exact = torch.float64 if exact_value.dtype == torch.float64 else torch.float32
    output = operator(exact_value, reference_points.to(exact), offsets, logits, sizes)
    return output.to(value.dtype)


def _match_dtypes(
    value: Tensor, points: Tensor, weights: Tensor, *others: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Convert to one dtype, or keep half precision and convert the points to float32."""
    if any(tensor.dtype == torch.float64 for tensor in (value, points, weights, *others)):
        return value.double(), points.double(), weights.double()
    if value.dtype == points.dtype == weights.dtype:
        return value, points, weights
    return value, points.float(), weights.float()


# ---------------------------------------------------------------- registration


@functools.cache
def _register(namespace: str) -> None:
    """Register the shapes and derivatives; the library registers schemas and implementations."""
    attention = f"{namespace}::deformable_attention"
    fused = f"{namespace}::fused_deformable_attention"
    for name in (attention, fused):
        torch.library.register_fake(name, _fake_output)
        torch.library.register_fake(f"{name}_backward", _fake_gradients)
        torch.library.register_autograd(f"{name}_backward", refuse_second_derivative)
    operators = getattr(torch.ops, namespace)

    def differentiate(ctx, grad: Tensor) -> tuple[Tensor | None, ...]:
        backward = operators.deformable_attention_backward
        is_deterministic = torch.are_deterministic_algorithms_enabled()
        return *backward(grad, *ctx.saved_tensors, ctx.sizes, is_deterministic), None

    def differentiate_fused(ctx, grad: Tensor) -> tuple[Tensor | None, ...]:
        backward = operators.fused_deformable_attention_backward
        wants_references = ctx.needs_input_grad[1]
        is_deterministic = torch.are_deterministic_algorithms_enabled()
        grad_value, grad_references, *grads = backward(
            grad, *ctx.saved_tensors, ctx.sizes, wants_references, is_deterministic
        )
        return grad_value, grad_references if wants_references else None, *grads, None

    torch.library.register_autograd(attention, differentiate, setup_context=save_inputs)
    torch.library.register_autograd(fused, differentiate_fused, setup_context=save_inputs)


def _fake_output(value: Tensor, *arguments: Tensor | list[int]) -> Tensor:
    weights = arguments[-2]
    return value.new_empty(*weights.shape[:2], value.shape[2] * value.shape[3])


def _fake_gradients(grad: Tensor, *arguments: Tensor | list[int] | bool) -> tuple[Tensor, ...]:
    tensors = [argument for argument in arguments if isinstance(argument, Tensor)]
    grads = [tensor.new_empty(tensor.shape) for tensor in tensors]
    if len(grads) == 4 and not arguments[-2]:  # the references need no gradient
        grads[1] = grads[1].new_empty(0)
    return tuple(grads)
