"""Load weights of a backbone from a file that isn't timm's."""

from pathlib import Path

import torch
from safetensors.torch import load_file
from transformers import PreTrainedModel


@torch.no_grad()
def load_backbone_weights(model: PreTrainedModel, file: Path) -> None:
    """Copy the weights of an image classifier to the backbone of a detector.

    Tensors are matched by name. If names differ they are matched by order, as in most ports of a
    network. Additional tensors, such as the classifier's head, are ignored.

    Raises:
        ValueError: if tensors are missing or have other shapes.
    """
    if file.suffix == ".safetensors":
        weights = load_file(file)
    else:
        weights = torch.load(file, map_location="cpu", weights_only=True)
    weights = {n: w for n, w in weights.items() if not n.endswith("num_batches_tracked")}
    network = model.detection_transformer.backbone.conv_encoder["model"]
    own = network.state_dict()
    # Names differ in timm's feature extractors, which replace dots by underscores.
    by_name = {name.replace(".", "_"): weight for name, weight in weights.items()}
    if all(name.replace(".", "_") in by_name for name in own):
        found = {name: by_name[name.replace(".", "_")] for name in own}
    else:
        found = dict(zip(own, weights.values(), strict=False))
    for name, weight in own.items():
        if name not in found or found[name].shape != weight.shape:
            got = tuple(found[name].shape) if name in found else "missing"
            raise ValueError(
                f"{file} doesn't match the backbone {model.config.backbone_config.backbone}: "
                f"{name} is {got}, expected {tuple(weight.shape)}."
            )
        weight.copy_(found[name])
