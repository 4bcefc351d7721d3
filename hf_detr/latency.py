"""`hf-detr bench`: how long models take on this machine."""

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

import torch
from tqdm.auto import tqdm

from .command_options import add_dtype, add_model_options, make_parser, positive, size_hw
from .compiled_attention import find_operators
from .image_processing_detr import DetrImageProcessor
from .model_loading import load_model
from .multi_scale_deformable_attention import choose_operators
from .prediction import PROGRESS_AFTER, predict
from .pretrained_model import DetectionPreTrainedModel

PHOTO_HW = (480, 640)
EPILOG = """Steps: "predict" goes from images in memory to objects in pixels; "forward" is the model
alone. Rounds of all models, batch sizes and steps alternate, so that whatever else the machine does
slows all of them; the first round isn't counted.

exit status: 0 if everything was measured; 1 if a model can't be used; 2 if the arguments are
wrong."""


@dataclass(frozen=True)
class Latency:
    """How long one step of a model takes for a batch."""

    model: str
    step: str  # "predict": images in memory to objects; "forward": the model alone
    batch_size: int
    median_ms: float
    p90_ms: float
    images_per_second: float  # at the median


def measure_latency(
    models: dict[str, tuple[DetectionPreTrainedModel, DetrImageProcessor]],
    batch_sizes: Sequence[int] = (1,),
    image_hw: tuple[int, int] = PHOTO_HW,
    rounds: int = 20,
) -> list[Latency]:
    """Measure models on images of noise, in rounds in which all take turns.

    Args:
        models: by name, each with its image processor.
        batch_sizes: each is measured.
        image_hw: height and width of the images, before the processor resizes them.
        rounds: that count; one more comes first and doesn't.

    Returns:
        For every model and batch size, both steps.
    """
    cases: dict[tuple[str, str, int], Callable[[], Any]] = {}
    generator = torch.Generator().manual_seed(0)
    for name, (model, processor) in models.items():
        for batch_size in batch_sizes:
            shape = (batch_size, 3, *image_hw)
            images = list(torch.randint(256, shape, dtype=torch.uint8, generator=generator))
            inputs = processor(images, input_data_format="channels_first", return_tensors="pt")
            inputs = inputs.to(model.device, model.dtype)
            whole = partial(
                predict, model, processor, images, batch_size=batch_size, progress=False
            )
            cases[name, "predict", batch_size] = whole
            cases[name, "forward", batch_size] = partial(_forward, model.eval(), inputs)
    seconds: dict[tuple[str, str, int], list[float]] = {key: [] for key in cases}
    bar = tqdm(range(rounds + 1), "rounds", unit="round", delay=PROGRESS_AFTER, disable=None)
    for number in bar:
        for key, function in cases.items():
            start = time.perf_counter()
            function()
            _wait_for_accelerator()
            if number > 0:
                seconds[key].append(time.perf_counter() - start)
    return [_summary(*key, times) for key, times in seconds.items()]


def describe_backend(model: DetectionPreTrainedModel) -> str:
    """On what a model runs: device, threads, precision, and which operators attend."""
    device = model.device
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else str(device)
    parts = [name, f"{torch.get_num_threads()} thread(s)", str(model.dtype).removeprefix("torch.")]
    parts.append(f"attention by {model.config._attn_implementation}")
    kernel = getattr(model.config, "kernel", None)
    if kernel is not None:
        namespace = choose_operators(kernel, device.type)
        why = find_operators(device.type)[1] if kernel == "auto" else f"kernel={kernel!r}"
        by = f"torch ({why})"
        parts.append(f"deformable attention by {'the compiled operator' if namespace else by}")
    return ", ".join(parts)


def peak_memory_mib() -> float | None:
    """Most memory that this process has taken, of a GPU if it used one; None if unknown."""
    if torch.cuda.is_available() and torch.cuda.max_memory_allocated():
        return torch.cuda.max_memory_allocated() / 2**20
    try:
        import resource  # not on Windows
    except ImportError:
        return None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (2**20 if sys.platform == "darwin" else 2**10)


@torch.no_grad()
def _forward(model: DetectionPreTrainedModel, inputs: dict[str, torch.Tensor]) -> None:
    model(**inputs)


def _wait_for_accelerator() -> None:
    if torch.accelerator.is_available():
        torch.accelerator.synchronize()


def _summary(model: str, step: str, batch_size: int, seconds: list[float]) -> Latency:
    median = statistics.median(seconds)
    ordered = sorted(seconds)
    p90 = ordered[-(len(ordered) // 10) - 1]  # nine of ten rounds take no longer
    return Latency(model, step, batch_size, 1e3 * median, 1e3 * p90, batch_size / median)


def main(arguments: list[str] | None = None, prog: str | None = None) -> int:
    """Measure the models that the command line names; return the exit status."""
    parsed = _parser(prog).parse_args(arguments)
    if parsed.threads:
        torch.set_num_threads(parsed.threads)
    try:
        models = {
            name: load_model(name, parsed.device, dtype=parsed.dtype) for name in parsed.model
        }
        latencies = measure_latency(models, parsed.batch_size, parsed.size, parsed.rounds)
    except (ValueError, OSError) as error:
        print(f"ERROR: {error}", file=sys.stderr)
        return 1
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


def _parser(prog: str | None) -> argparse.ArgumentParser:
    parser = make_parser(prog, "Measure how long models take on this machine.", EPILOG)
    add_model_options(parser, several=True)
    add_dtype(parser)
    parser.add_argument(
        "--batch-size", type=positive, nargs="+", default=[1], help="one or more, default 1"
    )
    parser.add_argument(
        "--size",
        type=size_hw,
        default=PHOTO_HW,
        metavar="HEIGHTxWIDTH",
        help="of the images, which the image processor resizes; default 480x640",
    )
    parser.add_argument("--rounds", type=positive, default=20, help="default 20")
    parser.add_argument("--threads", type=positive, help="of the CPU; default: torch's own")
    parser.add_argument(
        "--json", action="store_true", help="print the figures as JSON, and nothing else on stdout"
    )
    return parser
