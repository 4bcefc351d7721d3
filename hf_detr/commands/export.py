"""Export a model to a file for any batch size, height and width.

The ending of the file decides: .onnx for ONNX (`pip install 'hf_detr[export]'`), .xml for OpenVINO
(`pip install 'hf_detr[openvino]'`; a .bin file with the weights is beside it), .pt2 for
torch.export. The file is kept only if its outputs equal the model's.

With --int8, an OpenVINO file's backbone and the encoder's feed-forward networks are in int8; the
rest stays in float32. AP of model and file are measured on the data of --calibration, and the file
is kept only if AP doesn't fall by more than --max-ap-drop.
"""

import argparse
import importlib.util
import json
import sys
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from ..data.formats import DataArguments
from .options import (
    add_field_options,
    add_json_option,
    add_model_options,
    checked_data,
    given_fields,
    size_hw,
)

if TYPE_CHECKING:
    from ..evaluation.int8_export import Int8Report
    from ..image_processing.image_processor import DetectionImageProcessor
    from ..inference.export import ExportReport
    from ..models.pretrained_model import DetectionPreTrainedModel

SUFFIXES = (".onnx", ".pt2", ".xml")
MAX_AP_DROP = 0.01


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the command's options."""
    help = "file to write: model.onnx, model.xml or model.pt2"
    parser.add_argument("target", type=Path, help=help)
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
        help="largest allowed difference from the model's outputs, default %(default)s; with "
        "--int8, of the file before it is quantised",
    )
    parser.add_argument("--overwrite", action="store_true", help="replace an existing file")
    add_json_option(parser)
    group = parser.add_argument_group("OpenVINO in int8")
    group.add_argument("--int8", action="store_true", help="quantise to int8; needs --calibration")
    help = f"by how much AP, from 0 to 1, may fall, default {MAX_AP_DROP}"
    group.add_argument("--max-ap-drop", type=float, metavar="X", help=help)
    add_field_options(group, DataArguments, names={"data": "--calibration"})


def check(parsed: argparse.Namespace) -> None:
    """Check the file's ending and the options of int8; `data` becomes the data set's arguments."""
    if parsed.target.suffix not in SUFFIXES:
        raise ValueError(f"{parsed.target} must end with {' or '.join(SUFFIXES)}")
    if not parsed.int8:
        given = [
            name.replace("data", "calibration") for name in given_fields(parsed, DataArguments)
        ]
        given += ["max_ap_drop"] if parsed.max_ap_drop is not None else []
        if given:
            raise ValueError(f"--{given[0].replace('_', '-')} has no effect without --int8.")
    if parsed.target.suffix == ".xml":
        for package in ("openvino", "nncf") if parsed.int8 else ("openvino",):
            if importlib.util.find_spec(package) is None:
                what = "--int8" if package == "nncf" else ".xml"
                install = "pip install 'hf_detr[openvino]' installs it."
                raise ValueError(f"{what} needs the package {package}; {install}")
    if parsed.int8:
        _check_int8(parsed)


def _check_int8(parsed: argparse.Namespace) -> None:
    if parsed.target.suffix != ".xml":
        raise ValueError(f"--int8 writes .xml files of OpenVINO only, not {parsed.target.name}.")
    if "data" not in parsed:
        raise ValueError(
            "--int8 needs --calibration, data with boxes on which AP is measured; named as the "
            "--data of `hf-detr evaluate`."
        )
    if parsed.size is not None:
        raise ValueError("--size can't be used with --int8, which needs free height and width.")
    if parsed.max_ap_drop is None:
        parsed.max_ap_drop = MAX_AP_DROP
    if not 0 <= parsed.max_ap_drop <= 1:
        raise ValueError(f"--max-ap-drop is {parsed.max_ap_drop}; expected 0.01, for example.")
    parsed.data = checked_data(parsed, evaluation=True)


def run(parsed: argparse.Namespace) -> int:
    """Export the model and print the report; return the exit status."""
    from ..inference.export import export_model, samples_points
    from ..inference.model_loading import load_model

    masks = parsed.data.masks or None if parsed.int8 else None
    model, processor = load_model(parsed.model, parsed.device or "cpu", masks, parsed.dtype)
    if parsed.target.suffix == ".xml" and samples_points(model):
        print(
            "On a CPU, hf_detr runs this model faster than an exported file does, which can't hold "
            "its compiled operator; images of about 100 pixels can be an exception.",
            file=sys.stderr,
        )
    print(f"Exporting {parsed.target.name} takes up to some minutes.", file=sys.stderr)
    if parsed.int8:
        report = _export_int8(parsed, model, processor)
    else:
        settings = parsed.size, parsed.tolerance, parsed.overwrite
        report = export_model(model, parsed.target, processor, *settings)
    print(json.dumps(asdict(report)) if parsed.json else _described(report))
    return 0


def _export_int8(
    parsed: argparse.Namespace,
    model: "DetectionPreTrainedModel",
    processor: "DetectionImageProcessor",
) -> "Int8Report":
    from ..evaluation.int8_export import export_int8

    return export_int8(
        model,
        parsed.target,
        processor,
        parsed.data.read_validation(),
        parsed.max_ap_drop,
        tolerance=parsed.tolerance,
        overwrite=parsed.overwrite,
    )


def _described(report: "ExportReport | Int8Report") -> str:
    text = (
        f"{report.path}: {report.num_bytes / 1e6:.1f} MB, inputs {', '.join(report.inputs)}, "
        f"outputs {', '.join(report.outputs)}.\n"
    )
    if hasattr(report, "ap_before"):
        falls = [
            f"{name} is {after:.4f} in int8, {report.ap_before[name]:.4f} before"
            for name, after in report.ap_after.items()
        ]
        return f"{text}{'; '.join(falls)}. {report.calibration_images} images for calibration."
    return (
        f"{text}The largest difference from the model's outputs is "
        f"{report.largest_difference:.1e}, for batches (images, height, width) of "
        f"{', '.join(map(str, report.checked_shapes))}."
    )
