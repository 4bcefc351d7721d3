"""A network with its frozen norms folded into the convolutions before them, for inference.

A norm whose statistics are frozen multiplies each channel and adds to it. So can the convolution
before it, at no cost, which saves a pass over every map; and in channels-last memory the CPU's
convolutions are faster still.
"""

import copy
from collections import Counter
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.module import _has_any_global_hook
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

Pair = tuple[str, str]  # names of a convolution and of the norm that follows it

# Others' modules, such as PEFT's adapters, may switch by attributes, whose changes a copy misses.
KNOWN_PACKAGES = ("torch", "timm", __package__)


@dataclass(frozen=True)
class Made:
    """A folded network and what it was made of.

    Attributes:
        network: the folded one, or the original if nothing could be folded.
        parts: all modules, parameters and buffers of the original.
        sources: those of them that were folded.
        contents: what tells whether `sources` still hold the same.
    """

    network: nn.Module
    parts: list[nn.Module | Tensor]
    sources: list[Tensor]
    contents: list


class FoldedBackbone:
    """Makes the folded copy of a network when it is first needed, and again when weights change.

    The copy lies beside the network: it shares every tensor that isn't folded, is in no state
    dict, and isn't copied or pickled along. Whoever sets a plain attribute of a timm module after
    inference, such as a stride, must call `eval()` again.

    Args:
        norm_types: classes of frozen norms, with `running_mean`, `running_var`, `weight`, `bias`,
            `eps`, and if they also activate, `act`.
    """

    def __init__(self, norm_types: tuple[type[nn.Module], ...]) -> None:
        self.norm_types = norm_types
        self.made: Made | None = None

    def __getstate__(self) -> dict[str, Any]:
        return {"norm_types": self.norm_types, "made": None}

    def drop(self) -> None:
        """Free the copy."""
        self.made = None

    def network_for(self, network: nn.Module, pixel_values: Tensor) -> nn.Module:
        """The folded copy of `network`, or `network` itself where it can't be folded."""
        modules = list(network.modules())
        if _has_any_global_hook() or not all(_is_plain(module) for module in modules):
            return network
        # Much faster than parameters() and buffers(), which also make names.
        tensors = [tensor for module in modules for tensor in _own_tensors(module)]
        if not all(_is_plain_tensor(tensor) for tensor in tensors):
            return network
        made, parts = self.made, [*modules, *tensors]  # read once: another thread may drop it
        if made is None or not _is_current(made, parts):
            folded, sources, contents = self._make(network, tensors, pixel_values)
            self.made = made = Made(folded, parts, sources, contents)
        return made.network

    @torch.inference_mode(False)  # in which operators come in other parts, and tensors are others
    @torch.no_grad()
    def _make(
        self, network: nn.Module, tensors: list[Tensor], pixel_values: Tensor
    ) -> tuple[nn.Module, list[Tensor], list]:
        pairs = find_pairs(network, tensors, pixel_values, self.norm_types)
        if not pairs:
            return network, [], _contents([])
        modules = [network.get_submodule(name) for pair in pairs for name in pair]
        sources = [tensor for module in modules for tensor in _own_tensors(module)]
        contents = _contents(sources)  # before folding: what changes meanwhile must be noticed
        return fold(network, tensors, pairs), sources, contents


def find_pairs(
    network: nn.Module,
    tensors: list[Tensor],
    pixel_values: Tensor,
    norm_types: tuple[type[nn.Module], ...],
) -> list[Pair]:
    """Convolutions whose output goes to a norm and nowhere else, by watching a run without data.

    The operators themselves are judged, not the modules' names or order: so a convolution that
    computes its weights, is used twice or has another reader is left alone.
    """
    on_meta = {id(tensor): _to_meta(tensor) for tensor in tensors}
    calls = _Calls()
    try:
        dummy = copy.deepcopy(network, dict(on_meta))
        with calls:
            features = dummy(torch.empty_like(pixel_values, device="meta"))
    except Exception:  # a network that needs values to run, or keeps results; it stays as it is
        return []
    weights = {id(m.weight): name for name, m in dummy.named_modules() if isinstance(m, nn.Conv2d)}
    means = {id(m.running_mean): name for name, m in dummy.named_modules() if type(m) in norm_types}
    uses = Counter(id(leaf) for leaf in tree_leaves((features, [c[1:3] for c in calls.made])))
    convolved = {}
    pairs = []
    for name, args, _, output in calls.made:
        if name == "aten::convolution" and id(args[1]) in weights and uses[id(args[1])] == 1:
            convolved[id(output)] = weights[id(args[1])]
        elif name == "aten::native_batch_norm" and id(args[3]) in means:
            convolution = convolved.get(id(args[0]))
            if convolution and uses[id(args[0])] == uses[id(args[3])] == 1:
                pairs.append((convolution, means[id(args[3])]))
    return pairs


