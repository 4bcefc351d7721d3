"""The compared operators: ours, torch's own, and those of other installed packages."""

import functools
import importlib
import sys
from collections.abc import Callable
from pathlib import Path

import torch
from cases import DEVICE, Case, starts_of
from torch import Tensor

sys.path.append(str(Path(__file__).parents[2]))  # for a checkout that isn't installed

from hf_detr.ops.multi_scale_deformable_attention import (
    attend_around_references,
    multi_scale_deformable_attention,
)

Operator = Callable[..., Tensor]


def our_side(kernel: str) -> Callable[[Case], Operator]:
    def make(case: Case) -> Operator:
        shapes, starts = case.shapes, starts_of(case.shapes)
        if case.is_fused:
            return lambda value, offsets, logits, references: attend_around_references(
                value, shapes, starts, references, offsets, logits, kernel=kernel
            )
        return lambda value, locations, weights: multi_scale_deformable_attention(
            value, shapes, starts, locations, weights, kernel=kernel
        )

    return make


def unfused(operator: Operator, wants_one_dtype: bool = False) -> Operator:
    """Locations and weights by torch, for operators that don't take offsets and logits."""

    def call(shapes: Tensor, starts: Tensor, case: Case, *inputs: Tensor) -> Tensor:
        value, points, weights, *references = inputs
        if references:
            weights = weights.flatten(3).softmax(-1).view(weights.shape).to(value.dtype)
            places = references[0][:, :, None, :, None]
            points = places + points.to(places.dtype) / shapes.flip(-1)[:, None]
        if wants_one_dtype and points.dtype != value.dtype:
            # Eight bits of precision are too few to identify a pixel.
            exact = operator(value.float(), shapes, starts, points.float(), weights.float())
            return exact.to(value.dtype)
        return operator(value, shapes, starts, points, weights)

    return call


def prepare(call: Callable[..., Tensor], case: Case) -> Operator:
    """Moves shapes and starts to the GPU once, in the format of these operators."""
    shapes = torch.tensor(case.shapes, device=DEVICE)
    starts = torch.tensor(starts_of(case.shapes), device=DEVICE)
    return functools.partial(call, shapes, starts, case)


def deformops_side(backend: str) -> Callable[[Case], Operator]:
    registry = importlib.import_module("deformops.registry")
    msda, backend = registry.msda, registry.Backend(backend)

    def operator(value: Tensor, shapes: Tensor, starts: Tensor, *points: Tensor) -> Tensor:
        return msda(value, shapes, starts, *points, backend=backend)

    return functools.partial(prepare, unfused(operator))


def torch_ms_deform_attn_side() -> Callable[[Case], Operator]:
    module = importlib.import_module("torch_ms_deform_attn")
    return functools.partial(prepare, unfused(module.ms_deform_attn, True))


def original_side() -> Callable[[Case], Operator]:
    """The extension that Deformable DETR's own repository builds."""
    extension = importlib.import_module("MultiScaleDeformableAttention")

    class Original(torch.autograd.Function):
        @staticmethod
        def forward(ctx, *inputs: Tensor) -> Tensor:
            ctx.save_for_backward(*inputs)
            return extension.ms_deform_attn_forward(*inputs, 64)

        @staticmethod
        def backward(ctx, grad: Tensor) -> tuple[Tensor | None, ...]:
            grads = extension.ms_deform_attn_backward(*ctx.saved_tensors, grad.contiguous(), 64)
            return grads[0], None, None, *grads[1:]

    return functools.partial(prepare, unfused(Original.apply, True))


OTHERS = {
    "deformops CUDA": functools.partial(deformops_side, "cuda"),
    "deformops Triton": functools.partial(deformops_side, "triton"),
    "torch_ms_deform_attn": torch_ms_deform_attn_side,
    "original kernel": original_side,
}


def find_sides() -> dict[str, Callable[[Case], Operator]]:
    sides = {"hf_detr": our_side("required"), "grid_sample": our_side("torch")}
    for name, make in OTHERS.items():
        try:
            sides[name] = make()
        except Exception as error:  # any error of the other package's import
            print(f"not compared with {name}: {' '.join(str(error).split())}")
    return sides
