"""Compare the speed of implementations of multi-scale deformable attention on the CPU.

    python examples/benchmarks/benchmark_operator.py            # about fifteen minutes
    python examples/benchmarks/benchmark_operator.py --quick    # a short test with small levels

The levels are those of an 800 x 1066 image, and samples are near the reference points as in
initialized and trained encoders. Compared are the compiled and the torch operator of hf_detr,
transformers, and the PyPI package torch-ms-deform-attn if it is installed. They run alternately, so
that load on the machine affects all. Medians are printed in milliseconds, of CPU time with one
thread and wall time with more, and only if outputs and gradients are equal. With a C++ compiler,
the processor's limits are measured in the same run.
"""

import argparse
import itertools
import math
import multiprocessing
import os
import shutil
import statistics
import subprocess
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

os.environ.setdefault("HF_DETR_REGISTER", "0")  # don't replace transformers' classes

import torch
import transformers
from benchmark_timing import peak_memory
from torch import Tensor
from transformers.models.deformable_detr.modeling_deformable_detr import (
    MultiScaleDeformableAttention as TheirOperator,
)

from hf_detr.ops.multi_scale_deformable_attention import (
    attend_around_references,
    locate,
    multi_scale_deformable_attention,
    normalize,
)

Shapes = list[tuple[int, int]]
Operator = Callable[[Tensor, Tensor, Tensor], Tensor]

SHAPES = [(100, 134), (50, 67), (25, 34), (13, 17)]
QUICK_SHAPES = [(25, 34), (13, 17), (7, 9), (4, 5)]
NUM_HEADS, HEAD_WIDTH, NUM_POINTS, NUM_DECODER_QUERIES = 8, 32, 4, 300
LEAST_SECONDS = 0.03  # per round; single calls of the decoder would start with other caches
LIMITS = Path(__file__).parents[2] / "kernels" / "benchmarks" / "limits.cpp"


def reference_points(shapes: Shapes) -> Tensor:
    """Centers (S, 2) as (x, y) in [0, 1] of the pixels of all levels."""
    levels = []
    for height, width in shapes:
        y, x = torch.meshgrid(
            (torch.arange(height) + 0.5) / height,
            (torch.arange(width) + 0.5) / width,
            indexing="ij",
        )
        levels.append(torch.stack([x, y], dim=-1).flatten(0, 1))
    return torch.cat(levels)


def make_inputs(shapes: Shapes, batch_size: int, num_queries: int | None) -> list[Tensor]:
    """Make value, locations and weights with a query per pixel or `num_queries` random ones."""
    torch.manual_seed(0)
    references = reference_points(shapes)
    value = torch.randn(batch_size, len(references), NUM_HEADS, HEAD_WIDTH)
    if num_queries is not None:
        references = torch.rand(num_queries, 2)
    angles = torch.arange(NUM_HEADS) * (2 * math.pi / NUM_HEADS)
    ring = torch.stack([angles.cos(), angles.sin()], dim=-1)
    ring = ring / ring.abs().amax(dim=-1, keepdim=True)
    pixels = ring[:, None, None] * torch.arange(1, NUM_POINTS + 1)[:, None]  # (M, 1, K, 2)
    # Noise keeps samples off exact pixels, where location gradients are discontinuous.
    noise = 0.3 * torch.randn(batch_size, len(references), NUM_HEADS, len(shapes), NUM_POINTS, 2)
    sizes = torch.tensor([(width, height) for height, width in shapes])
    locations = references[:, None, None, None] + (pixels + noise) / sizes[:, None]
    weights = torch.randn(locations.shape[:-1]).flatten(3).softmax(-1)
    weights = weights.view(locations.shape[:-1])
    return [value.requires_grad_(), locations.requires_grad_(), weights.requires_grad_()]


