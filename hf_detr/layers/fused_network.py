"""A network whose convolutions also do the addition and the activation that follow them."""

import operator

from torch import fx, nn

from .onednn import ACTIVATIONS, FusedConvolution

ADDITIONS = (operator.add, operator.iadd)
NEW_TENSOR = (nn.Conv2d, nn.MaxPool2d, nn.AvgPool2d)  # layers whose output isn't their input


def fuse(network: nn.Module) -> nn.Module:
    """Move additions and activations into the `FusedConvolution`s before them, each called once.

    Returns:
        A network of the same modules and results, or `network` itself if its operators depend on
        the values or shapes of tensors.
    """
    try:
        graph = _Tracer().trace(network)
    except Exception:  # whatever a network does with a tensor that is none
        return network
    fused = fx.GraphModule(network, graph)
    modules = dict(fused.named_modules())
    for node in graph.nodes:
        if _calls(node, modules, (nn.Identity,)):
            _replace(node, node.args[0])
    for node in graph.nodes:
        if _calls(node, modules, (FusedConvolution,)):
            last = _fuse_addition(node, modules)
            _fuse_activation(last, modules)
    fused.recompile()
    return fused


class _Tracer(fx.Tracer):
    """Takes convolutions of other packages as they are, too."""

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return isinstance(m, nn.Conv2d) or super().is_leaf_module(m, module_qualified_name)


def _fuse_addition(convolved: fx.Node, modules: dict[str, nn.Module]) -> fx.Node:
    """The node of the convolution and the addition after it, or of the convolution alone."""
    user = _only_user(convolved)
    keeps_size = modules[convolved.target].keeps_size()
    if user is None or user.target not in ADDITIONS or not keeps_size:
        return convolved
    residual = next((arg for arg in user.args if arg is not convolved), None)
    if not (isinstance(residual, fx.Node) and _may_be_overwritten(residual, user, modules)):
        return convolved
    with convolved.graph.inserting_before(user):
        args = (*convolved.args, residual)
        fused = convolved.graph.call_module(convolved.target, args)
    _replace(user, fused)
    convolved.graph.erase_node(convolved)
    return fused


def _may_be_overwritten(node: fx.Node, user: fx.Node, modules: dict[str, nn.Module]) -> bool:
    """Whether nobody reads the tensor of `node` after `user`, not even a view of it."""
    return _calls(node, modules, NEW_TENSOR) and all(
        other is user or (other < user and _calls(other, modules, NEW_TENSOR))
        for other in node.users
    )


def _fuse_activation(convolved: fx.Node, modules: dict[str, nn.Module]) -> None:
    user = _only_user(convolved)
    adds = len(convolved.args) > 1
    known = (nn.ReLU,) if adds else tuple(ACTIVATIONS)  # what oneDNN can do after an addition
    if user is not None and _calls(user, modules, known):
        modules[convolved.target].activation = modules[user.target]
        _replace(user, convolved)


def _only_user(node: fx.Node) -> fx.Node | None:
    return next(iter(node.users)) if len(node.users) == 1 else None


def _calls(node: fx.Node, modules: dict[str, nn.Module], types: tuple[type, ...]) -> bool:
    return node.op == "call_module" and isinstance(modules[node.target], types)


def _replace(node: fx.Node, other: fx.Node) -> None:
    node.replace_all_uses_with(other)
    node.graph.erase_node(node)
