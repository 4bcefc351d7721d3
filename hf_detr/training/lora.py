"""LoRA (arXiv 2106.09685) by PEFT: low-rank changes are trained instead of the weights."""

import re

from torch import nn

# The linear layers of encoder and decoder; heads and projections aren't in layers.
LAYERS = re.compile(r"\b(encoder|decoder)\.layers\.\d+\.")
BACKBONE = re.compile(r"\bbackbone\.")


def add_lora(model: nn.Module, rank: int) -> None:
    """Add adapters to the layers of encoder and decoder.

    The backbone and the layers' own weights aren't trained any more. Everything outside of them,
    such as heads and queries, is: a new class head has to learn, and these are small.

    Args:
        model: a detector or a segmentation model.
        rank: of the adapters; their changes are scaled by 2, as in most recipes.
    """
    from peft import LoraConfig, inject_adapter_in_model

    trained = {
        name
        for name, parameter in model.named_parameters(remove_duplicate=False)
        if parameter.requires_grad and not LAYERS.search(name) and not BACKBONE.search(name)
    }
    targets = [
        path
        for path, module in model.named_modules()
        if isinstance(module, nn.Linear) and LAYERS.search(path)
    ]
    config = LoraConfig(r=rank, lora_alpha=2 * rank, target_modules=targets)
    inject_adapter_in_model(config, model)
    for name, parameter in model.named_parameters(remove_duplicate=False):
        if name in trained:
            parameter.requires_grad_(True)


def merge_lora(model: nn.Module) -> None:
    """Add the changes to the layers' weights, and remove the adapters."""
    from peft.tuners.tuners_utils import BaseTunerLayer

    for path, module in list(model.named_modules()):
        if isinstance(module, BaseTunerLayer):
            module.merge()
            parent, _, name = path.rpartition(".")
            setattr(model.get_submodule(parent), name, module.get_base_layer())
