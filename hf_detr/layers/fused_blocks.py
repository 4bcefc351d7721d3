"""Blocks of ResNets whose convolutions also add the shortcut and activate, for inference."""

from timm.layers import DropPath
from timm.models.resnet import BasicBlock, Bottleneck
from torch import Tensor, nn

from .onednn import FusedConvolution


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


FUSED = {BasicBlock: FusedBasicBlock, Bottleneck: FusedBottleneck}


def fuse_blocks(network: nn.Module) -> None:
    """Change the class of all blocks of a folded network that can be fused."""
    for stage in [module for module in network.modules() if type(module) is nn.Sequential]:
        before = None
        for block in list(stage):
            # Only the output of the block before is read by nobody else.
            owns_shortcut = isinstance(before, (BasicBlock, Bottleneck))
            if type(block) in FUSED and _is_fusible(block, owns_shortcut):
                _fuse(block)
            before = block


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
