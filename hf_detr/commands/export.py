"""Export a model to a file for any batch size, height and width, as ONNX or for torch.export.

The file is kept only if its outputs equal the model's. ONNX needs `pip install 'hf_detr[export]'`.
"""

import argparse
import json
from dataclasses import asdict
from pathlib import Path

from .options import add_json_option, add_model_options, size_hw

SUFFIXES = (".onnx", ".pt2")


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the command's options."""
    parser.add_argument("target", type=Path, help="file to write: model.onnx or model.pt2")
    add_model_options(parser)
    parser.add_argument(
        "--size",
        type=size_hw,
        metavar="HEIGHTxWIDTH",
        help="fix height and width, to which images must then be padded; for backbones that can't "
        "leave them free",
    )
    parser.add_argument(
        "--tolerance",
        type=float,
        default=1e-3,
        help="largest allowed difference from the model's outputs, default %(default)s",
    )
    parser.add_argument("--overwrite", action="store_true", help="replace an existing file")
    add_json_option(parser)


def check(parsed: argparse.Namespace) -> None:
    """Check the file's ending."""
    if parsed.target.suffix not in SUFFIXES:
        raise ValueError(f"{parsed.target} must end with {' or '.join(SUFFIXES)}")


def run(parsed: argparse.Namespace) -> int:
    """Export the model and print the report; return the exit status."""
    from ..inference.export import export_model
    from ..inference.model_loading import load_model

    model, processor = load_model(parsed.model, parsed.device or "cpu", dtype=parsed.dtype)
    settings = parsed.size, parsed.tolerance, parsed.overwrite
    report = export_model(model, parsed.target, processor, *settings)
    if parsed.json:
        print(json.dumps(asdict(report)))
        return 0
    print(
        f"{report.path}: {report.num_bytes / 1e6:.1f} MB, inputs {', '.join(report.inputs)}, "
        f"outputs {', '.join(report.outputs)}.\nThe largest difference from the model's outputs is "
        f"{report.largest_difference:.1e}, for batches (images, height, width) of "
        f"{', '.join(map(str, report.checked_shapes))}."
    )
    return 0
