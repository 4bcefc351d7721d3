"""A network that folds its frozen norms into the convolutions before them at each step of training.

A frozen norm reads and writes a whole map forwards and backwards, and keeps its input for the
backward pass. Its factor and summand can be those of the convolution before it, whose weights are
still what is trained: the chain rule goes through one product per step, of the size of the weights.
"""

import copy
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .folded_backbone import (
    Pair,
    find_pairs,
    fold_pair,
    own_tensors,
    takes_folding,
    without_norm,
)
from .onednn import has_fast_onednn

# Pixels of a batch from which folding pays: making the twin, and scaling and reordering weights at
# each step, must take less time than passes over maps save.
LEAST_PIXELS = 25_000
MOST_WEIGHTS_PER_PIXEL = 120
MOST_HALF_WEIGHTS_PER_PIXEL = 400  # in bfloat16, where folding saves more
MOST_WITHOUT_ONEDNN = 20480  # values in a single image's map; a constant of torch's convolution
SETTINGS = (bool, int, float, str, tuple)  # types of attributes that the twin has copies of


class FoldedTraining:
    """Makes a network's twin for training, which has the same parameters but no folded norms.

    The twin holds no values of its own, so that changes of weights are always seen. It is in no
    state dict, and isn't copied or pickled with the network.

    Args:
        norm_types: classes of frozen norms, as for `FoldedBackbone`.
    """

    def __init__(self, norm_types: tuple[type[nn.Module], ...]) -> None:
        self.norm_types = norm_types
        self.drop()

    def __getstate__(self) -> dict[str, tuple[type[nn.Module], ...]]:
        return {"norm_types": self.norm_types}

    def __setstate__(self, state: dict[str, tuple[type[nn.Module], ...]]) -> None:
        self.__init__(**state)

    def drop(self) -> None:
        """Free the twin."""
        self.twin: tuple[nn.Module, list, list] | None = None

    def network_for(self, network: nn.Module, pixel_values: Tensor) -> nn.Module:
        """The twin of `network`, or `network` itself where nothing can be folded or it doesn't pay.

        Modules are compared with those that the twin was made of, with their mode of training and
        other plain attributes.
        """
        pixels = pixel_values[:, 0].numel()
        if pixels < LEAST_PIXELS:
            return network
        modules = list(network.modules())
        tensors = [tensor for module in modules for tensor in own_tensors(module)]
        weights = sum(tensor.numel() for tensor in tensors if tensor.ndim == 4)
        is_half = pixel_values.element_size() == 2 or torch.is_autocast_enabled("cpu")
        most = MOST_HALF_WEIGHTS_PER_PIXEL if is_half else MOST_WEIGHTS_PER_PIXEL
        if weights > most * pixels or not takes_folding(modules, tensors):
            return network
        twin, parts = self.twin, [*modules, *tensors]  # read once: another thread may drop it
        settings = [_settings(module) for module in modules]
        if twin is None or list(map(id, parts)) != list(map(id, twin[1])) or settings != twin[2]:
            pairs = find_pairs(network, tensors, pixel_values, self.norm_types)
            self.twin = twin = (make_twin(network, tensors, pairs), parts, settings)
        return twin[0]


def _settings(module: nn.Module) -> dict[str, Any]:
    return {name: value for name, value in vars(module).items() if isinstance(value, SETTINGS)}


def make_twin(network: nn.Module, tensors: list[Tensor], pairs: list[Pair]) -> nn.Module:
    """Copy a network without its tensors, and let the given convolutions do their norms' work."""
    if not pairs:
        return network
    twin = copy.deepcopy(network, {id(tensor): tensor for tensor in tensors})
    for convolution_name, norm_name in pairs:
        convolution, norm = twin.get_submodule(convolution_name), twin.get_submodule(norm_name)
        twin.set_submodule(convolution_name, FoldedConvolution(convolution, norm))
        twin.set_submodule(norm_name, without_norm(norm))
    return twin


class FoldedConvolution(nn.Module):
    """A convolution and the frozen norm after it as one convolution."""

    def __init__(self, convolution: nn.Conv2d, norm: nn.Module) -> None:
        super().__init__()
        self.convolution = with_onednn(convolution)
        self.norm = norm

    def forward(self, feature_map: Tensor) -> Tensor:
        """Convolve and normalise a feature map (B, C, h, w)."""
        weight, bias = fold_pair(self.convolution, self.norm)
        # Not set in the module: threads may share it, and it would keep the graph of this step.
        folded = copy.copy(self.convolution)
        folded._parameters = {"weight": weight, "bias": bias}
        return folded(feature_map.contiguous(memory_format=torch.channels_last))


def with_onednn(convolution: nn.Conv2d) -> nn.Conv2d:
    """Change the class of a convolution to `OneDnnConv2d` where that is faster."""
    is_1x1 = type(convolution) is nn.Conv2d and convolution.kernel_size == (1, 1)
    if is_1x1 and convolution.weight.dtype == torch.float32 and has_fast_onednn():
        convolution.__class__ = OneDnnConv2d
    return convolution


class OneDnnConv2d(nn.Conv2d):
    """A 1 x 1 convolution by oneDNN, a tenth faster than torch's matrix product on one thread."""

    def forward(self, feature_map: Tensor) -> Tensor:
        """Convolve a feature map (B, C, h, w)."""
        # Dilation has no effect on 1 x 1 convolutions, but torch then chooses oneDNN. For one small
        # map it doesn't, and its own code for dilation is slow.
        is_small = len(feature_map) == 1 and feature_map.numel() <= MOST_WITHOUT_ONEDNN
        dilation = 1 if is_small else 2
        return F.conv2d(
            feature_map, self.weight, self.bias, self.stride, self.padding, dilation, self.groups
        )
