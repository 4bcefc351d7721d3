"""Compare whole models of hf_detr and transformers on a GPU: time, memory and gradients.

    python examples/benchmarks/gpu.py                        # nine minutes on one H200
    python examples/benchmarks/gpu.py --parts training --modes eager --models detr
    python examples/benchmarks/gpu.py --device cpu --quick   # checks the script itself

Both packages load the same random weights (ResNet-50) and take the same images of 800 x 1066. A
training step is forward pass, loss, backward pass, clipping and AdamW, with auxiliary losses and
without dropout; its learning rate is 0, so that weights stay equal. bf16 is autocast, and fp32 has
torch's default, TF32 in convolutions only. Both run alternately; times are of a synchronised
clock, and memory is the peak beside weights and AdamW's state. Nothing is printed of results that
differ from ours in eager fp32: probabilities and boxes, or the loss and the norm of all gradients.

Rows that no longer fit into --minutes are named. `kernels/benchmarks/check_and_measure.py`
measures the operator alone.
"""

import argparse
import copy
import functools
import gc
import math
import sys
import time
from collections.abc import Callable, Iterator
from functools import partial
from itertools import product
from typing import NamedTuple

import torch
from benchmark import make_models
from benchmark_timing import medians, parse_arguments, peak_memory
from torch import Tensor, nn

from hf_detr.models.variants import VARIANTS
from hf_detr.ops.compiled_attention import find_operators

MODELS = ["detr", "conditional_detr", "deformable_detr"]
PARTS = ["inference", "training", "gradients"]
MODES = ["eager", "compiled"]
TOLERANCES = {"fp32": 5e-3, "bf16": 5e-2}  # relative, and absolute of values in [0, 1]
NUM_OBJECTS = 7
LIMITS = {"eager": 10.0, "compiled": 60.0}  # seconds that a row is expected to take at first

Inputs = dict[str, Tensor | list[dict[str, Tensor]]]


class Row(NamedTuple):
    """What one row of the table measures."""

    model: str
    part: str
    precision: str
    mode: str
    batch: int

    def __str__(self) -> str:
        return " | ".join(map(str, self))


# ---------------------------------------------------------------- runs


def make_inputs(batch: int, size: tuple[int, int], device: str) -> Inputs:
    generator = torch.Generator().manual_seed(0)
    labels = [
        {
            "class_labels": torch.randint(91, (NUM_OBJECTS,), generator=generator).to(device),
            "boxes": (torch.rand(NUM_OBJECTS, 4, generator=generator) * 0.4 + 0.3).to(device),
        }
        for _ in range(batch)
    ]
    images = torch.randn(batch, 3, *size, generator=generator)
    return {"pixel_values": images.to(device), "labels": labels}


@functools.cache
def models_of(name: str, backbone: str, device: str) -> list[nn.Module]:
    """Ours and transformers', with equal weights, losses and trained parameters."""
    options = dict.fromkeys(("dropout", "attention_dropout", "activation_dropout"), 0.0)
    if name != "detr":
        options["cls_loss_coefficient"] = 1  # transformers' own, whatever the configuration says
    models = make_models(VARIANTS[name], backbone, **options)
    frozen = {
        key.rpartition("model.")[2]
        for key, weight in models[0].named_parameters()
        if not weight.requires_grad
    }
    for key, weight in models[1].named_parameters():  # transformers trains the stem of some
        if "backbone" in key and key.rpartition("model.")[2] in frozen:
            weight.requires_grad_(False)
    return [model.to(device) for model in models]


@torch.no_grad()
def infer(model: nn.Module, inputs: Inputs, context: Callable) -> list[Tensor]:
    """Probabilities (B, Q, C) and boxes (B, Q, 4)."""
    with context():
        outputs = model(pixel_values=inputs["pixel_values"])
    return [outputs.logits.float().sigmoid(), outputs.pred_boxes.float()]


