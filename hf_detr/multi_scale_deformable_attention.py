"""Multi-scale deformable attention (Deformable DETR, arXiv 2010.04159, Eq. 3).

The operator in two formulations, chosen by device, and the module that feeds it. A location
(x, y) in [0, 1] of a level (h, w) lies at pixel (x * w - 0.5, y * h - 0.5), centres at integers.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import initialization as init

from .attention import OutputProjection
from .embedding_bag_sampling import sample_with_embedding_bag

Shapes = Sequence[tuple[int, int]]


def multi_scale_deformable_attention(
    value: Tensor,
    spatial_shapes: Tensor | Shapes,
    level_start_index: Tensor | Sequence[int],
    sampling_locations: Tensor,
    attention_weights: Tensor,
) -> Tensor:
    """Sum the bilinear samples that each query takes from all levels, by weight, per head.

    Differentiable in value, locations and weights. Samples outside a level are zero, infinitely
    far ones too; a location that is NaN makes its query's head NaN. Half precision is summed in
    float32. A list of shapes keeps compiled and exported graphs whole; a tensor has to be read,
    which on an accelerator waits for it once.

    Args:
        value: (B, S, M, C), the levels one after another, each row by row.
        spatial_shapes: (L, 2) as (h, w) of each level; S is the sum of h * w.
        level_start_index: (L,) where each level starts in S.
        sampling_locations: (B, Q, M, L, K, 2) as (x, y) in [0, 1] of each level.
        attention_weights: (B, Q, M, L, K).

    Returns:
        (B, Q, M * C), head by head, in value's dtype.

    Raises:
        TypeError: for tensors that don't hold floating-point numbers.
        ValueError: for shapes that don't fit each other.
    """
    _check_tensors(value, sampling_locations, attention_weights)
    shapes = _read_shapes(spatial_shapes)
    _check_levels(shapes, level_start_index, value.shape[1], attention_weights.shape[3])
    tensors = (value, sampling_locations, attention_weights)
    is_double = any(tensor.dtype == torch.float64 for tensor in tensors)
    exact = (tensor.to(torch.float64 if is_double else torch.float32) for tensor in tensors)
    # grid_sample exports everywhere (ONNX has it) and is one fast kernel on an accelerator, but
    # slow on CPU, where embedding_bag's vectorised gather takes a twentieth of its time.
    if value.device.type == "cpu" and not torch.compiler.is_exporting():
        sizes = [size for shape in shapes for size in shape]
        output = sample_with_embedding_bag(*exact, sizes)
    else:
        output = sample_with_grid_sample(*exact, shapes)
    return output.to(value.dtype)


# ---------------------------------------------------------------- checks


def _check_tensors(value: Tensor, locations: Tensor, weights: Tensor) -> None:
    names = ("value", "sampling_locations", "attention_weights")
    layouts = ("(B, S, M, C)", "(B, Q, M, L, K, 2)", "(B, Q, M, L, K)")
    tensors = (value, locations, weights)
    for name, layout, tensor in zip(names, layouts, tensors, strict=True):
        if not tensor.is_floating_point():
            raise TypeError(f"{name} must hold floating-point numbers, not {tensor.dtype}")
        if tensor.ndim != layout.count(",") + 1:
            raise ValueError(f"{name} must be {layout}, not of shape {tuple(tensor.shape)}")
    if locations.shape[:-1] != weights.shape or locations.shape[-1] != 2:
        raise ValueError(
            "sampling_locations must have the shape of attention_weights and a last axis of 2, "
            f"not {tuple(locations.shape)} for {tuple(weights.shape)}"
        )
    if (value.shape[0], value.shape[2]) != (weights.shape[0], weights.shape[2]):
        raise ValueError(
            "value (B, S, M, C) and attention_weights (B, Q, M, L, K) must agree in B and M, "
            f"but their shapes are {tuple(value.shape)} and {tuple(weights.shape)}"
        )


def _read_shapes(spatial_shapes: Tensor | Shapes) -> list[tuple[int, int]]:
    """Turn shapes into numbers (h, w), symbolic ones where a graph is traced."""
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
    return shapes


def _check_levels(
    shapes: Shapes, level_start_index: Tensor | Sequence[int], num_tokens: int, num_levels: int
) -> None:
    if len(shapes) != num_levels or len(level_start_index) != num_levels:
        raise ValueError(
            f"attention_weights has {num_levels} levels, but spatial_shapes has {len(shapes)} "
            f"and level_start_index {len(level_start_index)}"
        )
    expected = [0]
    for height, width in shapes:
        expected.append(expected[-1] + height * width)
    if expected.pop() != num_tokens:
        raise ValueError(f"value has {num_tokens} tokens, which spatial_shapes {shapes} don't give")
    if isinstance(level_start_index, Tensor):
        # It repeats what the shapes say: not worth waiting for a device, or breaking a graph.
        if torch.compiler.is_compiling() or level_start_index.device.type != "cpu":
            return
        level_start_index = level_start_index.tolist()
    if list(level_start_index) != expected:
        raise ValueError(f"level_start_index is {list(level_start_index)}, not {expected}")


# ---------------------------------------------------------------- grid_sample


def sample_with_grid_sample(
    value: Tensor, locations: Tensor, weights: Tensor, shapes: Shapes
) -> Tensor:
    """Sample level by level with torch's image sampler; tensors of one dtype, as above."""
    batch_size, num_queries, num_heads = weights.shape[:3]
    # Whatever lies beyond these samples zeros and has no gradient; NaN stays.
    locations = locations.clamp(-1, 2)
    # grid_sample would take NaN for -1.
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


# ---------------------------------------------------------------- the module


