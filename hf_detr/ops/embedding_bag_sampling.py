"""Multi-scale deformable sampling on CPU: weighted lookups in a table of all pixels."""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

# Zeros around each level in the CPU's table. Positions are clamped to [-2, size], so both pixels of
# a pair exist: no mask is needed, and positions further outside only sample zeros.
MARGIN = 2
# Indices and weights of this many queries per thread fit into its cache. Fewer queries are slower,
# as threads wait for each other after each operation.
QUERIES_PER_THREAD = 2048


class Geometry(NamedTuple):
    """Positions of levels in a table with all heads' levels and their margins.

    Attributes:
        size: (L * K * 2,) width and height of each point's level, as floating-point numbers.
        row: (L * K,) tokens in one row of each point's level, margins included.
        origin: (M, L * K) index of each level's pixel (0, 0).
        tokens: tokens of one head.
    """

    size: Tensor
    row: Tensor
    origin: Tensor
    tokens: int


def _geometry(
    sizes: Sequence[int], num_heads: int, num_points: int, dtype: torch.dtype
) -> Geometry:
    levels, tokens = [], 0
    for height, width in zip(sizes[::2], sizes[1::2], strict=True):
        row = width + 2 * MARGIN
        levels.append((width, height, row, tokens + MARGIN * row + MARGIN))
        tokens += (height + 2 * MARGIN) * row
    points = torch.tensor(levels).repeat_interleave(num_points, dim=0)
    size = points[:, :2].flatten().to(dtype)
    index_dtype = torch.int32 if num_heads * tokens < 2**31 else torch.int64
    row, origin = points[:, 2:].to(index_dtype).unbind(-1)
    heads = torch.arange(num_heads, dtype=index_dtype)[:, None] * tokens
    return Geometry(size, row.contiguous(), heads + origin, tokens)


def _views(
    table: Tensor, value: Tensor, sizes: Sequence[int]
) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """Views of each level: in `table` (M, tokens, C) with its margins, without, in `value`.

    They are (M, h + 4, w + 4, C), (h, w, M, C), and (h, w, M, C) of value (S, M, C).
    """
    start = end = 0
    for height, width in zip(sizes[::2], sizes[1::2], strict=True):
        shape = (height + 2 * MARGIN, width + 2 * MARGIN)
        level = table[:, start : start + shape[0] * shape[1]].unflatten(1, shape)
        inside = level[:, MARGIN:-MARGIN, MARGIN:-MARGIN].permute(1, 2, 0, 3)
        yield level, inside, value[end : end + height * width].unflatten(0, (height, width))
        start, end = start + shape[0] * shape[1], end + height * width


def _make_table(value: Tensor, sizes: Sequence[int], geometry: Geometry) -> Tensor:
    """Copy one image's value (S, M, C) to (M * tokens, C): a head's pixels side by side."""
    table = value.new_empty(value.shape[1], geometry.tokens, value.shape[2])
    for level, inside, pixels in _views(table, value, sizes):
        # Filling the whole table would take as long as copying to it.
        for edge in (slice(None, MARGIN), slice(-MARGIN, None)):
            level[:, edge] = 0
            level[:, :, edge] = 0
        inside.copy_(pixels)
    return table.flatten(0, 1)


def _find_corners(locations: Tensor, geometry: Geometry) -> tuple[Tensor, Tensor, Tensor]:
    """The four pixels around each location.

    Args:
        locations: (Q, M, L, K, 2).

    Returns:
        Indices (Q, M, 4, L * K) into the table of the pixels left above, right above, left below
        and right below, and distances (Q, M, L * K) of the location to the right and below.
    """
    position = (locations.flatten(2) * geometry.size).sub_(0.5)  # (Q, M, L * K * 2)
    position = position.clamp_(min=-MARGIN).minimum(geometry.size)
    pixel = position.floor()
    right, below = position.sub_(pixel).unflatten(-1, (-1, 2)).unbind(-1)
    # NaN stays in the fractions; indices need a number.
    pixel = pixel.nan_to_num_(0).to(geometry.row.dtype)
    column, line = pixel.unflatten(-1, (-1, 2)).unbind(-1)
    index = column.new_empty(*column.shape[:2], 4, column.shape[2])
    above_left, above_right, below_left, below_right = index.unbind(2)
    torch.addcmul(column, line, geometry.row, out=above_left)
    above_left.add_(geometry.origin)
    torch.add(above_left, 1, out=above_right)
    torch.add(above_left, geometry.row, out=below_left)
    torch.add(below_left, 1, out=below_right)
    return index, right, below


