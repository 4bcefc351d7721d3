"""Multi-scale deformable attention (Deformable DETR, arXiv 2010.04159, Eq. 3) on CPU and CUDA.

In all shapes: B images, S tokens (the levels one after another, each row by row), M heads of C
channels, Q queries, L levels, K points. A location (x, y) in [0, 1] of a level (h, w) is at pixel
(x * w - 0.5, y * h - 0.5), centres at integers; pixels outside a level are zero.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ._ops import add_op_namespace_prefix, ops


def deformable_attention(
    value: Tensor,
    spatial_shapes: Sequence[tuple[int, int]],
    sampling_locations: Tensor,
    attention_weights: Tensor,
) -> Tensor:
    """Sum the bilinear samples that each query takes from all levels, by weight, per head.

    Args:
        value: (B, S, M, C), of any floating-point dtype up to float64.
        spatial_shapes: (h, w) of each level; S is the sum of h * w.
        sampling_locations: (B, Q, M, L, K, 2) as (x, y) in [0, 1] of each level.
        attention_weights: (B, Q, M, L, K).

    Returns:
        (B, Q, M * C), head by head, in value's dtype; differentiable in all tensors, once.
    """
    tensors = _match_dtypes(value, sampling_locations, attention_weights)
    sizes = [size for shape in spatial_shapes for size in shape]
    return ops.deformable_attention(*tensors, sizes).to(value.dtype)


def fused_deformable_attention(
    value: Tensor,
    spatial_shapes: Sequence[tuple[int, int]],
    reference_points: Tensor,
    sampling_offsets: Tensor,
    attention_logits: Tensor,
) -> Tensor:
    """The same from a network's predictions: locations, softmax and samples in one pass.

    Args:
        value, spatial_shapes: as above.
        reference_points: (B, Q, L, 2) as (x, y) or (B, Q, L, 4) as (cx, cy, w, h), in [0, 1].
        sampling_offsets: (B, Q, M, L, K, 2) as (x, y); pixels from a reference point, or half
            sizes over K from a reference box.
        attention_logits: (B, Q, M, L, K), whose softmax over L and K gives the weights.

    Returns:
        (B, Q, M * C), as above.
    """
    first, *points = _match_dtypes(value, sampling_offsets, attention_logits, reference_points)
    exact = torch.float64 if first.dtype == torch.float64 else torch.float32
    tensors = (first, reference_points.to(exact), *points)
    sizes = [size for shape in spatial_shapes for size in shape]
    return ops.fused_deformable_attention(*tensors, sizes).to(value.dtype)


def _match_dtypes(value: Tensor, points: Tensor, weights: Tensor, *others: Tensor) -> list[Tensor]:
    """Convert to one dtype, or keep half precision and convert the points to float32."""
    tensors = [value, points, weights]
    if any(tensor.dtype == torch.float64 for tensor in (*tensors, *others)):
        return [tensor.double() for tensor in tensors]
    if value.dtype == points.dtype == weights.dtype:
        return tensors
    return [value, points.float(), weights.float()]


@torch.library.register_fake(add_op_namespace_prefix("deformable_attention"))
@torch.library.register_fake(add_op_namespace_prefix("fused_deformable_attention"))
def _fake_output(value, *arguments):
    return value.new_empty(*arguments[-2].shape[:2], value.shape[2] * value.shape[3])


@torch.library.register_fake(add_op_namespace_prefix("deformable_attention_backward"))
@torch.library.register_fake(add_op_namespace_prefix("fused_deformable_attention_backward"))
def _fake_gradients(grad, *arguments):
    grads = [tensor.new_empty(tensor.shape) for tensor in arguments if isinstance(tensor, Tensor)]
    if len(grads) == 4 and not arguments[-2]:  # the references need no gradient
        grads[1] = grads[1].new_empty(0)
    return tuple(grads)


def _save_inputs(ctx, inputs, output):
    *tensors, ctx.sizes = inputs
    ctx.save_for_backward(*tensors)


def _differentiate(ctx, grad):
    is_deterministic = torch.are_deterministic_algorithms_enabled()
    grads = ops.deformable_attention_backward(grad, *ctx.saved_tensors, ctx.sizes, is_deterministic)
    return (*grads, None)


def _differentiate_fused(ctx, grad):
    options = (ctx.needs_input_grad[1], torch.are_deterministic_algorithms_enabled())
    tensors = ctx.saved_tensors
    grads = ops.fused_deformable_attention_backward(grad, *tensors, ctx.sizes, *options)
    return (grads[0], grads[1] if options[0] else None, *grads[2:], None)


def _refuse(ctx, *grads):
    raise RuntimeError("deformable attention has no second derivative")


for _prefix, _derivative in (("", _differentiate), ("fused_", _differentiate_fused)):
    _operator = add_op_namespace_prefix(f"{_prefix}deformable_attention")
    torch.library.register_autograd(_operator, _derivative, setup_context=_save_inputs)
    torch.library.register_autograd(f"{_operator}_backward", _refuse)

from . import layers  # noqa: E402  (it needs the function above)

__all__ = ["deformable_attention", "fused_deformable_attention", "layers"]
