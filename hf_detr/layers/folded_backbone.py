"""A network with its frozen norms folded into the convolutions before them, for inference.

A norm with frozen statistics multiplies each channel and adds to it. The convolution before it can
do the same at no cost, which saves a pass over every map. In channels-last memory the CPU's
convolutions are also faster.
"""

import copy
import math
from collections import Counter
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from .fused_blocks import fuse_blocks
from .onednn import by_onednn, fuse_activation
from .short_cuts import has_global_hooks, only_runs_its_class

# Pixels of a batch from which folding pays: the check for changed weights, and oneDNN's order of
# weights, take as long for few pixels as for many.
LEAST_PIXELS = 40_000
Pair = tuple[str, str]  # names of a convolution and of the norm that follows it

# Modules of other packages, such as PEFT's adapters, may depend on attributes, whose changes a copy
# misses.
KNOWN_PACKAGES = ("torch", "timm", __name__.partition(".")[0])


@dataclass(frozen=True)
class FoldedNetwork:
    """A folded network and the parts of the original that it depends on."""

    network: nn.Module  # the original if nothing could be folded
    parts: list[nn.Module | Tensor]  # all modules, parameters and buffers of the original
    sources: list[Tensor]  # those of them that were folded
    contents: list  # changes when the values of `sources` change
    is_finite: bool  # all of `sources`


class FoldedBackbone:
    """Makes the folded copy of a network when it is first needed, and again when weights change.

    The copy shares every tensor that isn't folded. It is in no state dict, and isn't copied or
    pickled with the network. Call `eval()` again after setting a plain attribute of a timm module,
    such as a stride.

    Args:
        norm_types: classes of frozen norms, with `running_mean`, `running_var`, `weight`, `bias`,
            `eps`, whose children are what follows in the same module, such as an activation.
    """

    def __init__(self, norm_types: tuple[type[nn.Module], ...]) -> None:
        self.norm_types = norm_types
        self.copy: FoldedNetwork | None = None

    def __getstate__(self) -> dict[str, Any]:
        return {"norm_types": self.norm_types, "copy": None}

    def drop(self) -> None:
        """Free the copy."""
        self.copy = None

    def network_for(self, network: nn.Module, pixel_values: Tensor) -> nn.Module:
        """The folded copy of `network`, or `network` itself where it can't be or doesn't pay."""
        if pixel_values[:, 0].numel() < LEAST_PIXELS or not _is_finite(pixel_values):
            return network
        modules = list(network.modules())
        # Much faster than parameters() and buffers(), which also make names.
        tensors = [tensor for module in modules for tensor in own_tensors(module)]
        is_training = any(module.training for module in modules)
        if is_training or not takes_folding(modules, tensors):
            return network
        folded, parts = self.copy, [*modules, *tensors]  # read once: another thread may drop it
        if (
            folded is None
            or [id(part) for part in parts] != [id(part) for part in folded.parts]
            or _contents(folded.sources) != folded.contents
        ):
            self.copy = folded = self._make(network, parts, tensors, pixel_values)
        # oneDNN's activations make 0 of NaN, which would hide that a training diverged.
        return folded.network if folded.is_finite else network

    # Inference mode splits operators into other parts, and its tensors can't be used outside it.
    @torch.inference_mode(False)
    @torch.no_grad()
    def _make(
        self,
        network: nn.Module,
        parts: list[nn.Module | Tensor],
        tensors: list[Tensor],
        pixel_values: Tensor,
    ) -> FoldedNetwork:
        pairs = find_pairs(network, tensors, pixel_values, self.norm_types)
        modules = [network.get_submodule(name) for pair in pairs for name in pair]
        sources = [tensor for module in modules for tensor in own_tensors(module)]
        contents = _contents(sources)  # before folding, so that later changes are noticed
        folded = fold(network, tensors, pairs) if pairs else network
        is_finite = all(map(_is_finite, sources))
        return FoldedNetwork(folded, parts, sources, contents, is_finite)


def takes_folding(modules: list[nn.Module], tensors: list[Tensor]) -> bool:
    """Whether a network of these modules and tensors may be folded."""
    return (
        not has_global_hooks()
        and all(_is_plain(module) for module in modules)
        # `functional_call` gives others, which may be new ones at every call.
        and all(
            isinstance(tensor, nn.Parameter)
            for module in modules
            for tensor in module._parameters.values()
            if tensor is not None
        )
        # Not a part of a distributed or quantised tensor; torch counts its changes.
        and all(
            type(t) in (Tensor, nn.Parameter) and t.device.type == "cpu" and not t.is_inference()
            for t in tensors
        )
    )


def find_pairs(
    network: nn.Module,
    tensors: list[Tensor],
    pixel_values: Tensor,
    norm_types: tuple[type[nn.Module], ...],
) -> list[Pair]:
    """Convolutions whose output only goes to a norm, found by recording a run on the meta device.

    The operators decide, not the names or order of modules: a convolution whose weights are
    computed, which is used twice or whose output is also read elsewhere isn't folded.
    """
    on_meta = {id(tensor): _to_meta(tensor) for tensor in tensors}
    operators = _OperatorRecorder()
    try:
        dummy = copy.deepcopy(network, dict(on_meta))
        with operators:
            features = dummy(torch.empty_like(pixel_values, device="meta"))
    except Exception:  # a network that needs values to run, or stores results, isn't folded
        return []
    weights = {id(m.weight): name for name, m in dummy.named_modules() if isinstance(m, nn.Conv2d)}
    means = {id(m.running_mean): name for name, m in dummy.named_modules() if type(m) in norm_types}
    inputs = [record[1:3] for record in operators.records]
    uses = Counter(id(leaf) for leaf in tree_leaves((features, inputs)))
    convolved = {}
    pairs = []
    for name, args, _, output in operators.records:
        if name == "aten::convolution" and id(args[1]) in weights and uses[id(args[1])] == 1:
            convolved[id(output)] = weights[id(args[1])]
        elif name == "aten::native_batch_norm" and id(args[3]) in means:
            convolution = convolved.get(id(args[0]))
            if convolution and uses[id(args[0])] == uses[id(args[3])] == 1:
                pairs.append((convolution, means[id(args[3])]))
    return pairs


