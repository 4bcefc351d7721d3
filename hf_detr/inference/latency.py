"""Measure how long models take on this machine."""

import statistics
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from tqdm.auto import tqdm

from ..image_processing.image_processor import DetectionImageProcessor
from ..models.pretrained_model import DetectionPreTrainedModel
from ..ops.compiled_attention import find_operators
from ..ops.multi_scale_deformable_attention import choose_operators
from .prediction import PROGRESS_AFTER, predict

PHOTO_HW = (480, 640)


@dataclass(frozen=True)
class Latency:
    """The time of one step of a model for a batch."""

    model: str
    step: str  # "predict": from images in memory to objects; "forward": the model only
    batch_size: int
    median_ms: float
    p90_ms: float
    images_per_second: float  # at the median


def measure_latency(
    models: dict[str, tuple[DetectionPreTrainedModel, DetectionImageProcessor]],
    batch_sizes: Sequence[int] = (1,),
    image_hw: tuple[int, int] = PHOTO_HW,
    rounds: int = 20,
) -> list[Latency]:
    """Measure models on random images, in rounds in which all take turns.

    Args:
        models: by name, each with its image processor.
        batch_sizes: all are measured.
        image_hw: height and width of the images, before the processor resizes them.
        rounds: number of rounds, after one for warm-up.

    Returns:
        Both steps for every model and batch size.
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
            if torch.accelerator.is_available():
                torch.accelerator.synchronize()
            if number > 0:
                seconds[key].append(time.perf_counter() - start)
    return [_summary(*key, times) for key, times in seconds.items()]


def describe_backend(model: DetectionPreTrainedModel) -> str:
    """Return device, threads, precision and the implementations of attention as text."""
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
    """Return the peak memory of this process, of the GPU if it used one; None if unknown."""
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


def _summary(model: str, step: str, batch_size: int, seconds: list[float]) -> Latency:
    median = statistics.median(seconds)
    ordered = sorted(seconds)
    p90 = ordered[-(len(ordered) // 10) - 1]  # 90 % of the rounds take at most this long
    return Latency(model, step, batch_size, 1e3 * median, 1e3 * p90, batch_size / median)
