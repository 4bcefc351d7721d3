"""Export all models, and compare the speed of onnxruntime and OpenVINO with eager torch.

    OMP_NUM_THREADS=1 python examples/benchmarks/benchmark_export.py --rounds 5

Weights are random. The exported files are first checked against the model with several sizes and
padded batches. Then all run alternately with one image; times are CPU milliseconds. With openvino
installed also: its float32 file; the file and the model itself in bfloat16, if the CPU has units
for it; and with nncf an int8 file, in float32 and bfloat16. Their outputs for the measured image
are compared before any time is printed: the largest difference of scores or boxes may be 0.05 in
bfloat16 and 0.15 in int8.
"""

import argparse
import copy
import importlib.util
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnxruntime
import torch
from benchmark_timing import medians
from torch import Tensor, nn

from hf_detr.inference.export import INPUTS, Graph, export_model
from hf_detr.inference.openvino_export import quantise
from hf_detr.models.variants import VARIANTS

TOLERANCES = {
    "torch bf16": 0.05,
    "OpenVINO f32": 1e-3,
    "OpenVINO bf16": 0.05,
    "OpenVINO int8": 0.15,
    "OpenVINO int8 + bf16": 0.15,
}
HAVE = {name for name in ("openvino", "nncf") if importlib.util.find_spec(name)}


def onnx_runner(path: Path, batch: tuple[Tensor, Tensor]) -> Callable[[], list[Any]]:
    """Load a file in onnxruntime with torch's number of threads; return what runs it."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    inputs = {name: tensor.numpy() for name, tensor in zip(INPUTS, batch, strict=True)}
    return lambda: session.run(None, inputs)


def openvino_runner(
    path: Path, batch: tuple[Tensor, Tensor], precision: str
) -> Callable[[], list[Any]]:
    """The same in OpenVINO; threads count in this process's CPU time, as torch's do."""
    import openvino

    settings = {
        "INFERENCE_PRECISION_HINT": precision,
        "INFERENCE_NUM_THREADS": torch.get_num_threads(),
        "NUM_STREAMS": 1,
    }
    compiled = openvino.Core().compile_model(path, "CPU", settings)
    inputs = [tensor.numpy() for tensor in batch]
    return lambda: list(compiled(inputs).values())


def other_runners(
    model: nn.Module, folder: Path, batch: tuple[Tensor, Tensor]
) -> dict[str, Callable[[], list[Any]]]:
    """Return what runs OpenVINO files, and the model in bfloat16, by names of `TOLERANCES`."""
    import openvino

    float_file, int8_file = folder / "float32.xml", folder / "int8.xml"
    export_model(model, float_file)
    offered = openvino.Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")
    precisions = ["f32", *(["bf16"] if "BF16" in offered else [])]
    runners = {f"OpenVINO {one}": openvino_runner(float_file, batch, one) for one in precisions}
    if "bf16" in precisions:
        runners["torch bf16"] = bfloat16_runner(model, batch)
    if "nncf" in HAVE:
        quantise(float_file, int8_file, Graph(model), [batch])  # so that ranges fit
        for one in precisions:
            name = "OpenVINO int8" if one == "f32" else f"OpenVINO int8 + {one}"
            runners[name] = openvino_runner(int8_file, batch, one)
    return runners


def bfloat16_runner(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Callable[[], list[Any]]:
    """Return what runs the model itself in bfloat16."""
    half = Graph(copy.deepcopy(model).bfloat16())
    images, mask = batch[0].bfloat16(), batch[1]
    return lambda: [output.float().numpy() for output in half(images, mask)]


def largest_difference(runner: Callable[[], list[Any]], expected: tuple[Tensor, ...]) -> float:
    """Compare scores and boxes with the model's."""
    got = [torch.from_numpy(array) for array in runner()]
    got[0], expected = got[0].sigmoid(), (expected[0].sigmoid(), *expected[1:])
    pairs = zip(got, expected, strict=True)
    return max(float((one - other).abs().max()) for one, other in pairs)


@torch.no_grad()
def measure(name: str, size: tuple[int, int], rounds: int, **settings: Any) -> str:
    """Measure one model and return a row of the table."""
    variant = VARIANTS[name]
    torch.manual_seed(0)
    model = variant.detector(variant.config(use_pretrained_backbone=False, **settings)).eval()
    batch = Graph(model).example(1, *size)
    with tempfile.TemporaryDirectory() as folder:
        report = export_model(model, Path(folder) / "model.onnx")
        runners = other_runners(model, Path(folder), batch) if "openvino" in HAVE else {}
        expected = Graph(model)(*batch)
        found = {kind: largest_difference(one, expected) for kind, one in runners.items()}
        right = [kind for kind in runners if found[kind] <= TOLERANCES[kind]]
        theirs = onnx_runner(Path(report.path), batch), *(runners[kind] for kind in right)
        ours, *others = medians(lambda: model(*batch), *theirs, rounds=rounds)
    times = dict(zip(("onnxruntime", *right), others, strict=True))
    cells = (
        *(name, f"{report.num_bytes / 1e6:.0f}", f"{report.largest_difference:.0e}"),
        *(f"{1000 * ours:.0f}", *(cell(times, ours, kind, found) for kind in columns())),
    )
    return f"| {' | '.join(cells)} |"


def columns() -> list[str]:
    """Return the names of the measured runners in the table's order."""
    return ["onnxruntime", *(TOLERANCES if "openvino" in HAVE else ())]


def cell(times: dict[str, float], ours: float, kind: str, found: dict[str, float]) -> str:
    """Return milliseconds and how many times longer torch takes, or why it isn't timed."""
    if kind in times:
        return f"{1000 * times[kind]:.0f} ({ours / times[kind]:.2f}x)"
    # Random weights: rounding changes the order of nearly equal proposals.
    return f"not timed: differs by {found[kind]:.2g}" if kind in found else "–"


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--models", nargs="+", choices=VARIANTS, default=[*VARIANTS])
    parser.add_argument("--quick", action="store_true", help="a short test with small models")
    options = parser.parse_args()
    size, settings = (800, 1066), {"backbone": "resnet50"}
    if options.quick:
        size = (96, 128)
        settings = {"backbone": "resnet18", "encoder_layers": 1, "decoder_layers": 1}
    shape = f"{size[0]} x {size[1]}, {settings['backbone']}"
    print(
        f"One image of {shape}, {torch.get_num_threads()} threads; (torch's time / the column's)\n"
    )
    print(f"| model | MB | largest difference | torch | {' | '.join(columns())} |")
    print("|---" * (4 + len(columns())) + "|")
    for name in options.models:
        print(measure(name, size, options.rounds, **settings))
        sys.stdout.flush()


if __name__ == "__main__":
    main()