class _OperatorRecorder(TorchDispatchMode):
    """Records every operator; keeping its inputs and outputs prevents that an id is used twice."""

    def __init__(self) -> None:
        super().__init__()
        self.records: list[tuple[str, tuple, dict, Any]] = []

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple = (), kwargs: Any = None
    ) -> Any:
        output = func(*args, **(kwargs or {}))
        self.records.append((func._schema.name, args, kwargs or {}, output))
        return output


def fold(network: nn.Module, tensors: list[Tensor], pairs: list[Pair]) -> nn.Module:
    """Copy a network without its tensors, and replace the given convolutions and norms."""
    folded = copy.deepcopy(network, {id(tensor): tensor for tensor in tensors})
    for convolution_name, norm_name in pairs:
        convolution, norm = folded.get_submodule(convolution_name), folded.get_submodule(norm_name)
        weight, bias = fold_pair(convolution, norm)
        weight = weight.contiguous(memory_format=torch.channels_last)
        convolution.weight = nn.Parameter(weight, requires_grad=False)
        convolution.bias = nn.Parameter(bias, requires_grad=False)
        folded.set_submodule(norm_name, fuse_activation(by_onednn(convolution), without_norm(norm)))
    fuse_blocks(folded)
    return folded


def without_norm(norm: nn.Module) -> nn.Module:
    """What a norm does after it has normalised: dropout and activation, in timm's order."""
    return nn.Sequential(*norm.children())


def fold_pair(convolution: nn.Conv2d, norm: nn.Module) -> tuple[Tensor, Tensor]:
    """Weight and bias equivalent to a convolution and a norm, in the convolution's dtype."""
    dtype = _at_least_float32(convolution.weight)
    scale = norm.weight.to(dtype) * (norm.running_var.to(dtype) + norm.eps).rsqrt()
    bias = norm.bias - norm.running_mean * scale
    if convolution.bias is not None:
        bias = bias + convolution.bias * scale
    weight = (convolution.weight * scale[:, None, None, None]).to(convolution.weight.dtype)
    return weight, bias.to(weight.dtype)


def _is_plain(module: nn.Module) -> bool:
    """Whether a module only runs the code of its class: a copy doesn't call hooks."""
    return type(module).__module__.partition(".")[0] in KNOWN_PACKAGES and only_runs_its_class(
        module
    )


def own_tensors(module: nn.Module) -> list[Tensor]:
    """Parameters and buffers of a module without those of its children."""
    held = (*module._parameters.values(), *module._buffers.values())
    return [tensor for tensor in held if tensor is not None]


def _contents(tensors: list[Tensor]) -> list:
    """Address, version, dtype, sums and some values, which change with the tensors.

    Writing through `.data` changes the sums but not the version; the sums of ResNet-50's weights
    take a three-hundredth of the time of a large image. Where values only change places, the first
    row changes; vectors are small and compared completely.
    """
    if not tensors:
        return []
    places = [(tensor.data_ptr(), tensor._version, tensor.dtype) for tensor in tensors]
    sums = [_sums(tensor) for tensor in tensors if tensor.ndim > 1]
    values = [tensor[:1].flatten() if tensor.ndim > 1 else tensor.flatten() for tensor in tensors]
    flat = torch.cat(values)
    return [places, sums, hash(flat.view(torch.uint8).numpy().tobytes())]


def _sums(tensor: Tensor) -> tuple[float, ...]:
    """The sum of all values, and of their bits in half precision, where the first is rounded."""
    start = tensor.storage_offset() * tensor.element_size()
    is_half = tensor.element_size() == 2
    if is_half and tensor.is_contiguous() and tensor.nbytes % 8 == start % 8 == 0:
        # Twice as fast as a sum in float32, for which all values are converted first.
        bits = tensor.detach().view(-1).view(torch.int64)
        return tensor.sum().item(), bits.sum().item()
    return (tensor.sum(dtype=_at_least_float32(tensor)).item(),)


def _is_finite(tensor: Tensor) -> bool:
    # A sum in float16 may overflow; one in bfloat16 doesn't sooner than in float32.
    dtype = torch.float32 if tensor.dtype == torch.float16 else tensor.dtype
    return math.isfinite(tensor.sum(dtype=dtype).item())


def _at_least_float32(tensor: Tensor) -> torch.dtype:
    return torch.promote_types(tensor.dtype, torch.float32)


def _to_meta(tensor: Tensor) -> Tensor:
    on_meta = tensor.detach().to("meta")
    is_parameter = isinstance(tensor, nn.Parameter)
    return nn.Parameter(on_meta, requires_grad=False) if is_parameter else on_meta
