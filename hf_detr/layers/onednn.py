"""Operators of oneDNN that torch itself only calls in compiled graphs: faster inference on CPU.

A convolution also adds a residual map and activates, which saves two passes over each map. Matrix
products are faster than those of torch's default library on some processors.
"""

from functools import cache
from typing import Any

import torch
from torch import Tensor, nn

from .short_cuts import has_global_hooks, inference_only, only_runs_its_class

LEAST_VALUES = 2**16  # of a linear layer's input from which oneDNN's product is faster
ACTIVATIONS = {nn.ReLU: ("relu", []), nn.ReLU6: ("hardtanh", [0.0, 6.0])}  # oneDNN's names


@cache
def has_fast_onednn(dtype: torch.dtype = torch.float32) -> bool:
    """Whether torch has oneDNN's operators for `dtype`, and the processor AVX2 or later."""
    capability = torch.backends.cpu.get_cpu_capability()
    if not (torch.backends.mkldnn.is_available() and capability.startswith("AVX")):
        return False
    if dtype not in (torch.float32, torch.bfloat16):
        return False
    place = {"dtype": dtype, "device": "cpu"}
    image = torch.zeros(1, 1, 1, 1, **place)
    # Their weights aren't drawn, which would change what the caller draws.
    layer = nn.utils.skip_init(nn.Linear, 1, 1, **place)
    convolution = nn.utils.skip_init(nn.Conv2d, 1, 1, 1, **place)
    try:
        with torch.no_grad():
            _linear(layer, image)
            weight = _order(convolution, image.shape)
            _convolve(convolution, weight, image, None, "relu", [])
            _convolve(convolution, weight, image, image.clone(), None, [])
    except (AttributeError, RuntimeError, TypeError):  # another processor or torch
        return False
    return True


def computes(tensor: Tensor, weight: Tensor) -> bool:
    """Whether oneDNN's operators do here what torch's would do with `tensor` and `weight`."""
    return (
        type(weight) in (Tensor, nn.Parameter)  # not quantized
        and tensor.dtype == weight.dtype
        and weight.layout == torch.strided
        and weight.device.type == "cpu"
        and has_fast_onednn(weight.dtype)
        and not torch.is_autocast_enabled("cpu")
        and torch._C._get_mkldnn_enabled()
    )


def linear(layer: nn.Module, tensor: Tensor) -> Tensor:
    """`layer(tensor)`, by oneDNN for a linear layer of many tokens in inference on CPU."""
    if (
        inference_only(tensor)
        and tensor.numel() >= LEAST_VALUES
        and type(layer) is nn.Linear
        and tensor.shape[-1] == layer.in_features  # else torch's error is clearer
        and computes(tensor, layer.weight)
        and only_runs_its_class(layer)
        and not has_global_hooks()
    ):
        return _linear(layer, tensor)
    return layer(tensor)


def by_onednn(convolution: nn.Conv2d) -> nn.Conv2d:
    """Change the class of a convolution to `FusedConvolution` if oneDNN knows its padding."""
    is_plain = type(convolution) is nn.Conv2d and convolution.padding_mode == "zeros"
    if is_plain and convolution.padding not in ("same", "valid"):
        convolution.__class__ = FusedConvolution
        convolution.activation = None
        convolution.ordered = None
    return convolution


def fuse_activation(convolution: nn.Conv2d, following: nn.Sequential) -> nn.Sequential:
    """Let a convolution do the activation that alone follows it; return what is left to do."""
    layers = [layer for layer in following if type(layer) is not nn.Identity]
    is_known = len(layers) == 1 and type(layers[0]) in ACTIVATIONS
    if is_known and type(convolution) is FusedConvolution:
        convolution.activation = layers[0]
        return nn.Sequential()
    return following


class FusedConvolution(nn.Conv2d):
    """A convolution by oneDNN that may also add a map and activate the sum, for inference.

    Attributes:
        activation: of the output, one of `ACTIVATIONS`, ReLU if maps are added; None: none.
        ordered: shape of the last map, and the weight in oneDNN's order for it, or None.
    """

    activation: nn.Module | None
    ordered: tuple[torch.Size, Tensor | None] | None

    def forward(self, feature_map: Tensor, residual: Tensor | None = None) -> Tensor:
        """Convolve a map (B, C, h, w), and add `residual`, which may be overwritten."""
        if not (computes(feature_map, self.weight) and self._fits(feature_map, residual)):
            output = super().forward(feature_map)
            if residual is not None:
                output += residual
            return output if self.activation is None else self.activation(output)
        name, scalars = ACTIVATIONS.get(type(self.activation), (None, []))
        weight = self._ordered_weight(feature_map.shape)
        return _convolve(self, weight, feature_map, residual, name, scalars)

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "ordered": None}  # which can't be copied

    def keeps_size(self) -> bool:
        """Whether maps have the same height and width before and after."""
        sizes = zip(self.kernel_size, self.padding, self.dilation, strict=True)
        return self.stride == (1, 1) and all(d * (k - 1) == 2 * p for k, p, d in sizes)

    def _ordered_weight(self, shape: torch.Size) -> Tensor:
        """The weight; from the second map of a shape on in oneDNN's order, which saves ordering it.

        The order for another shape can be ten times slower than none.
        """
        last, ordered = self.ordered or (None, None)  # read once: another thread may replace it
        if shape != last:
            self.ordered = (shape, None)
            return self.weight
        if ordered is None:
            ordered = _order(self, shape)
            self.ordered = (shape, ordered)
        return ordered

    def _fits(self, feature_map: Tensor, residual: Tensor | None) -> bool:
        if feature_map.ndim != 4 or feature_map.shape[1] != self.in_channels:
            return False  # torch's error is clearer
        size = (len(feature_map), self.out_channels, *feature_map.shape[2:])
        return residual is None or (
            residual.shape == size
            and residual.dtype == self.weight.dtype
            and residual.is_contiguous(memory_format=torch.channels_last)
        )


def _linear(layer: nn.Linear, tensor: Tensor) -> Tensor:
    return torch.ops.mkldnn._linear_pointwise(tensor, layer.weight, layer.bias, "none", [], "")


def _order(layer: nn.Conv2d, shape: torch.Size) -> Tensor:
    geometry = (layer.padding, layer.stride, layer.dilation, layer.groups)
    return torch.ops.mkldnn._reorder_convolution_weight(layer.weight, *geometry, [*shape])


def _convolve(
    layer: nn.Conv2d,
    weight: Tensor,
    feature_map: Tensor,
    residual: Tensor | None,
    activation: str | None,
    scalars: list[float],
) -> Tensor:
    weights = (weight, layer.bias, layer.padding, layer.stride, layer.dilation, layer.groups)
    if residual is None:
        call = torch.ops.mkldnn._convolution_pointwise
        return call(feature_map, *weights, activation or "none", scalars, "")
    call = torch.ops.mkldnn._convolution_pointwise_.binary
    return call(residual, feature_map, *weights, "add", 1.0, activation, scalars, "")
