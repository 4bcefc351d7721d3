"""Export all models to ONNX and compare the speed of onnxruntime with eager torch.

    OMP_NUM_THREADS=1 python examples/benchmarks/benchmark_export.py --rounds 5

Weights are random. The exported file is first checked against the model with several sizes and
padded batches. Then both run alternately with one image; times are CPU milliseconds.
"""

import argparse
import sys
import tempfile
from pathlib import Path
from typing import Any

import onnxruntime
import torch
from benchmark_timing import medians

from hf_detr.inference.export import example_batch, export_model
from hf_detr.models.variants import VARIANTS


def session_of(path: Path) -> onnxruntime.InferenceSession:
    """Load a file in onnxruntime with torch's number of threads."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    return onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])


@torch.no_grad()
def measure(name: str, size: tuple[int, int], rounds: int, **settings: Any) -> str:
    """Measure one model and return a row of the table."""
    variant = VARIANTS[name]
    torch.manual_seed(0)
    model = variant.detector(variant.config(use_pretrained_backbone=False, **settings)).eval()
    batch = example_batch(1, *size)
    inputs = {"pixel_values": batch[0].numpy(), "pixel_mask": batch[1].numpy()}
    with tempfile.TemporaryDirectory() as folder:
        report = export_model(model, Path(folder) / "model.onnx")
        session = session_of(Path(report.path))
        ours, theirs = medians(
            lambda: model(*batch), lambda: session.run(None, inputs), rounds=rounds
        )
    cells = (
        *(name, f"{report.num_bytes / 1e6:.0f}", f"{report.largest_difference:.0e}"),
        *(f"{1000 * ours:.0f}", f"{1000 * theirs:.0f}", f"{ours / theirs:.2f}x"),
    )
    return f"| {' | '.join(cells)} |"


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--quick", action="store_true", help="a short test with small models")
    options = parser.parse_args()
    size, settings = (800, 1066), {"backbone": "resnet50"}
    if options.quick:
        size = (96, 128)
        settings = {"backbone": "resnet18", "encoder_layers": 1, "decoder_layers": 1}
    shape = f"{size[0]} x {size[1]}, {settings['backbone']}"
    print(f"One image of {shape}, {torch.get_num_threads()} threads\n")
    print("| model | MB | largest difference | torch ms | onnxruntime ms | torch / onnxruntime |")
    print("|---|---|---|---|---|---|")
    for name in VARIANTS:
        print(measure(name, size, options.rounds, **settings))
        sys.stdout.flush()


if __name__ == "__main__":
    main()
