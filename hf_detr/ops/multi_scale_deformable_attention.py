"""Multi-scale deformable attention (Deformable DETR, arXiv 2010.04159, Eq. 3), the operator.

Compiled if available, else in one of two torch formulations, chosen by device. A location (x, y) in
[0, 1] of a level (h, w) is at pixel (x * w - 0.5, y * h - 0.5), with centres at integers.
"""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch._C import _functorch
from torch.autograd import forward_ad
from torch.nn import functional as F

from .compiled_attention import (
    KERNELS,
    Kernel,
    find_operators,
    sample_with_compiled_operator,
    sample_with_fused_operator,
)
from .embedding_bag_sampling import sample_with_embedding_bag

Shapes = Sequence[tuple[int, int]]


def multi_scale_deformable_attention(
    value: Tensor,
    spatial_shapes: Tensor | Shapes,
    level_start_index: Tensor | Sequence[int],
    sampling_locations: Tensor,
    attention_weights: Tensor,
    kernel: Kernel = "auto",
) -> Tensor:
    """Sum the bilinear samples that each query takes from all levels, by weight, per head.

    Differentiable in value, locations and weights. Samples outside a level are zero, infinitely
    far ones too; a location that is NaN makes its query's head NaN. Half precision is summed in
    float32. A list of shapes avoids graph breaks; reading a tensor of shapes waits for the
    accelerator once.

    Args:
        value: (B, S, M, C), the levels one after another, each row by row.
        spatial_shapes: (L, 2) as (h, w) of each level; S is the sum of h * w.
        level_start_index: (L,) where each level starts in S.
        sampling_locations: (B, Q, M, L, K, 2) as (x, y) in [0, 1] of each level.
        attention_weights: (B, Q, M, L, K).
        kernel: "auto", the compiled operator if there is one; "compiled", in exported graphs too;
            "required", that or an error; "torch", never.

    Returns:
        (B, Q, M * C), head by head, in value's dtype.

    Raises:
        TypeError: for tensors that don't hold floating-point numbers.
        ValueError: for shapes that don't fit each other, and devices that differ.
        RuntimeError: if `kernel` is "required" and unavailable.
    """
    points = (sampling_locations, attention_weights)
    _check_tensors(value, ("sampling_locations", "attention_weights"), *points)
    shapes = _read_levels(spatial_shapes, level_start_index, value, attention_weights)
    namespace = choose_operators(kernel, value.device.type)
    if namespace is not None:
        return sample_with_compiled_operator(namespace, value, *points, _sizes(shapes))
    return _sample_with_torch(value, *points, shapes)


def attend_around_references(
    value: Tensor,
    spatial_shapes: Tensor | Shapes,
    level_start_index: Tensor | Sequence[int],
    reference_points: Tensor,
    sampling_offsets: Tensor,
    attention_logits: Tensor,
    kernel: Kernel = "auto",
) -> Tensor:
    """The operator from a network's predictions: locations, softmax and samples in one pass.

    Args:
        value, spatial_shapes, level_start_index, kernel: as above.
        reference_points: (B, Q, L, 2) as (x, y) or (B, Q, L, 4) as (cx, cy, w, h), in [0, 1] of
            each level.
        sampling_offsets: (B, Q, M, L, K, 2) as (x, y); pixels from a reference point, or half
            sizes over K from a reference box.
        attention_logits: (B, Q, M, L, K), whose softmax over L and K gives the weights.

    Returns:
        (B, Q, M * C), head by head, in value's dtype.

    Raises:
        TypeError, ValueError, RuntimeError: as above.
    """
    points = (sampling_offsets, attention_logits)
    _check_tensors(value, ("sampling_offsets", "attention_logits"), *points)
    shapes = _read_levels(spatial_shapes, level_start_index, value, attention_logits)
    namespace = choose_operators(kernel, value.device.type)
    if namespace is not None:
        _check_references(reference_points, sampling_offsets)
        return sample_with_fused_operator(
            namespace, value, reference_points, *points, _sizes(shapes)
        )
    locations = locate(reference_points, sampling_offsets, shapes)
    return _sample_with_torch(value, locations, normalize(attention_logits), shapes)


def locate(
    reference_points: Tensor, sampling_offsets: Tensor, spatial_shapes: Tensor | Shapes
) -> Tensor:
    """Sampling locations (B, Q, M, L, K, 2) from references and offsets, shaped as above."""
    _check_references(reference_points, sampling_offsets)
    references = reference_points[:, :, None, :, None]  # (B, Q, 1, L, 1, 2 or 4)
    # Half precision can't represent the position within a large map.
    exact = torch.promote_types(sampling_offsets.dtype, torch.float32)
    sampling_offsets = sampling_offsets.to(exact)
    if references.shape[-1] == 2:
        return references + sampling_offsets / _level_sizes(spatial_shapes, sampling_offsets)
    center, size = references.split(2, dim=-1)
    return center + sampling_offsets / sampling_offsets.shape[-2] * size * 0.5


