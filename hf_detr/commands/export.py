"""`hf-detr export`: write a model as an ONNX or torch.export file."""

import argparse
import json
from dataclasses import asdict
from pathlib import Path

from .options import add_model_options, argument_errors, size_hw

SUFFIXES = (".onnx", ".pt2")


def parse(arguments: list[str], prog: str | None = None) -> argparse.Namespace:
    """Parse and check the arguments."""
    parser = _parser(prog)
    parsed = parser.parse_args(arguments)
    with argument_errors(parser):
        if parsed.target.suffix not in SUFFIXES:
            raise ValueError(f"{parsed.target} must end with {' or '.join(SUFFIXES)}")
    return parsed


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


def _parser(prog: str | None) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog=prog,
        description="Export a model for any batch size, height and width, and check that the "
        "file's outputs equal the model's. Otherwise the file isn't kept.",
        epilog="exit status: 0 if the file was written and is correct; 1 if not; 2 if the "
        "arguments are wrong. ONNX needs `pip install 'hf_detr[export]'`.",
    )
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
    parser.add_argument(
        "--json", action="store_true", help="print the report as JSON, and nothing else on stdout"
    )
    return parser
