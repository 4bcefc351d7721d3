"""Stems and blocks of ResNets that keep fewer and smaller maps, for inference.

Convolutions of blocks also add the shortcut and activate. A stem convolves, activates and pools
some rows at a time, because its map before pooling is the largest of the network.
"""

import torch
from timm.layers import DropPath
from timm.models import FeatureDictNet
from timm.models.resnet import BasicBlock, Bottleneck
from torch import Tensor, nn
from torch.nn import functional as F

from .onednn import FusedConvolution

BAND_BYTES = 2**23  # of the rows of a map that a stem computes at a time


class FusedBasicBlock(BasicBlock):
    """timm's block of two convolutions, which do all of its work but the shortcut's."""

    def forward(self, x: Tensor) -> Tensor:
        """Transform a feature map (B, C, h, w), which is overwritten if it is the shortcut."""
        shortcut = x if self.downsample is None else self.downsample(x)
        return self.conv2(self.conv1(x), shortcut)


class FusedBottleneck(Bottleneck):
    """timm's block of three convolutions, which do all of its work but the shortcut's."""

    def forward(self, x: Tensor) -> Tensor:
        """Transform a feature map (B, C, h, w), which is overwritten if it is the shortcut."""
        shortcut = x if self.downsample is None else self.downsample(x)
        return self.conv3(self.conv2(self.conv1(x)), shortcut)


class FusedStem(nn.Module):
    """A convolution with activation, and a maximum over 3 x 3 pixels with stride 2.

    Args:
        convolution: of the image; its padding of rows is taken over and set to 0.
        pool: of its output.
    """

    def __init__(self, convolution: FusedConvolution, pool: nn.MaxPool2d) -> None:
        super().__init__()
        self.rows_padding = convolution.padding[0]
        convolution.padding = (0, convolution.padding[1])  # rows are padded once, before
        self.convolution = convolution
        self.pool = pool

    def forward(self, x: Tensor) -> Tensor:
        """Transform a feature map (B, C, h, w)."""
        stride, kernel = self.convolution.stride[0], self.convolution.kernel_size[0]
        x = F.pad(x, (0, 0, self.rows_padding, self.rows_padding))
        height = (x.shape[2] - kernel) // stride + 1  # after the convolution
        values = len(x) * (x.shape[3] // stride) * self.convolution.out_channels  # of one row
        step = BAND_BYTES // max(1, 2 * values * x.element_size())  # rows after pooling
        step = max(8, step)  # two rows more are computed for each band
        bands = []
        for start in range(0, (height + 1) // 2, step):
            # A pooled row reads the rows 2 i - 1 to 2 i + 1. The row before the band is pooled as
            # well, but not at its border, and dropped.
            first, end = max(2 * start - 2, 0), min(2 * (start + step), height)
            rows = self.convolution(x[:, :, first * stride : (end - 1) * stride + kernel])
            bands.append(self.pool(rows)[:, :, int(start > 0) :])
        return torch.cat(bands, dim=2)


FUSED = {BasicBlock: FusedBasicBlock, Bottleneck: FusedBottleneck}


def fuse_blocks(network: nn.Module) -> None:
    """Change the stem and all blocks of a folded network that can be fused."""
    _fuse_stem(network)
    for stage in [module for module in network.modules() if type(module) is nn.Sequential]:
        before = None
        for block in list(stage):
            # Only the output of the block before is read by nobody else.
            owns_shortcut = isinstance(before, (BasicBlock, Bottleneck))
            if type(block) in FUSED and _is_fusible(block, owns_shortcut):
                _fuse(block)
            before = block


def _fuse_stem(network: nn.Module) -> None:
    """Let one module do the work of timm's conv1, bn1, act1 and maxpool, if only it is read."""
    stem = dict(list(network.named_children())[:4])
    runs_in_order = isinstance(network, FeatureDictNet) and "act1" not in network.return_layers
    if list(stem) != ["conv1", "bn1", "act1", "maxpool"] or not runs_in_order:
        return
    convolution, norm, activation, pool = stem.values()
    is_known = (
        type(convolution) is FusedConvolution
        and convolution.dilation == (1, 1)
        and convolution.activation is None
    )
    pools = type(pool) is nn.MaxPool2d and str(pool) == str(nn.MaxPool2d(3, 2, 1))
    if is_known and pools and _does_nothing(norm) and type(activation) is nn.ReLU:
        convolution.activation = activation
        network.conv1 = FusedStem(convolution, pool)
        network.act1 = network.maxpool = nn.Identity()


def _is_fusible(block: nn.Module, owns_shortcut: bool) -> bool:
    """Whether a block has convolutions, activations and nothing else, in inference."""
    convolutions, activations = _parts(block, "conv"), _parts(block, "act")
    downsample = block.downsample
    named = ("conv", "act", "downsample")
    others = [part for name, part in block.named_children() if not name.startswith(named)]
    makes_shortcut = downsample is not None and any(
        isinstance(module, nn.Conv2d) for module in downsample.modules()
    )
    return (
        all(type(convolution) is FusedConvolution for convolution in convolutions)
        and all(type(activation) is nn.ReLU for activation in activations)
        and all(_does_nothing(other) for other in others)
        and convolutions[-1].keeps_size()
        and (makes_shortcut or (downsample is None and owns_shortcut))
    )


def _fuse(block: nn.Module) -> None:
    for convolution, activation in zip(_parts(block, "conv"), _parts(block, "act"), strict=True):
        convolution.activation = activation
    block.__class__ = FUSED[type(block)]


def _parts(block: nn.Module, kind: str) -> list[nn.Module]:
    """The block's convolutions or activations, in the order in which they run."""
    named = dict(block.named_children())
    return [named[name] for name in (f"{kind}1", f"{kind}2", f"{kind}3") if name in named]


def _does_nothing(module: nn.Module) -> bool:
    is_empty = type(module) is nn.Sequential and len(module) == 0  # a folded norm
    return is_empty or type(module) in (nn.Identity, DropPath)
