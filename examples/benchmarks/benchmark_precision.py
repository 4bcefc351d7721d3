"""Compare the speed of models in float32 and bfloat16, optionally compiled.

    OMP_NUM_THREADS=1 python examples/benchmarks/benchmark_precision.py --compile  # ten minutes
    python examples/benchmarks/benchmark_precision.py --quick    # a short test

Weights are random. All models run alternately with one image, and times are printed only if
results equal those in float32 up to rounding. Models of two stages choose the same proposals for
that: rounding changes the order of those that random weights find nearly equal. Times are CPU
milliseconds of the model alone.
"""

import argparse
import copy
from collections.abc import Callable
from functools import partial

import torch
from benchmark_timing import SameProposals, medians
from torch import Tensor, nn

from hf_detr.models.variants import VARIANTS

TOLERANCES = {torch.float32: 1e-4, torch.bfloat16: 0.02}  # of boxes in [0, 1] and probabilities


def make_model(name: str, backbone: str) -> nn.Module:
    """Make a detector of a model type with random weights."""
    torch.manual_seed(0)
    config = VARIANTS[name].config(
        backbone=backbone, use_pretrained_backbone=False, auxiliary_loss=False
    )
    return VARIANTS[name].detector(config).eval()


def results(model: nn.Module, pixel_values: Tensor) -> tuple[Tensor, Tensor]:
    """Probabilities (1, Q, C) and boxes (1, Q, 4) in float32."""
    outputs = model(pixel_values.to(next(model.parameters()).dtype))
    return outputs.logits.float().sigmoid(), outputs.pred_boxes.float()


@torch.no_grad()
def measure(name: str, backbone: str, size: tuple[int, int], compiles: bool, rounds: int) -> str:
    """Measure one model and return a row of the table."""
    model = make_model(name, backbone)
    pixel_values = torch.randn(1, 3, *size, generator=torch.Generator().manual_seed(0))
    models = [model, copy.deepcopy(model).to(torch.bfloat16)]
    if compiles:
        models += [torch.compile(model) for model in models]
    runs: list[Callable[[], tuple[Tensor, Tensor]]] = []
    same_proposals = SameProposals()
    with same_proposals:
        expected = results(model, pixel_values)
    for one in models:
        runs.append(partial(results, one, pixel_values))
        tolerance = TOLERANCES[next(one.parameters()).dtype]
        with same_proposals:
            pairs = list(zip(runs[-1](), expected, strict=True))
        if not all(torch.allclose(*pair, rtol=0, atol=tolerance) for pair in pairs):
            return f"| {name} | not timed: results differ by more than {tolerance} |"
    seconds = medians(*runs, rounds=rounds)
    cells = [f"{1e3 * value:.0f} ({seconds[0] / value:.2f}x)" for value in seconds]
    return f"| {name} | {' | '.join(cells)} |"


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument(
        "--compile", action="store_true", help="also measure torch.compile, which takes minutes"
    )
    parser.add_argument("--quick", action="store_true", help="a short test with small models")
    options = parser.parse_args()
    size, backbone = ((96, 128), "resnet18") if options.quick else ((800, 1066), "resnet50")
    print(
        f"One image of {size[0]} x {size[1]}, {backbone}, {torch.get_num_threads()} thread(s), "
        f"{torch.backends.cpu.get_cpu_capability()}, torch {torch.__version__}\n"
    )
    columns = ["float32", "bfloat16"]
    if options.compile:
        columns += [f"{column} compiled" for column in columns]
    print(f"| model | {' | '.join(columns)} |\n|---{'|---' * len(columns)}|")
    for name in VARIANTS:
        row = measure(name, backbone, size, options.compile, options.rounds)
        print(row, flush=True)


if __name__ == "__main__":
    main()