def make_operators(shapes: Shapes) -> dict[str, Operator]:
    """Implementations as functions of value, locations and weights."""
    starts = [0, *itertools.accumulate(height * width for height, width in shapes)][:-1]
    sizes, level_starts = torch.tensor(shapes), torch.tensor(starts)
    theirs = TheirOperator()

    def ours(kernel: str) -> Operator:
        def operator(value: Tensor, locations: Tensor, weights: Tensor) -> Tensor:
            return multi_scale_deformable_attention(
                value, shapes, starts, locations, weights, kernel
            )

        return operator

    operators = {
        "compiled": ours("required"),
        "torch": ours("torch"),
        "transformers": lambda value, locations, weights: theirs(
            value, sizes, shapes, level_starts, locations, weights, 64
        ),
    }
    try:
        from torch_ms_deform_attn import ms_deform_attn
    except ImportError as error:
        print(f"torch-ms-deform-attn is not available: {error}")
    else:
        operators["ms-deform-attn"] = lambda value, locations, weights: ms_deform_attn(
            value, sizes, level_starts, locations, weights
        )
    return operators


def forward(operator: Operator, inputs: list[Tensor]) -> Tensor:
    with torch.no_grad():
        return operator(*inputs)


def forward_backward(operator: Operator, inputs: list[Tensor]) -> list[Tensor]:
    output = operator(*inputs)
    return [output, *torch.autograd.grad(output, inputs, torch.ones_like(output))]


def check_equal(operators: dict[str, Operator], inputs: list[Tensor]) -> None:
    """Compare outputs and gradients with transformers'.

    One in ten thousand location gradients may differ, because they are discontinuous at pixels.
    """
    theirs = forward_backward(operators["transformers"], inputs)
    for side, operator in operators.items():
        ours = forward_backward(operator, inputs)
        for name, got, expected in zip(
            ("output", "value", "locations", "weights"), ours, theirs, strict=True
        ):
            error = (got - expected).abs() / expected.abs().max()
            allowed = 1e-4 if name == "locations" else 0
            if (error > 2e-5).float().mean() > allowed:
                raise SystemExit(f"{side} differs in {name} by {error.max():.1e} of its maximum")


def medians(functions: list[Callable[[], object]], rounds: int, threads: int) -> list[float]:
    """Median seconds of each function; short functions are called several times per round."""
    clock = time.process_time if threads == 1 else time.perf_counter
    calls = [1] * len(functions)
    times: list[list[float]] = [[] for _ in functions]
    for index in range(rounds + 1):
        for number, function in enumerate(functions):
            start = clock()
            for _ in range(calls[number]):
                function()
            seconds = (clock() - start) / calls[number]
            if index == 0:  # the warm-up
                calls[number] = math.ceil(LEAST_SECONDS / seconds)
            else:
                times[number].append(seconds)
    return [statistics.median(seconds) for seconds in times]


def benchmark(shapes: Shapes, num_queries: int | None, rounds: int, batch_size: int) -> list[float]:
    """Print rows for the forward pass and with backward; return seconds of hf_detr."""
    inputs = make_inputs(shapes, batch_size, num_queries)
    operators = make_operators(shapes)
    check_equal(operators, inputs)
    threads, ours = torch.get_num_threads(), []
    name = "encoder" if num_queries is None else "decoder"
    for label, run in [("forward", forward), ("forward + backward", forward_backward)]:
        functions = [
            lambda operator=operator, run=run: run(operator, inputs)
            for operator in operators.values()
        ]
        seconds = medians(functions, rounds, threads)
        row = f"{name} {label}, batch {batch_size}, {threads} thread(s)"
        cells = [f"{seconds[0] * 1e3:10.2f}"]
        cells += [f"{s * 1e3:10.1f} {s / seconds[0]:6.1f}x" for s in seconds[1:]]
        print(f"{row:50}{''.join(cells)}", flush=True)
        ours.append(seconds[0])
    return ours


# ---------------------------------------------------------------- memory and limits


