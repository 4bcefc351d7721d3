"""Convert models to OpenVINO, and quantise the parts that keep their accuracy in int8."""

import contextlib
import logging
import re
import sys
from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from ..layers.backbone import Backbone
from ..layers.transformer import EncoderLayer

if TYPE_CHECKING:
    import openvino

PRECISION = {"INFERENCE_PRECISION_HINT": "f32"}  # by default bfloat16 on CPUs with units for it


def convert_to_openvino(
    graph: nn.Module,
    batch: Sequence[Tensor],
    names: tuple[Sequence[str], Sequence[str]],
    fixed_hw: tuple[int, int] | None,
) -> "openvino.Model":
    """Convert a float32 model.

    Args:
        graph: called with images (B, C, H, W) and masks (B, H, W) int64; returns a tuple.
        batch: such images and masks, with padding.
        names: of the inputs, and of the outputs.
        fixed_hw: the only height and width; None leaves them free.

    Raises:
        ValueError: for another dtype.
    """
    import openvino

    dtype = next(graph.parameters()).dtype
    if dtype != torch.float32:
        raise ValueError(
            "OpenVINO needs float32 (--dtype float32), and chooses bfloat16 itself on CPUs where "
            "that is faster."
        )
    hw = fixed_hw or (-1, -1)
    shapes = [openvino.PartialShape([-1, batch[0].shape[1], *hw]), openvino.PartialShape([-1, *hw])]
    inputs = list(zip(names[0], shapes, strict=True))
    model = openvino.convert_model(graph, example_input=tuple(batch), input=inputs)
    for ports, port_names in zip((model.inputs, model.outputs), names, strict=True):
        for port, name in zip(ports, port_names, strict=True):
            port.get_tensor().set_names({name})
    return model


def save_openvino(model: "openvino.Model", path: Path) -> None:
    """Write a model to an `.xml` file, and its weights to a `.bin` file beside it."""
    import openvino

    openvino.save_model(model, path, compress_to_fp16=False)


def load_openvino(path: Path) -> Callable[..., list[Tensor]]:
    """Return a function from images (B, C, H, W) and masks (B, H, W) to the outputs."""
    import openvino

    compiled = openvino.Core().compile_model(path, "CPU", PRECISION)

    def run(*batch: Tensor) -> list[Tensor]:
        results = compiled([tensor.numpy() for tensor in batch])
        return [torch.from_numpy(results[port].copy()) for port in compiled.outputs]

    return run


def quantise(
    path: Path, target: Path, graph: nn.Module, images: Collection[Sequence[Tensor]]
) -> None:
    """Quantise the backbone and the encoder's feed-forward networks to int8.

    Attention, decoder and heads stay in float32: in int8 they can lose nearly all of a model's AP.

    Args:
        path: of the converted model.
        target: file to write.
        graph: what it was converted from.
        images: of the user's data, each with its mask, (1, 3, H, W) and (1, H, W) int64.
    """
    import nncf
    import openvino

    model = openvino.Core().read_model(path)
    is_quantised = _operations_to_quantise(graph)
    ignored = [
        op.get_friendly_name()
        for op in model.get_ops()
        if not is_quantised(op.get_type_name(), op.get_friendly_name())
    ]
    data = nncf.Dataset(images, lambda one: [tensor.numpy() for tensor in one])
    logging.getLogger("nncf").setLevel(logging.WARNING)
    with contextlib.redirect_stdout(sys.stderr):  # of progress bars
        quantised = nncf.quantize(
            model,
            data,
            subset_size=len(images),
            ignored_scope=nncf.IgnoredScope(names=ignored, validate=False),
        )
    save_openvino(quantised, target)


def _operations_to_quantise(graph: nn.Module) -> Callable[[str, str], bool]:
    """Return whether an operation is to be quantised, given its type and name in OpenVINO.

    A name begins with that of the module. Only operations that OpenVINO has joined have none: among
    convolutions those with a batch norm, which only backbones have.
    """
    scopes = []
    for name, module in graph.named_modules():
        if isinstance(module, Backbone):
            scopes.append(name)
        elif isinstance(module, EncoderLayer):
            scopes += [f"{name}.fc1", f"{name}.fc2"]
    pattern = re.compile(rf"__module\.({'|'.join(map(re.escape, scopes))})[./].*")

    def is_quantised(kind: str, name: str) -> bool:
        is_joined = "Convolution" in kind and not name.startswith("__module.")
        return is_joined or pattern.fullmatch(name) is not None

    return is_quantised