def normalize(attention_logits: Tensor) -> Tensor:
    """Weights (B, Q, M, L, K) of logits: a softmax over all levels and points of a head."""
    return attention_logits.flatten(3).softmax(-1).view(attention_logits.shape)


def choose_operators(kernel: Kernel, device_type: str) -> str | None:
    """Name of the compiled operators in `torch.ops`; None if unavailable or not wanted."""
    if kernel not in KERNELS:
        raise ValueError(f"kernel is {kernel!r}; it must be one of {', '.join(KERNELS)}")
    if kernel == "torch":
        return None
    if kernel == "auto" and (is_recorded() or device_type not in ("cpu", "cuda")):
        return None
    if torch.jit.is_tracing():  # for which torch can't record operators with lists of sizes
        namespace = None
        reason = "torch.jit.trace can't record the compiled operator; torch.export can"
    elif is_transformed():
        namespace = None
        reason = "torch.func and forward-mode gradients can't transform the compiled operator"
    else:
        namespace, reason = find_operators(device_type)
    if kernel == "required" and namespace is None:
        raise RuntimeError(
            f"kernel is 'required', but the compiled operator is unavailable: {reason}"
        )
    return namespace


def is_recorded() -> bool:
    """Whether a graph is recorded that runs elsewhere, and so has torch's own operators only."""
    return torch.compiler.is_exporting() or torch.jit.is_tracing()


def is_transformed() -> bool:
    """Whether a transform of `torch.func` or forward-mode gradients see each operator.

    They need torch's own operators: of others, the latter would silently be zero.
    """
    return not torch.compiler.is_compiling() and (
        _functorch.peek_interpreter_stack() is not None or forward_ad._current_level >= 0
    )


def _sizes(shapes: Shapes) -> list[int]:
    return [size for shape in shapes for size in shape]


def _sample_with_torch(value: Tensor, locations: Tensor, weights: Tensor, shapes: Shapes) -> Tensor:
    tensors = (value, locations, weights)
    is_double = any(tensor.dtype == torch.float64 for tensor in tensors)
    exact = (tensor.to(torch.float64 if is_double else torch.float32) for tensor in tensors)
    # grid_sample can be exported (ONNX has it) and is one fast kernel on an accelerator, but slow
    # on CPU, where embedding_bag's vectorised gather takes a twentieth of its time.
    if value.device.type == "cpu" and not is_recorded() and not is_transformed():
        output = sample_with_embedding_bag(*exact, _sizes(shapes))
    else:
        output = sample_with_grid_sample(*exact, shapes)
    return output.to(value.dtype)


# ---------------------------------------------------------------- checks


def _check_tensors(value: Tensor, names: tuple[str, str], points: Tensor, weights: Tensor) -> None:
    layouts = ("(B, S, M, C)", "(B, Q, M, L, K, 2)", "(B, Q, M, L, K)")
    for name, layout, tensor in zip(
        ("value", *names), layouts, (value, points, weights), strict=True
    ):
        if not tensor.is_floating_point():
            raise TypeError(f"{name} must hold floating-point numbers, not {tensor.dtype}")
        if tensor.ndim != layout.count(",") + 1:
            raise ValueError(f"{name} must be {layout}, not of shape {tuple(tensor.shape)}")
        if tensor.device != value.device:
            raise ValueError(f"{name} is on {tensor.device}, but value on {value.device}")
    if points.shape[:-1] != weights.shape or points.shape[-1] != 2:
        raise ValueError(
            f"{names[0]} must have the shape of {names[1]} and a last axis of 2, "
            f"not {tuple(points.shape)} for {tuple(weights.shape)}"
        )
    if (value.shape[0], value.shape[2]) != (weights.shape[0], weights.shape[2]):
        raise ValueError(
            f"value (B, S, M, C) and {names[1]} (B, Q, M, L, K) must agree in B and M, "
            f"but their shapes are {tuple(value.shape)} and {tuple(weights.shape)}"
        )