def _corner_weights(weights: Tensor, right: Tensor, below: Tensor) -> Tensor:
    """Bilinear times attention weights (Q, M, 4, L * K), in the order of `_find_corners`."""
    corners = weights.new_empty(*weights.shape[:2], 4, weights.shape[2])
    above_left, above_right, below_left, below_right = corners.unbind(2)
    lower = weights * below
    upper = weights - lower
    torch.mul(upper, right, out=above_right)
    torch.sub(upper, above_right, out=above_left)
    torch.mul(lower, right, out=below_right)
    torch.sub(lower, below_right, out=below_left)
    return corners


# A custom operator, so that compiled graphs don't unroll its blocks.
@torch.library.custom_op("hf_detr::sample_with_embedding_bag", mutates_args=(), device_types="cpu")
def sample_with_embedding_bag(
    value: Tensor, locations: Tensor, weights: Tensor, sizes: Sequence[int]
) -> Tensor:
    """Sample by looking up the four weighted pixels of each point in a table of all pixels.

    Args:
        value: (B, S, M, C), of one dtype with the other two.
        locations: (B, Q, M, L, K, 2).
        weights: (B, Q, M, L, K).
        sizes: height and width of the first level, then of the second, and so on.

    Returns:
        (B, Q, M * C).
    """
    batch_size, num_queries, num_heads, _, num_points = weights.shape
    output = value.new_zeros(batch_size, num_queries, num_heads, value.shape[-1])
    if weights.numel() == 0 or value.numel() == 0:
        return output.flatten(2)
    geometry = _geometry(sizes, num_heads, num_points, value.dtype)
    length = QUERIES_PER_THREAD * torch.get_num_threads()
    for image in range(batch_size):
        table = _make_table(value[image], sizes, geometry)
        blocks = (tensor[image].split(length) for tensor in (locations, weights, output))
        for block_locations, block_weights, block_output in zip(*blocks, strict=True):
            index, right, below = _find_corners(block_locations, geometry)
            corner_weights = _corner_weights(block_weights.flatten(2), right, below)
            bags = F.embedding_bag(
                index.flatten(0, 1).flatten(1),  # (Q * M, 4 * L * K)
                table,
                mode="sum",
                per_sample_weights=corner_weights.flatten(0, 1).flatten(1),
            )
            block_output.copy_(bags.view_as(block_output))
    return output.flatten(2)


@sample_with_embedding_bag.register_fake
def _(value: Tensor, locations: Tensor, weights: Tensor, sizes: Sequence[int]) -> Tensor:
    return value.new_empty(*weights.shape[:2], value.shape[2] * value.shape[3])


