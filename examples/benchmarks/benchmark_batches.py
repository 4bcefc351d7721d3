"""Compare batches that data workers send as floats and as bytes.

    OMP_NUM_THREADS=1 python examples/benchmarks/benchmark_batches.py
    python examples/benchmarks/benchmark_batches.py --quick    # a short test with small images

Both sides, `DetectionCollator` and `PackingCollator`, send 16 images of 800 x 1066 pixels with 7
objects each through a `DataLoader` with two workers. Samples are prepared before, so the time per
batch is that of collating and sending, and in the second part of making the model's channels-last
input on the CPU. Times are medians of loaders that run alternately. They are printed only if all
tensors of both sides are equal.
"""

import argparse
import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
from benchmark_timing import progress
from torch import Tensor
from torch.utils.data import DataLoader

from hf_detr import DetectionCollator, DetrImageProcessor, PackingCollator

BATCH_SIZE, NUM_OBJECTS, BATCHES = 16, 7, 8
Sample = tuple[Tensor, dict[str, Tensor]]


def make_samples(height: int, width: int) -> list[Sample]:
    """Make samples as a data set returns them after its transform."""
    generator = torch.Generator().manual_seed(0)
    samples = []
    for image_id in range(BATCH_SIZE):
        # In memory, the channels of a pixel are side by side, as in resized images.
        shape = (height, width, 3)
        pixels = torch.randint(256, shape, dtype=torch.uint8, generator=generator)
        corners = torch.rand(NUM_OBJECTS, 2, 2, generator=generator) * torch.tensor([width, height])
        boxes = torch.cat([corners.amin(1), corners.amax(1)], dim=-1)
        target = {
            "image_id": torch.tensor([image_id]),
            "class_labels": torch.arange(NUM_OBJECTS),
            "boxes": boxes,
            "area": (boxes[:, 2:] - boxes[:, :2]).prod(-1),
            "iscrowd": torch.zeros(NUM_OBJECTS, dtype=torch.int64),
            "orig_size": torch.tensor([height, width]),
        }
        samples.append((pixels.permute(2, 0, 1), target))
    return samples


def tensors_of(value: Any) -> list[Tensor]:
    """Return all tensors of a batch, in order."""
    if isinstance(value, Tensor):
        return [value]
    values = value.values() if isinstance(value, dict) else value
    return [tensor for part in values for tensor in tensors_of(part)]


def milliseconds(samples: list[Sample], collator: Any, use: Callable[[Any], Any]) -> float:
    """Return the time per batch of a loader, without its start."""
    repeated = samples * (BATCHES + 2)
    loader = iter(DataLoader(repeated, BATCH_SIZE, collate_fn=collator, num_workers=2))
    for _ in range(2):
        use(next(loader))
    start = time.perf_counter()
    for batch in loader:
        use(batch)
    return 1e3 * (time.perf_counter() - start) / BATCHES


def report(name: str, tensors: list[Tensor], time_ms: float, ratio: float) -> None:
    size = f"{len(tensors):5} tensors{sum(tensor.nbytes for tensor in tensors) / 2**20:8.1f} MiB"
    print(f"{name:24}{size}{time_ms:8.1f} ms{ratio:7.2f}x", flush=True)


def main() -> None:
    """Check that the batches are equal, and measure them."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--quick", action="store_true", help="small images, one round")
    parser.add_argument("--rounds", type=int, default=7)
    options = parser.parse_args()
    samples = make_samples(*((80, 106) if options.quick else (800, 1066)))
    processor = DetrImageProcessor()
    floats, packed = DetectionCollator(processor), PackingCollator(processor)
    batch, packed_batch = floats(samples), packed(samples)
    expected, got = tensors_of(batch), tensors_of(packed_batch.unpack(processor))
    pairs = zip(got, expected, strict=True)
    if not all(a.dtype == b.dtype and torch.equal(a, b) for a, b in pairs):
        raise SystemExit("The tensors of the batches differ.")
    sent = {"floats": expected, "bytes": [packed_batch.pixels, packed_batch.target_bytes]}

    def prepare(batch: dict[str, Any]) -> Tensor:
        return batch["pixel_values"].contiguous(memory_format=torch.channels_last)

    sides: dict[tuple[str, str], tuple[Any, Callable[[Any], Any]]] = {
        ("sent", "floats"): (floats, len),
        ("sent", "bytes"): (packed, len),
        ("sent, prepared", "floats"): (floats, prepare),
        ("sent, prepared", "bytes"): (packed, lambda batch: batch.unpack(processor)),
    }
    times: dict[tuple[str, str], list[float]] = {side: [] for side in sides}
    rounds = 1 if options.quick else options.rounds
    for index in range(rounds):
        for side, functions in sides.items():
            progress(f"  {', '.join(side)}, round {index + 1} of {rounds}")
            times[side].append(milliseconds(samples, *functions))
    progress("")
    medians = {side: statistics.median(values) for side, values in times.items()}
    for (part, kind), median in medians.items():
        report(f"{part}: {kind}", sent[kind], median, medians[part, "floats"] / median)


if __name__ == "__main__":
    main()