def _check_references(reference_points: Tensor, sampling_offsets: Tensor) -> None:
    batch_size, num_queries, _, num_levels = sampling_offsets.shape[:4]
    *shape, num_coordinates = reference_points.shape
    if shape != [batch_size, num_queries, num_levels] or num_coordinates not in (2, 4):
        raise ValueError(
            f"reference_points must be ({batch_size}, {num_queries}, {num_levels}, 2 or 4), "
            f"not {tuple(reference_points.shape)}"
        )
    if not reference_points.is_floating_point():
        raise TypeError(
            f"reference_points must hold floating-point numbers, not {reference_points.dtype}"
        )
    if reference_points.device != sampling_offsets.device:
        raise ValueError(
            f"reference_points is on {reference_points.device}, but the offsets on "
            f"{sampling_offsets.device}"
        )


def _read_levels(
    spatial_shapes: Tensor | Shapes,
    level_start_index: Tensor | Sequence[int],
    value: Tensor,
    weights: Tensor,
) -> list[tuple[int, int]]:
    """The levels' shapes as numbers (h, w), symbolic ones where a graph is traced, checked."""
    if isinstance(spatial_shapes, Tensor):
        if spatial_shapes.is_floating_point():
            raise TypeError(f"spatial_shapes must hold integers, not {spatial_shapes.dtype}")
        if spatial_shapes.ndim != 2:
            raise ValueError(f"spatial_shapes must be (L, 2), not {tuple(spatial_shapes.shape)}")
        spatial_shapes = spatial_shapes.tolist()
    shapes = [tuple(shape) for shape in spatial_shapes]
    if any(len(shape) != 2 for shape in shapes):
        raise ValueError(f"spatial_shapes must be (h, w) for each level, not {shapes}")
    if any(size < 1 for shape in shapes for size in shape):
        raise ValueError(f"spatial_shapes must be positive, unlike {shapes}")
    num_tokens, num_levels = value.shape[1], weights.shape[3]
    if len(shapes) != num_levels or len(level_start_index) != num_levels:
        raise ValueError(
            f"attention_weights has {num_levels} levels, but spatial_shapes has {len(shapes)} "
            f"and level_start_index {len(level_start_index)}"
        )
    expected = [0]
    for height, width in shapes:
        expected.append(expected[-1] + height * width)
    if expected.pop() != num_tokens:
        raise ValueError(f"value has {num_tokens} tokens, but spatial_shapes {shapes} give others")
    if isinstance(level_start_index, Tensor):
        # The shapes determine it, so waiting for a device or a graph break isn't worth it.
        if torch.compiler.is_compiling() or level_start_index.device.type != "cpu":
            return shapes
        level_start_index = level_start_index.tolist()
    if list(level_start_index) != expected:
        raise ValueError(f"level_start_index is {list(level_start_index)}, not {expected}")
    return shapes


# ---------------------------------------------------------------- in torch's own operators


def _level_sizes(spatial_shapes: Tensor | Shapes, like: Tensor) -> Tensor:
    """(L, 1, 2) as (w, h), in the dtype and on the device of `like`."""
    if isinstance(spatial_shapes, Tensor):
        return spatial_shapes.flip(-1).to(like)[:, None]
    # One by one: symbolic sizes stay symbolic, and no device waits for a copy.
    sizes = [
        like.new_full((), size) for height, width in spatial_shapes for size in (width, height)
    ]
    return torch.stack(sizes).unflatten(0, (-1, 1, 2))


def sample_with_grid_sample(
    value: Tensor, locations: Tensor, weights: Tensor, shapes: Shapes
) -> Tensor:
    """Sample level by level with torch's image sampler; tensors of one dtype, as above."""
    batch_size, num_queries, num_heads = weights.shape[:3]
    # Locations beyond these sample zeros and have no gradient; NaN stays.
    locations = locations.clamp(-1, 2)
    # grid_sample would treat NaN as -1.
    weights = weights + 0 * locations.detach().sum(-1)
    grid = (2 * locations - 1).transpose(1, 2).flatten(0, 1)  # (B * M, Q, L, K, 2)
    weights = weights.transpose(1, 2).flatten(0, 1)  # (B * M, Q, L, K)
    tokens = value.split([height * width for height, width in shapes], dim=1)
    output = value.new_zeros(batch_size * num_heads, value.shape[-1], num_queries)
    for level, (height, width) in enumerate(shapes):
        image = tokens[level].permute(0, 2, 3, 1).flatten(0, 1)  # (B * M, C, h * w)
        image = image.unflatten(-1, (height, width))
        samples = F.grid_sample(image, grid[:, :, level], align_corners=False)
        output = output + (samples * weights[:, None, :, level]).sum(-1)
    return output.unflatten(0, (batch_size, num_heads)).permute(0, 3, 1, 2).flatten(2)
