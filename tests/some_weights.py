"""Weights and images for models with recorded outputs of other libraries."""

import zlib
from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor


def named_weights(shapes: Mapping[str, Sequence[int] | str]) -> dict[str, Tensor]:
    """Make weights that depend on names and shapes only, on all machines.

    Args:
        shapes: shape by name, or an earlier name of the same weight.
    """
    weights = {}
    for name, shape in shapes.items():
        if isinstance(shape, str):
            weights[name] = weights[shape]
            continue
        noise = np.random.RandomState(zlib.crc32(name.encode())).standard_normal(shape)
        if name.endswith("running_var"):
            noise = 0.5 + np.abs(noise)
        elif len(shape) > 1:
            noise = noise / np.sqrt(np.prod(shape[1:]))
        else:
            noise = 0.1 * noise + (name.endswith("weight"))
        weights[name] = torch.from_numpy(np.asarray(noise, dtype=np.float32))
    return weights


def batch() -> tuple[Tensor, Tensor]:
    """Two images and their mask; the second image is padded."""
    noise = np.random.RandomState(0).standard_normal((2, 3, 128, 160))
    pixel_mask = torch.ones(2, 128, 160, dtype=torch.long)
    pixel_mask[1, 110:] = 0
    pixel_mask[1, :, 130:] = 0
    return torch.from_numpy(noise).float() * pixel_mask[:, None], pixel_mask