@torch.library.custom_op(
    "hf_detr::sample_with_embedding_bag_backward", mutates_args=(), device_types="cpu"
)
def _sample_backward(
    grad: Tensor, value: Tensor, locations: Tensor, weights: Tensor, sizes: Sequence[int]
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of value, locations and weights for that of the output, (B, Q, M * C)."""
    grad_value, grad_locations, grad_weights = (
        tensor.new_empty(tensor.shape) for tensor in (value, locations, weights)
    )
    if weights.numel() == 0 or value.numel() == 0:
        return grad_value.zero_(), grad_locations.zero_(), grad_weights.zero_()
    batch_size, _, num_heads, _, num_points = weights.shape
    geometry = _geometry(sizes, num_heads, num_points, value.dtype)
    length = QUERIES_PER_THREAD * torch.get_num_threads()
    grad = grad.unflatten(-1, (num_heads, -1))
    for image in range(batch_size):
        tensors = (grad, locations, weights, grad_locations, grad_weights)
        blocks = list(zip(*(tensor[image].split(length) for tensor in tensors), strict=True))
        table = _make_table(value[image], sizes, geometry)
        for block in blocks:
            _fill_point_gradients(table, geometry, *block)
        # Reuses the memory: a decoder's backward takes a third longer with a new table.
        table.zero_()
        for block in blocks:
            _scatter_bags(table, geometry, *block[:3])
        heads = table.unflatten(0, (num_heads, -1))
        for _, inside, pixels in _views(heads, grad_value[image], sizes):
            pixels.copy_(inside)
    return grad_value, grad_locations, grad_weights


def _fill_point_gradients(
    table: Tensor,
    geometry: Geometry,
    bags: Tensor,
    locations: Tensor,
    weights: Tensor,
    grad_locations: Tensor,
    grad_weights: Tensor,
) -> None:
    """Compute gradients of one block's locations and weights from those of its bags (Q, M, C)."""
    index, right, below = _find_corners(locations, geometry)
    products = _multiply_bags(table, index, bags.flatten(0, 1).contiguous())
    above_left, above_right, below_left, below_right = products.unbind(2)
    upper = torch.lerp(above_left, above_right, right)
    lower = torch.lerp(below_left, below_right, right)
    across = torch.lerp(above_right - above_left, below_right - below_left, below)
    gradient = torch.stack([across, lower - upper], dim=-1) * weights.flatten(2)[..., None]
    gradient = gradient.flatten(2) * geometry.size  # (Q, M, L * K * 2)
    grad_locations.copy_(gradient.view_as(grad_locations))
    grad_weights.copy_(torch.lerp(upper, lower, below).view_as(grad_weights))


def _multiply_bags(table: Tensor, index: Tensor, bags: Tensor) -> Tensor:
    """Products of each corner's row of the table with its bag's gradient, (Q, M, 4, L * K)."""
    per_bag = index.shape[2] * index.shape[3]
    bag = torch.arange(len(bags), dtype=index.dtype).repeat_interleave(per_bag)
    offsets = torch.arange(0, index.numel(), per_bag, dtype=index.dtype)
    # Dot products row by row; gathering the rows for a matrix product costs twice as much.
    products = torch.ops.aten._embedding_bag_per_sample_weights_backward(
        bags, table, index.flatten(), offsets, bag, mode=0
    )
    return products.view(index.shape)


def _scatter_bags(
    table: Tensor, geometry: Geometry, bags: Tensor, locations: Tensor, weights: Tensor
) -> None:
    """Add each corner's weight times its bag's gradient to the corner's row of `table`."""
    index, right, below = _find_corners(locations, geometry)
    weights = _corner_weights(weights.flatten(2), right, below)
    per_bag = index.shape[2] * index.shape[3]
    # Sorted by row this is a sum of weighted lookups again, in half of index_put_'s time.
    index, order = index.flatten().sort()
    rows, counts = torch.unique_consecutive(index, return_counts=True)
    sums = F.embedding_bag(
        order // per_bag,
        bags.flatten(0, 1).contiguous(),  # (Q * M, C)
        counts.cumsum(0) - counts,
        mode="sum",
        per_sample_weights=weights.flatten()[order],
    )
    table.index_add_(0, rows, sums)


@_sample_backward.register_fake
def _(
    grad: Tensor, value: Tensor, locations: Tensor, weights: Tensor, sizes: Sequence[int]
) -> tuple[Tensor, Tensor, Tensor]:
    return tuple(tensor.new_empty(tensor.shape) for tensor in (value, locations, weights))


def save_inputs(ctx, inputs: tuple, output: Tensor) -> None:
    """Keep an operator's inputs for its derivative; the last one is the sizes."""
    *tensors, ctx.sizes = inputs
    ctx.save_for_backward(*tensors)


def _differentiate(ctx, grad: Tensor) -> tuple[Tensor | None, ...]:
    return *_sample_backward(grad, *ctx.saved_tensors, ctx.sizes), None


def refuse_second_derivative(ctx, *grads: Tensor) -> None:
    """Say that the derivative of a backward pass is missing."""
    raise RuntimeError("deformable attention has no second derivative")


_sample_backward.register_autograd(refuse_second_derivative)
sample_with_embedding_bag.register_autograd(_differentiate, setup_context=save_inputs)
