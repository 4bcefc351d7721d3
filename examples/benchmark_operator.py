"""Compare the speed of multi-scale deformable attention here and in transformers, in one run.

    python examples/benchmark_operator.py                # about three minutes on one core
    python examples/benchmark_operator.py --threads 2
    python examples/benchmark_operator.py --quick        # small levels: does it run?

The levels are those of an 800 x 1066 image, sampled near the reference points, as initialised and
trained encoders do. Rounds of both sides alternate, so that whatever else the machine does slows
both; medians are printed, in milliseconds of process CPU time. No time is printed unless both
sides give the same result, gradients included. With two threads and another busy process, threads
that spin while they wait are most of what is measured: set OMP_WAIT_POLICY=passive there.
"""

import argparse
import itertools
import math
import os
import statistics
import time
from collections.abc import Callable

os.environ.setdefault("HF_DETR_REGISTER", "0")  # transformers' side stays transformers' own

import torch
import transformers
from torch import Tensor
from transformers.models.deformable_detr.modeling_deformable_detr import (
    MultiScaleDeformableAttention as TheirOperator,
)

from hf_detr import multi_scale_deformable_attention

Shapes = list[tuple[int, int]]
Operator = Callable[[Tensor, Tensor, Tensor], Tensor]

SHAPES = [(100, 134), (50, 67), (25, 34), (13, 17)]
QUICK_SHAPES = [(25, 34), (13, 17), (7, 9), (4, 5)]
NUM_HEADS, HEAD_WIDTH, NUM_POINTS, NUM_DECODER_QUERIES = 8, 32, 4, 300


def reference_points(shapes: Shapes) -> Tensor:
    """Centres (S, 2) as (x, y) in [0, 1] of all pixels of all levels."""
    levels = []
    for height, width in shapes:
        y, x = torch.meshgrid(
            (torch.arange(height) + 0.5) / height,
            (torch.arange(width) + 0.5) / width,
            indexing="ij",
        )
        levels.append(torch.stack([x, y], dim=-1).flatten(0, 1))
    return torch.cat(levels)


def make_inputs(shapes: Shapes, num_queries: int | None) -> list[Tensor]:
    """Value, locations and weights; a query per pixel, or `num_queries` of random places."""
    torch.manual_seed(0)
    references = reference_points(shapes)
    value = torch.randn(1, len(references), NUM_HEADS, HEAD_WIDTH)
    if num_queries is not None:
        references = torch.rand(num_queries, 2)
    angles = torch.arange(NUM_HEADS) * (2 * math.pi / NUM_HEADS)
    ring = torch.stack([angles.cos(), angles.sin()], dim=-1)
    ring = ring / ring.abs().amax(dim=-1, keepdim=True)
    pixels = ring[:, None, None] * torch.arange(1, NUM_POINTS + 1)[:, None]  # (M, 1, K, 2)
    # A little noise keeps samples off the exact pixels, where location gradients jump.
    noise = 0.3 * torch.randn(len(references), NUM_HEADS, len(shapes), NUM_POINTS, 2)
    sizes = torch.tensor([(width, height) for height, width in shapes])
    locations = references[:, None, None, None] + (pixels + noise) / sizes[:, None]
    weights = torch.randn(locations.shape[:-1]).flatten(2).softmax(-1)
    weights = weights.view(locations.shape[:-1])
    return [
        value.requires_grad_(),
        locations[None].requires_grad_(),
        weights[None].requires_grad_(),
    ]


def make_operators(shapes: Shapes) -> tuple[Operator, Operator]:
    """Ours and theirs, as functions of value, locations and weights."""
    starts = [0, *itertools.accumulate(height * width for height, width in shapes)][:-1]
    theirs = TheirOperator()

    def our_operator(value: Tensor, locations: Tensor, weights: Tensor) -> Tensor:
        return multi_scale_deformable_attention(value, shapes, starts, locations, weights)

    def their_operator(value: Tensor, locations: Tensor, weights: Tensor) -> Tensor:
        sizes, level_starts = torch.tensor(shapes), torch.tensor(starts)
        return theirs(value, sizes, shapes, level_starts, locations, weights, 64)

    return our_operator, their_operator


def forward(operator: Operator, inputs: list[Tensor]) -> Tensor:
    with torch.no_grad():
        return operator(*inputs)


def forward_backward(operator: Operator, inputs: list[Tensor]) -> list[Tensor]:
    output = operator(*inputs)
    return [output, *torch.autograd.grad(output, inputs, torch.ones_like(output))]


def check_equal(operators: tuple[Operator, Operator], inputs: list[Tensor]) -> None:
    """Compare output and gradients.

    A location on a pixel within rounding may fall to either side of it, where its gradient jumps:
    one in ten thousand location gradients may differ.
    """
    ours, theirs = (forward_backward(operator, inputs) for operator in operators)
    for name, got, expected in zip(
        ("output", "value", "locations", "weights"), ours, theirs, strict=True
    ):
        error = (got - expected).abs() / expected.abs().max()
        allowed = 1e-4 if name == "locations" else 0
        if (error > 2e-5).float().mean() > allowed:
            raise SystemExit(f"the sides differ in {name} by {error.max():.1e} of its maximum")


def medians(functions: list[Callable[[], object]], rounds: int) -> list[float]:
    """Median CPU seconds of each, run in turn after one warm-up of each."""
    times: list[list[float]] = [[] for _ in functions]
    for index in range(rounds + 1):
        for function, seconds in zip(functions, times, strict=True):
            start = time.process_time()
            function()
            if index > 0:
                seconds.append(time.process_time() - start)
    return [statistics.median(seconds) for seconds in times]


def benchmark(name: str, shapes: Shapes, num_queries: int | None, rounds: int) -> None:
    inputs = make_inputs(shapes, num_queries)
    operators = make_operators(shapes)
    check_equal(operators, inputs)
    for label, run in [("forward", forward), ("forward + backward", forward_backward)]:
        functions = [
            lambda operator=operator, run=run: run(operator, inputs) for operator in operators
        ]
        ours, theirs = medians(functions, rounds)
        row = f"{name} {label}, {inputs[1].shape[1]} queries"
        print(f"{row:42}{ours * 1e3:12.1f}{theirs * 1e3:14.1f}{theirs / ours:9.2f}x", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="two rounds, small levels")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    if arguments.rounds < 1 or arguments.threads < 1:
        parser.error("--rounds and --threads must be at least 1")
    torch.set_num_threads(arguments.threads)
    shapes = QUICK_SHAPES if arguments.quick else SHAPES
    rounds = 2 if arguments.quick else arguments.rounds

    print(
        f"torch {torch.__version__}, transformers {transformers.__version__}, "
        f"{arguments.threads} thread(s), medians of {rounds} interleaved rounds, CPU ms"
    )
    print(f"{'':42}{'hf_detr':>12}{'transformers':>14}{'ratio':>10}")
    benchmark("encoder", shapes, None, rounds)
    benchmark("decoder", shapes, NUM_DECODER_QUERIES, rounds)


if __name__ == "__main__":
    main()