def train(
    model: nn.Module, inputs: Inputs, context: Callable, optimizer: torch.optim.Optimizer
) -> list[Tensor]:
    """Take a step; returns the loss and the norm of all gradients."""
    with context():
        loss = model(**inputs).loss
    loss.backward()
    norm = nn.utils.clip_grad_norm_(model.parameters(), 0.1)
    optimizer.step()
    optimizer.zero_grad()
    return [loss.detach(), norm]


def make_run(model: nn.Module, inputs: Inputs, row: Row, device: str) -> Callable:
    """The function that is checked and timed."""
    model.train(row.part == "training")
    model.config.auxiliary_loss = model.training  # transformers' predictions are wrong with it
    called = torch.compile(model, dynamic=False) if row.mode == "compiled" else model
    context = partial(torch.autocast, device, torch.bfloat16, enabled=row.precision == "bf16")
    arguments = (called, inputs, context)
    if row.part == "inference":
        return partial(infer, *arguments)
    return partial(train, *arguments, torch.optim.AdamW(model.parameters(), lr=0.0))


# ---------------------------------------------------------------- measurements


def clock(device: str) -> float:
    """Seconds, when all work on the device is finished."""
    if device == "cpu":
        return time.process_time()
    torch.cuda.synchronize()
    return time.perf_counter()


def peak_mib(function: Callable[[], object], device: str) -> float:
    """MiB by which memory increased at most."""
    if device == "cpu":
        return peak_memory(function)[1]
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    function()
    torch.cuda.synchronize()
    return (torch.cuda.max_memory_allocated() - before) / 2**20


def find_problem(run: Callable[[], list[Tensor]], expected: list[Tensor], row: Row) -> str | None:
    """Why a side isn't timed, if it isn't."""
    tolerance = TOLERANCES[row.precision]
    try:
        got = run()
    except Exception as error:  # whatever the other package, the compiler or a full memory raises
        return f"{type(error).__name__}: {' '.join(str(error).split())[:120]}"
    for one, other in zip(got, expected, strict=True):
        if not torch.allclose(one, other, rtol=tolerance, atol=tolerance):
            error = float(((one - other).abs() / other.abs().clamp(min=1)).max())
            return f"results differ by {error:.1e}, more than {tolerance}"
    return None


def measure(
    models: list[nn.Module], row: Row, size: tuple[int, int], device: str, rounds: int
) -> str:
    """Measure both packages; returns a row of the table."""
    inputs = make_inputs(row.batch, size, device)
    expected = make_run(models[0], inputs, row._replace(mode="eager", precision="fp32"), device)()
    runs = [make_run(model, inputs, row, device) for model in models]
    for side, run in zip(("hf_detr", "transformers"), runs, strict=True):
        problem = find_problem(run, expected, row)
        if problem is not None:
            return f"| {row} | not timed: {side}: {problem} |"
    peaks = [f"{peak_mib(run, device):.0f}" for run in runs]
    ours, theirs = medians(*runs, rounds=rounds, clock=partial(clock, device))
    times = [f"{1e3 * ours:.1f}", f"{1e3 * theirs:.1f}", f"{theirs / ours:.2f}x"]
    return f"| {row} | {' | '.join([*times, *peaks])} |"


# ---------------------------------------------------------------- gradients


def find_gradients(
    model: nn.Module, inputs: Inputs, device: str, dtype: torch.dtype, *flags: bool
) -> dict[str, Tensor]:
    """The norm of each parameter's gradient; flags allow TF32, and ask for determinism."""
    model = copy.deepcopy(model).to(device, dtype)
    labels = [
        {"class_labels": one["class_labels"].to(device), "boxes": one["boxes"].to(device, dtype)}
        for one in inputs["labels"]
    ]
    has_tf32, is_deterministic = flags or (False, False)
    with torch.backends.cudnn.flags(True, deterministic=is_deterministic, allow_tf32=has_tf32):
        model(inputs["pixel_values"].to(device, dtype), labels=labels).loss.backward()
    grads = {name: weight.grad for name, weight in model.named_parameters()}
    return {name: float(grad.double().norm()) for name, grad in grads.items() if grad is not None}