class OffsetProjection(nn.Linear):
    """Predicts sampling offsets in pixels; starts with a ring of directions, one a head.

    Args:
        d_model: width D of the queries.
        num_heads: M.
        num_levels: L.
        num_points: K.
    """

    def __init__(self, d_model: int, num_heads: int, num_levels: int, num_points: int) -> None:
        self.layout = (num_heads, num_levels, num_points, 2)
        super().__init__(d_model, math.prod(self.layout))

    def reset_parameters(self) -> None:
        """Zero weight; point k starts k pixels away (along the longer axis) on every level."""
        nn.init.zeros_(self.weight)
        num_heads, _, num_points, _ = self.layout
        device, dtype = self.bias.device, self.bias.dtype
        angles = torch.arange(num_heads, device=device) * (2 * math.pi / num_heads)
        ring = torch.stack([angles.cos(), angles.sin()], dim=-1)
        ring = ring / ring.abs().amax(dim=-1, keepdim=True)
        distances = torch.arange(1, num_points + 1, device=device)
        offsets = ring[:, None, None] * distances[:, None]  # (M, 1, K, 2)
        init.copy_(self.bias, offsets.expand(self.layout).flatten().to(dtype))


class WeightProjection(nn.Linear):
    """Predicts attention weights before the softmax; all equal at first."""

    def reset_parameters(self) -> None:
        """Zero weight, and zero bias."""
        nn.init.zeros_(self.weight)
        nn.init.zeros_(self.bias)


class MultiScaleDeformableAttention(nn.Module):
    """Attention of queries to a few points around their references, on all levels.

    Args:
        d_model: width D of queries, values and output.
        num_heads: M.
        num_levels: L.
        num_points: K, per head and level.

    Raises:
        ValueError: if the heads can't share `d_model` equally.
    """

    def __init__(self, d_model: int, num_heads: int, num_levels: int, num_points: int) -> None:
        super().__init__()
        if d_model % num_heads:
            raise ValueError(f"d_model {d_model} must be divisible by num_heads {num_heads}")
        self.num_heads = num_heads
        self.num_levels = num_levels
        self.num_points = num_points
        self.sampling_offsets = OffsetProjection(d_model, num_heads, num_levels, num_points)
        self.attention_weights = WeightProjection(d_model, num_heads * num_levels * num_points)
        self.value_proj = OutputProjection(d_model, d_model)
        self.output_proj = OutputProjection(d_model, d_model)

    def forward(
        self,
        query: Tensor,
        value_states: Tensor,
        mask: Tensor | None,
        reference_points: Tensor,
        spatial_shapes: Tensor | Shapes,
        level_start_index: Tensor | Sequence[int],
        return_weights: bool = False,
    ) -> tuple[Tensor, tuple[Tensor, Tensor] | None]:
        """Attend from `query` to `value_states`.

        Args:
            query: (B, Q, D), positions added.
            value_states: (B, S, D), the levels one after another.
            mask: (B, S), True on real pixels, what is sampled elsewhere is zero; None: all real.
            reference_points: (B, Q, L, 2) as (x, y) or (B, Q, L, 4) as (cx, cy, w, h), in [0, 1]
                of each level, padding included.
            spatial_shapes: (L, 2) as (h, w) of each level.
            level_start_index: (L,) where each level starts in S.
            return_weights: also return attention weights and sampling locations.

        Returns:
            The output (B, Q, D), and attention weights (B, Q, M, L, K) with sampling locations
            (B, Q, M, L, K, 2) as (x, y) if asked for, else None.

        Raises:
            ValueError: for shapes that don't fit each other.
        """
        value = self.value_proj(value_states)
        if mask is not None:
            value = value.masked_fill(~mask[..., None], 0)
        value = value.unflatten(-1, (self.num_heads, -1))  # (B, S, M, C)
        weights = self.attention_weights(query).unflatten(-1, (self.num_heads, -1)).softmax(-1)
        weights = weights.unflatten(-1, (self.num_levels, self.num_points))  # (B, Q, M, L, K)
        locations = self.locate(query, reference_points, spatial_shapes)
        output = multi_scale_deformable_attention(
            value, spatial_shapes, level_start_index, locations, weights
        )
        return self.output_proj(output), (weights, locations) if return_weights else None

    def locate(
        self, query: Tensor, reference_points: Tensor, spatial_shapes: Tensor | Shapes
    ) -> Tensor:
        """Sampling locations (B, Q, M, L, K, 2): reference points plus predicted offsets.

        Offsets count pixels from a reference point, and half sizes over K from a reference box.
        """
        if reference_points.ndim != 4 or reference_points.shape[2] != self.num_levels:
            raise ValueError(
                f"reference_points must be (B, Q, {self.num_levels}, 2 or 4), "
                f"not {tuple(reference_points.shape)}"
            )
        offsets = self.sampling_offsets(query).unflatten(-1, self.sampling_offsets.layout)
        references = reference_points[:, :, None, :, None]  # (B, Q, 1, L, 1, 2 or 4)
        if references.shape[-1] == 2:
            return references + offsets / _level_sizes(spatial_shapes, offsets)[:, None]
        if references.shape[-1] == 4:
            center, size = references.split(2, dim=-1)
            return center + offsets / self.num_points * size * 0.5
        raise ValueError(
            f"reference_points must have 2 or 4 coordinates, not {references.shape[-1]}"
        )


def _level_sizes(spatial_shapes: Tensor | Shapes, like: Tensor) -> Tensor:
    """(L, 2) as (w, h), in the dtype and on the device of `like`."""
    if isinstance(spatial_shapes, Tensor):
        return spatial_shapes.flip(-1).to(like)
    # Number by number: a symbolic size stays one, and no device waits for a copy.
    sizes = [
        like.new_full((), size) for height, width in spatial_shapes for size in (width, height)
    ]
    return torch.stack(sizes).unflatten(0, (-1, 2))
