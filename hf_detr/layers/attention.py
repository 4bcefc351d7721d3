"""Multi-head attention over `scaled_dot_product_attention`."""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..ops.multi_scale_deformable_attention import is_recorded
from .initial_weights import input_projection, output_projection
from .onednn import linear


def multi_head_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    num_heads: int,
    mask: Tensor | None = None,
    dropout: float = 0.0,
    return_weights: bool = False,
) -> tuple[Tensor, Tensor | None]:
    """Attention of projected tensors, split into heads and joined again.

    Query and key have one width, value may have another; each is divided among the heads.

    Args:
        query: (B, Q, D_k).
        key: (B, S, D_k).
        value: (B, S, D_v).
        num_heads: M.
        mask: True where attention is allowed: (B, S) over keys, or (B, Q, S) over pairs of a query
            and a key, with 1 for B if all images have the same; None allows all. Every query needs
            a key.
        dropout: probability of dropping an attention weight.
        return_weights: also return the weights, which costs memory for (B, M, Q, S).

    Returns:
        The output (B, Q, D_v), and the weights (B, M, Q, S) before dropout or None.
    """
    query, key, value = (
        tensor.unflatten(-1, (num_heads, -1)).transpose(1, 2)  # (B, M, tokens, width)
        for tensor in (query, key, value)
    )
    if mask is not None:
        mask = mask[:, None, None] if mask.ndim == 2 else mask[:, None]  # (B, 1, 1 or Q, S)
    if return_weights:
        scores = query @ key.transpose(-1, -2) / math.sqrt(query.shape[-1])
        if mask is not None:
            scores = scores.masked_fill(~mask, -torch.inf)
        weights = scores.softmax(-1)
        output = F.dropout(weights, dropout) @ value
    else:
        weights = None
        output = _fused_attention(query, key, value, mask, dropout)
    return output.transpose(1, 2).flatten(-2), weights


def _fused_attention(
    query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, dropout: float
) -> Tensor:
    """`scaled_dot_product_attention`, by its fastest kernels on CPUs."""
    width, dtype = value.shape[-1], query.dtype
    if query.device.type != "cpu" or dropout > 0:  # CPUs have none for dropout
        return F.scaled_dot_product_attention(query, key, value, mask, dropout)
    if width < query.shape[-1]:  # nor for narrower values
        value = F.pad(value, (0, query.shape[-1] - width))
    inputs = (query, key, value)
    is_half = dtype in (torch.bfloat16, torch.float16)
    trains = torch.is_grad_enabled() and any(one.requires_grad for one in inputs)
    # Recorded graphs would differ without gradients.
    if is_half and trains and not is_recorded():
        # The backward pass in float32 takes a fifth of the time for few tokens.
        with torch.autocast("cpu", enabled=False):
            output = F.scaled_dot_product_attention(*(one.float() for one in inputs), mask)
        output = output.to(dtype)
    else:
        output = F.scaled_dot_product_attention(*inputs, mask)
    return output[..., :width]


class ProjectedAttention(nn.Module):
    """Attention of queries, keys and values that are already projected.

    Args:
        d_model: width D of values and of the output.
        num_heads: M.
        dropout: probability of dropping an attention weight in training.
    """

    def __init__(self, d_model: int, num_heads: int, dropout: float) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.dropout = dropout
        self.out_proj = output_projection(d_model, d_model)

    def forward(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        mask: Tensor | None = None,
        return_weights: bool = False,
    ) -> tuple[Tensor, Tensor | None]:
        """Attend from `query` (B, Q, D_k) to `key` (B, S, D_k) and `value` (B, S, D).

        The mask is that of `multi_head_attention`.

        Returns:
            The output (B, Q, D), and the weights (B, M, Q, S) if asked for, else None.
        """
        dropout = self.dropout if self.training else 0.0
        output, weights = multi_head_attention(
            query, key, value, self.num_heads, mask, dropout, return_weights
        )
        return linear(self.out_proj, output), weights


class MultiHeadAttention(ProjectedAttention):
    """`ProjectedAttention` with learned projections; positions are added by the caller."""

    def __init__(self, d_model: int, num_heads: int, dropout: float) -> None:
        super().__init__(d_model, num_heads, dropout)
        self.q_proj = input_projection(d_model, d_model)
        self.k_proj = input_projection(d_model, d_model)
        self.v_proj = input_projection(d_model, d_model)

    def forward(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        mask: Tensor | None = None,
        return_weights: bool = False,
    ) -> tuple[Tensor, Tensor | None]:
        """Attend from `query` (B, Q, D) to `key` and `value` (B, S, D); mask as in the base class.

        Returns:
            The output (B, Q, D), and the weights (B, M, Q, S) if asked for, else None.
        """
        query, key = linear(self.q_proj, query), linear(self.k_proj, key)
        value = linear(self.v_proj, value)
        return super().forward(query, key, value, mask, return_weights)