def report_gradients(size: tuple[int, int], backbone: str, device: str) -> None:
    """Compare norms of DETR's gradients with those in float64 on CPU.

    Softmax doesn't change if all scores of a query get the same addend, so the exact gradients of
    keys' biases are 0; what is computed is rounding, whose norm may be any multiple of another
    run's. They have columns of their own.
    """
    model, inputs = models_of("detr", backbone, "cpu")[0], make_inputs(1, size, "cpu")
    exact = find_gradients(model, inputs, "cpu", torch.float64)
    first = find_gradients(model, inputs, "cpu", torch.float32)
    total = math.hypot(*exact.values())
    keys = [name for name in exact if name.endswith("k_proj.bias")]
    others = [name for name in exact if name not in keys]
    print("\nGradients of DETR; keys' biases relative to the norm of all, and to CPU float32")
    print("| | largest difference of a norm | of | keys' biases | change |")
    print("|---|---|---|---|---|")
    find = partial(find_gradients, model, inputs, device)
    for title, norms in (
        ("cpu float32", first),
        (f"{device} float64", find(torch.float64)),
        (f"{device} float32", find(torch.float32)),
        (f"{device} float32, deterministic", find(torch.float32, False, True)),
        (f"{device} float32, TF32", find(torch.float32, True, False)),
    ):
        errors = {
            name: abs(norms[name] - exact[name]) / max(exact[name], 1e-12 * total)
            for name in others
        }
        worst = max(others, key=errors.__getitem__)
        noise = max(norms[name] for name in keys) / total
        change = max(abs(norms[name] / first[name] - 1) for name in keys if first[name] > 0)
        print(f"| {title} | {errors[worst]:.1e} | {worst} | {noise:.1e} | {change:.0%} |")


# ---------------------------------------------------------------- command line


def rows_of(arguments: argparse.Namespace, batches: list[int]) -> Iterator[Row]:
    """What takes little time comes first."""
    parts = [part for part in PARTS[:2] if part in arguments.parts]
    for mode, part, model in product(arguments.modes, parts, arguments.models):
        for batch, precision in product(batches, TOLERANCES):
            yield Row(model, part, precision, mode, batch)


def main() -> None:
    """Print both tables."""
    start = time.monotonic()
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=PARTS)
    parser.add_argument("--models", nargs="+", choices=MODELS, default=MODELS)
    parser.add_argument("--modes", nargs="+", choices=MODES, default=MODES)
    parser.add_argument("--minutes", type=float, default=9.0, help="rows that don't fit are named")
    parser.add_argument("--device", choices=["cuda", "cpu"], default="cuda")
    arguments = parse_arguments(parser, "ms")
    device, quick = arguments.device, arguments.quick
    if device == "cuda" and not torch.cuda.is_available():
        sys.exit("torch sees no CUDA device; --device cpu --quick checks the script without one.")
    if device == "cuda":
        print(f"{torch.cuda.get_device_name()}, CUDA {torch.version.cuda}")
    namespace, reason = find_operators(device)
    print(f"compiled operator: {'in use' if namespace else reason}")
    size, backbone = ((96, 128), "resnet18") if quick else ((800, 1066), "resnet50")
    batches = [2] if quick else [1, 8]
    if "gradients" in arguments.parts:
        report_gradients(tuple(edge // 2 for edge in size), backbone, device)
    columns = [*Row._fields, "hf_detr ms", "transformers ms", "ratio"]
    columns += ["hf_detr MiB", "transformers MiB"]
    print(f"\n| {' | '.join(columns)} |\n|{'---|' * len(columns)}")
    expected = dict(LIMITS)
    for row in rows_of(arguments, batches):
        began = time.monotonic()
        if began - start + expected[row.mode] > 60 * arguments.minutes:
            print(f"| {row} | not measured: --minutes is over |", flush=True)
            continue
        models = models_of(row.model, backbone, device)
        print(measure(models, row, size, device, arguments.rounds), flush=True)
        torch.compiler.reset()  # rows don't depend on earlier ones
        gc.collect()
        torch.cuda.empty_cache()
        expected[row.mode] = max(expected[row.mode], time.monotonic() - began)


if __name__ == "__main__":
    main()
