"""From detected objects to their masks (DETR, Section 4.4 and Fig. 8)."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .initial_weights import output_projection, starting

NUM_GROUPS = 8


class AttentionMaps(nn.Module):
    """Where on the coarsest map each query looks, one map per head; nothing is summed up.

    Args:
        d_model: width D of queries and memory.
        num_heads: M.

    Raises:
        ValueError: if the heads can't share `d_model` equally.
    """

    def __init__(self, d_model: int, num_heads: int) -> None:
        super().__init__()
        if d_model % num_heads:
            raise ValueError(f"d_model {d_model} must be divisible by num_heads {num_heads}")
        self.num_heads = num_heads
        self.q_linear = output_projection(d_model, d_model)
        self.k_linear = output_projection(d_model, d_model)

    def forward(self, queries: Tensor, memory: Tensor, mask: Tensor | None) -> Tensor:
        """Weights (B, Q, M, S) that sum to 1 over all heads and tokens of a query.

        Args:
            queries: (B, Q, D).
            memory: (B, S, D).
            mask: (B, S), True on real tokens; None if all are.
        """
        query = self.q_linear(queries).unflatten(-1, (self.num_heads, -1))  # (B, Q, M, c)
        key = self.k_linear(memory).unflatten(-1, (self.num_heads, -1))  # (B, S, M, c)
        scores = torch.einsum("bqmc,bsmc->bqms", query * query.shape[-1] ** -0.5, key)
        if mask is not None:
            scores = scores.masked_fill(~mask[:, None, None], -torch.inf)
        # The original normalises over heads, too: some heads may count more than others.
        return scores.flatten(2).softmax(-1).view(scores.shape)


def make_conv(channels: int, width: int, kernel_size: int) -> nn.Conv2d:
    """Convolution that keeps the size and starts as the original's."""
    conv = nn.Conv2d(channels, width, kernel_size, padding=kernel_size // 2)
    return starting(conv, draw_kaiming)


def draw_kaiming(conv: nn.Conv2d) -> None:
    """Kaiming for linear layers, and zero bias."""
    nn.init.kaiming_uniform_(conv.weight, a=1)
    nn.init.zeros_(conv.bias)


class FirstConv(nn.Conv2d):
    """Convolution of an object's features and maps, whose larger part is the image's own."""

    def forward(self, features: Tensor, attention_maps: Tensor, image: Tensor) -> Tensor:
        """Of features (B, D, h, w) and maps (P, M, h, w) of objects in images (P,)."""
        width = features.shape[1]
        shared = F.conv2d(features, self.weight[:, :width], self.bias, padding=self.padding)
        own = F.conv2d(attention_maps, self.weight[:, width:], padding=self.padding)
        return shared[image] + own


class MaskHead(nn.Module):
    """Turns attention maps into masks, with the help of ever finer feature maps.

    Args:
        d_model: width D of the coarsest, projected map.
        num_heads: M, maps per object.
        pyramid_channels: channels of the three finer maps, the coarsest of them first.

    Raises:
        ValueError: if the widths can't be divided into groups for normalisation.
    """

    def __init__(self, d_model: int, num_heads: int, pyramid_channels: list[int]) -> None:
        super().__init__()
        first = d_model + num_heads
        widths = [first, d_model // 2, d_model // 4, d_model // 8, d_model // 16]
        if len(pyramid_channels) != 3:
            raise ValueError(
                f"the mask head needs 3 finer feature maps, not {len(pyramid_channels)}"
            )
        if not widths[-1] or any(width % _num_groups(width) for width in widths):
            raise ValueError(
                f"the mask head's widths must be multiples of {NUM_GROUPS}, or less than that; "
                f"d_model {d_model} and {num_heads} heads give {widths}"
            )
        # Names on disk: lay1 ... lay5, gn1 ... gn5, out_lay, adapter1 ... adapter3.
        self.lay1 = starting(FirstConv(first, first, kernel_size=3, padding=1), draw_kaiming)
        self.gn1 = nn.GroupNorm(_num_groups(first), first)
        for index, (before, after) in enumerate(zip(widths, widths[1:], strict=False), start=2):
            self.add_module(f"lay{index}", make_conv(before, after, kernel_size=3))
            self.add_module(f"gn{index}", nn.GroupNorm(_num_groups(after), after))
        self.out_lay = make_conv(widths[-1], 1, kernel_size=3)
        for index, (channels, width) in enumerate(
            zip(pyramid_channels, widths[1:], strict=False), start=1
        ):
            self.add_module(f"adapter{index}", make_conv(channels, width, kernel_size=1))

    def forward(
        self, features: Tensor, attention_maps: Tensor, image: Tensor, pyramid: list[Tensor]
    ) -> Tensor:
        """Mask logits (P, H, W) of P objects, as large as the finest map.

        Args:
            features: (B, D, h, w), the projected coarsest map.
            attention_maps: (P, M, h, w), of those objects only whose masks are wanted.
            image: (P,), which image each object is in.
            pyramid: three finer maps (B, C_l, h_l, w_l), the coarsest of them first.
        """
        hidden = F.relu(self.gn1(self.lay1(features, attention_maps, image)))
        hidden = F.relu(self.gn2(self.lay2(hidden)))
        stages = (
            (self.adapter1, self.lay3, self.gn3),
            (self.adapter2, self.lay4, self.gn4),
            (self.adapter3, self.lay5, self.gn5),
        )
        for level, (adapter, layer, norm) in zip(pyramid, stages, strict=True):
            size = tuple(level.shape[-2:])
            hidden = adapter(level)[image] + F.interpolate(hidden, size=size, mode="nearest")
            hidden = F.relu(norm(layer(hidden)))
        return self.out_lay(hidden)[:, 0]


def _num_groups(width: int) -> int:
    # Deviation: the original has no widths below 8; transformers has a group per channel there.
    return min(NUM_GROUPS, width)
