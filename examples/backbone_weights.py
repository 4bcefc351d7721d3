"""Load weights of a backbone from a file, for networks whose files aren't timm's."""

from pathlib import Path

import torch
from safetensors.torch import load_file
from transformers import PreTrainedModel


@torch.no_grad()
def load_backbone_weights(model: PreTrainedModel, file: Path) -> None:
    """Copy an image classifier's weights into the backbone of a detector.

    Tensors are found by name, and if the names differ by order: the file must then have the
    same shapes in the same order, as ports of one network usually have. What the file has beyond
    the backbone (its classifier's head) is left out.

    Raises:
        ValueError: if the file's tensors don't fit.
    """
    if file.suffix == ".safetensors":
        weights = load_file(file)
    else:
        weights = torch.load(file, map_location="cpu", weights_only=True)
    weights = {n: w for n, w in weights.items() if not n.endswith("num_batches_tracked")}
    network = model.detection_transformer.backbone.conv_encoder["model"]
    own = network.state_dict()
    # timm flattens the outer containers of a network that gives features.
    by_name = {name.replace(".", "_"): weight for name, weight in weights.items()}
    if all(name.replace(".", "_") in by_name for name in own):
        found = {name: by_name[name.replace(".", "_")] for name in own}
    else:
        found = dict(zip(own, weights.values(), strict=False))
    for name, weight in own.items():
        if name not in found or found[name].shape != weight.shape:
            got = tuple(found[name].shape) if name in found else "missing"
            raise ValueError(
                f"{file} doesn't fit the backbone {model.config.backbone_config.backbone}: "
                f"{name} has the shape {tuple(weight.shape)}, in the file {got}."
            )
        weight.copy_(found[name])