def training_step(side: str, shapes: Shapes, num_queries: int | None) -> Callable[[], object]:
    """Forward and backward pass of the encoder's attention from offsets and logits."""
    value, locations, weights = (tensor.detach() for tensor in make_inputs(shapes, 1, num_queries))
    operator = make_operators(shapes)[side]
    starts = [0, *itertools.accumulate(height * width for height, width in shapes)][:-1]
    references = torch.full((1, locations.shape[1], len(shapes), 2), 0.5)
    locations -= 0.5
    locations *= torch.tensor([(width, height) for height, width in shapes])[:, None]
    inputs = [tensor.requires_grad_() for tensor in (value, locations, weights.log_())]

    def run() -> object:
        value, offsets, logits = inputs
        if side in ("compiled", "torch"):
            kernel = "required" if side == "compiled" else "torch"
            output = attend_around_references(
                value, shapes, starts, references, offsets, logits, kernel
            )
        else:
            output = operator(value, locate(references, offsets, shapes), normalize(logits))
        return torch.autograd.grad(output, inputs, torch.ones(()).expand_as(output))

    return run


def memory_of(side: str, shapes: Shapes) -> float:
    """MiB of the encoder's training step without its inputs; runs in a new process."""
    step = training_step(side, shapes, None)
    training_step(side, [(2, 2)] * len(shapes), 4)()  # loads what the first call needs
    return peak_memory(step)[1]


def print_memory(shapes: Shapes, sides: list[str]) -> None:
    context = multiprocessing.get_context("spawn")
    cells = []
    for side in sides:
        with context.Pool(1) as pool:
            cells.append(f"{side} {pool.apply(memory_of, (side, shapes)):.0f} MiB")
    print(f"peak memory of an encoder layer's attention, forward + backward: {', '.join(cells)}")


def print_limits(shapes: Shapes, seconds: float) -> None:
    """Print the encoder's forward pass as fractions of the processor's limits."""
    compiler = shutil.which("c++")
    if compiler is None or not LIMITS.is_file():
        print("The limits aren't measured, which needs a C++ compiler and the repository.")
        return
    with tempfile.TemporaryDirectory() as folder:
        program = str(Path(folder) / "limits")
        flags = ["-std=c++17", "-O3", "-march=native"]
        subprocess.run([compiler, *flags, str(LIMITS), "-o", program], check=True)
        output = subprocess.run([program], check=True, capture_output=True, text=True).stdout
    multiply_adds, cache, table = map(float, output.split())
    queries = sum(height * width for height, width in shapes)
    count = queries * NUM_HEADS * len(shapes) * NUM_POINTS * 4 * HEAD_WIDTH
    shares = (count / multiply_adds, 4 * count / cache, 4 * count / table)
    text = ", ".join(f"{share / 1e9 / seconds:.0%}" for share in shares)
    print(
        f"encoder forward, 1 thread: {text} of the limits of multiply-adds "
        f"({multiply_adds:.0f} G/s), of random rows from 512 KiB ({cache:.0f} GB/s) and from one "
        f"head's {table:.0f} GB/s"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="two rounds, small levels")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--batch-sizes", type=int, nargs="+", default=[1, 2])
    arguments = parser.parse_args()
    if min(arguments.rounds, *arguments.threads, *arguments.batch_sizes) < 1:
        parser.error("--rounds, --threads and --batch-sizes must be at least 1")
    shapes = QUICK_SHAPES if arguments.quick else SHAPES
    rounds = 2 if arguments.quick else arguments.rounds

    print(
        f"torch {torch.__version__}, transformers {transformers.__version__}, "
        f"medians of {rounds} interleaved rounds, ms; x: times our compiled operator"
    )
    sides = list(make_operators(shapes))
    print(f"{'':50}{sides[0]:>10}{''.join(f'{side:>18}' for side in sides[1:])}")
    encoder_seconds = None
    for threads, batch_size in itertools.product(arguments.threads, arguments.batch_sizes):
        torch.set_num_threads(threads)
        for num_queries in (None, NUM_DECODER_QUERIES):
            seconds = benchmark(shapes, num_queries, rounds, batch_size)
            if (threads, batch_size, num_queries) == (1, 1, None):
                encoder_seconds = seconds[0]
    if encoder_seconds is not None:
        print_limits(shapes, encoder_seconds)
    print_memory(shapes, sides)


if __name__ == "__main__":
    main()