class _Calls(TorchDispatchMode):
    """Keeps every operator that runs, with its inputs and outputs, so that no id is used twice."""

    def __init__(self) -> None:
        super().__init__()
        self.made: list[tuple[str, tuple, dict, Any]] = []

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple = (), kwargs: Any = None
    ) -> Any:
        output = func(*args, **(kwargs or {}))
        self.made.append((func._schema.name, args, kwargs or {}, output))
        return output


def fold(network: nn.Module, tensors: list[Tensor], pairs: list[Pair]) -> nn.Module:
    """Copy a network without its tensors, and replace the given convolutions and norms."""
    folded = copy.deepcopy(network, {id(tensor): tensor for tensor in tensors})
    for convolution_name, norm_name in pairs:
        convolution, norm = folded.get_submodule(convolution_name), folded.get_submodule(norm_name)
        weight, bias = fold_pair(convolution, norm)
        convolution.weight = nn.Parameter(weight, requires_grad=False)
        convolution.bias = nn.Parameter(bias, requires_grad=False)
        if can_be_dilated(convolution):
            convolution.dilation = (2, 2)
        folded.set_submodule(norm_name, getattr(norm, "act", nn.Identity()))
    return folded


def can_be_dilated(convolution: nn.Conv2d) -> bool:
    """Whether dilating does nothing but lead torch to oneDNN, which is a tenth or more faster.

    On one thread torch computes 1 x 1 convolutions of few images as a matrix product and copies,
    unless they are strided or dilated. oneDNN is faster with AVX2 or more.
    """
    return (
        convolution.kernel_size == (1, 1)
        and convolution.weight.dtype == torch.float32
        and has_fast_onednn()
    )


def has_fast_onednn() -> bool:
    """Whether torch has oneDNN, and the processor AVX2 or more."""
    capability = torch.backends.cpu.get_cpu_capability()
    return torch.backends.mkldnn.is_available() and capability.startswith("AVX")


def fold_pair(convolution: nn.Conv2d, norm: nn.Module) -> tuple[Tensor, Tensor]:
    """Weight and bias that do what a convolution and a norm do, in the convolution's dtype."""
    dtype = _at_least_float32(convolution.weight)
    scale = norm.weight.to(dtype) * (norm.running_var.to(dtype) + norm.eps).rsqrt()
    bias = norm.bias - norm.running_mean * scale
    if convolution.bias is not None:
        bias = bias + convolution.bias * scale
    weight = (convolution.weight * scale[:, None, None, None]).to(convolution.weight.dtype)
    return weight.contiguous(memory_format=torch.channels_last), bias.to(weight.dtype)


def _is_plain(module: nn.Module) -> bool:
    """Whether a module only does what its class says: a copy could not call others' hooks."""
    return type(module).__module__.partition(".")[0] in KNOWN_PACKAGES and not (
        module.training
        or module._forward_hooks
        or module._forward_pre_hooks
        or module._compiled_call_impl
        or "forward" in vars(module)
    )


def _is_plain_tensor(tensor: Tensor) -> bool:
    # No parts of a distributed or quantised tensor, nothing whose changes torch doesn't count.
    return (
        type(tensor) in (Tensor, nn.Parameter)
        and tensor.device.type == "cpu"
        and not tensor.is_inference()
    )


def _own_tensors(module: nn.Module) -> list[Tensor]:
    held = (*module._parameters.values(), *module._buffers.values())
    return [tensor for tensor in held if tensor is not None]


def _is_current(made: Made, parts: list[nn.Module | Tensor]) -> bool:
    return (
        len(parts) == len(made.parts)
        and all(part is known for part, known in zip(parts, made.parts, strict=True))
        and _contents(made.sources) == made.contents
    )


def _contents(tensors: list[Tensor]) -> list:
    """What changes when the tensors do: place, version, type, sums, and some values.

    Writing through `.data` moves no version, but the sums; adding up ResNet-50's weights takes a
    three-hundredth of the time that it needs for a large image. Where values only change places,
    the first row tells it; the vectors, which are small, are compared whole.
    """
    if not tensors:
        return []
    places = [(tensor.data_ptr(), tensor._version, tensor.dtype) for tensor in tensors]
    large = [tensor for tensor in tensors if tensor.ndim > 1]
    sums = [tensor.sum(dtype=_at_least_float32(tensor)).item() for tensor in large]
    values = [tensor[:1].flatten() if tensor.ndim > 1 else tensor.flatten() for tensor in tensors]
    return [places, sums, hash(torch.cat(values).view(torch.uint8).numpy().tobytes())]


def _at_least_float32(tensor: Tensor) -> torch.dtype:
    return torch.promote_types(tensor.dtype, torch.float32)


def _to_meta(tensor: Tensor) -> Tensor:
    on_meta = tensor.detach().to("meta")
    is_parameter = isinstance(tensor, nn.Parameter)
    return nn.Parameter(on_meta, requires_grad=False) if is_parameter else on_meta
