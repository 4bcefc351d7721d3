"""Measure how long models take on this machine.

Steps: "predict" is from images in memory to objects in pixels; "forward" is only the model. Models,
batch sizes and steps take turns in every round, so other load on the machine slows all of them; the
first round isn't counted.
"""

import argparse
import json
from dataclasses import asdict

from .options import add_json_option, add_model_options, positive, size_hw


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the command's options."""
    add_model_options(parser, several=True)
    parser.add_argument(
        "--batch-size", type=positive, nargs="+", default=[1], help="one or more, default 1"
    )
    parser.add_argument(
        "--size",
        type=size_hw,
        default=(480, 640),
        metavar="HEIGHTxWIDTH",
        help="of the images, which the image processor resizes; default 480x640",
    )
    parser.add_argument("--rounds", type=positive, default=20, help="default 20")
    parser.add_argument("--threads", type=positive, help="of the CPU; default: torch's own")
    add_json_option(parser)


def run(parsed: argparse.Namespace) -> int:
    """Measure the models and print the times; return the exit status."""
    import torch

    from ..inference.latency import describe_backend, measure_latency, peak_memory_mib
    from ..inference.model_loading import load_model

    if parsed.threads:
        torch.set_num_threads(parsed.threads)
    loaded = [load_model(name, parsed.device, dtype=parsed.dtype) for name in parsed.model]
    models = {model.name_or_path: (model, processor) for model, processor in loaded}
    latencies = measure_latency(models, parsed.batch_size, parsed.size, parsed.rounds)
    backends = {name: describe_backend(model) for name, (model, _) in models.items()}
    memory = peak_memory_mib()
    if parsed.json:
        rows = [asdict(latency) for latency in latencies]
        report = {"rounds": parsed.rounds, "image_hw": parsed.size, "backends": backends}
        print(json.dumps({**report, "peak_memory_mib": memory, "latencies": rows}))
        return 0
    for name, backend in backends.items():
        print(f"{name}: {backend}")
    height, width = parsed.size
    print(f"Images of {height} x {width}, {parsed.rounds} interleaved rounds\n")
    print(f"{'step':10}{'batch':>6}{'median ms':>12}{'p90 ms':>10}{'images/s':>10}  model")
    for one in latencies:
        times = f"{one.median_ms:12.1f}{one.p90_ms:10.1f}{one.images_per_second:10.1f}"
        print(f"{one.step:10}{one.batch_size:6}{times}  {one.model}")
    if memory is not None:
        print(f"\nPeak memory of the process: {memory:.0f} MiB")
    return 0
