"""Check the CUDA operators against torch in float64, then measure them beside other ones.

    python kernels/benchmarks/check_and_measure.py              # some minutes on one GPU
    python kernels/benchmarks/check_and_measure.py --quick      # small levels: does it run?
    python kernels/benchmarks/check_and_measure.py --sanitize   # under compute-sanitizer

Levels, heads and points are those of Deformable DETR at 800 x 1066: an encoder's layer, whose
queries are all pixels, and a decoder's with 300 queries. Rounds of all sides alternate, so that
whatever else the GPU does slows all; medians are printed, in microseconds of CUDA events around
several calls in a row, Python's part included where it is the slower one. No time is printed of a
side whose result is wrong. "of the limit" is the time that a copy of the same bytes would take,
each tensor read or written once, over the time measured. Repeated calls find much in L2.
"""

import argparse
import functools
import itertools
import shlex
import shutil
import statistics
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from cases import NUM_DECODER_QUERIES, QUICK_SHAPES, SHAPES, Case, Shapes, make_case
from sides import Operator, find_sides, our_side
from torch import Tensor

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
# Errors relative to a result's largest number: of sums in float32, and of one rounding.
TOLERANCES = {
    torch.float64: 1e-9,
    torch.float32: 2e-5,
    torch.bfloat16: 8e-3,
    torch.float16: 1e-3,
}
# Other operators round weights, or sums of few terms, once more.
SLACK_OF_OTHERS = 4
# Locations on a pixel within rounding may fall to either side, where their gradient jumps.
MAY_DIFFER = {"points": 2e-4, "references": 2e-3}


# ---------------------------------------------------------------- correctness


def forward_backward(operator: Operator, inputs: tuple[Tensor, ...], grad: Tensor) -> list[Tensor]:
    output = operator(*inputs)
    return [output, *torch.autograd.grad(output, inputs, grad)]


def gradient_for(case: Case) -> Tensor:
    value, points, *_ = case.inputs
    torch.manual_seed(1)
    shape = (*points.shape[:2], value.shape[2] * value.shape[3])
    return torch.randn(shape).to(value)


def find_error(got: list[Tensor], expected: list[Tensor], tolerance: float) -> str | None:
    """A description of the difference, if there is one."""
    names = ("output", "value", "points", "weights", "references")
    for name, tensor, exact in zip(names, got, expected, strict=False):
        largest = float(exact.detach().abs().max())
        errors = (tensor.detach().double() - exact.detach()).abs() / max(largest, 1e-30)
        if not tensor.isfinite().all():
            return f"{name} is not finite"
        share = float((errors > tolerance).double().mean())
        if share > MAY_DIFFER.get(name, 0):
            return f"{name} differs by {float(errors.max()):.1e} of its maximum"
    return None


def check_case(
    case: Case, operator: Operator, expected: list[Tensor], slack: float = 1
) -> str | None:
    """Why the operator's result is wrong, or None."""
    tolerance = slack * TOLERANCES[case.inputs[0].dtype]
    got = forward_backward(operator, case.inputs, gradient_for(case))
    return find_error(got, expected, tolerance)


def expected_results(case: Case) -> list[Tensor]:
    """Output and gradients by torch in float64."""
    inputs = tuple(tensor.detach().double().requires_grad_() for tensor in case.inputs)
    exact = case._replace(inputs=inputs)
    return forward_backward(our_side("torch")(exact), inputs, gradient_for(case).double())


def cases_to_check(shapes: Shapes) -> Iterator[Case]:
    """All kernels: each width and number of points that has its own, and general ones."""
    kinds = [(16, 4, shapes), (32, 4, shapes), (64, 4, shapes), (32, 3, shapes[1:])]
    kinds += [(48, 5, shapes[2:]), (7, 3, shapes[2:]), (72, 2, shapes[3:])]
    for dtype in (*DTYPES.values(), torch.float64):
        for (width, points, levels), coordinates in itertools.product(kinds, (0, 2, 4)):
            title = f"{dtype} width {width}, {points} points, {coordinates} coordinates"
            yield make_case(
                title,
                levels,
                dtype,
                is_fused=coordinates > 0,
                batch=2,
                queries=301,
                width=width,
                points=points,
                coordinates=coordinates,
            )


def check_all(shapes: Shapes) -> int:
    """Prints errors; returns their number."""
    failures = count = 0
    for case in cases_to_check(shapes):
        expected, grad = expected_results(case), gradient_for(case)
        operator = our_side("required")(case)
        errors = [check_case(case, operator, expected)]
        torch.use_deterministic_algorithms(True)
        errors.append(check_case(case, operator, expected))
        first, second = (forward_backward(operator, case.inputs, grad) for _ in range(2))
        torch.use_deterministic_algorithms(False)
        if not all(one.equal(other) for one, other in zip(first, second, strict=True)):
            errors.append("two deterministic runs differ")
        count += 1
        if any(errors):
            failures += 1
            print(f"WRONG: {case.title}: {'; '.join(filter(None, errors))}")
    torch.cuda.synchronize()
    print(f"correct: {count - failures} of {count} cases, fast and deterministic backward")
    return failures


# ---------------------------------------------------------------- time


def seconds_of(function: Callable[[], object], calls: int) -> float:
    """Of one call, from CUDA events around several."""
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    start.record()
    for _ in range(calls):
        function()
    end.record()
    end.synchronize()
    return start.elapsed_time(end) / 1e3 / calls


def medians(functions: dict[str, Callable[[], object]], rounds: int) -> dict[str, float]:
    """Median seconds of each, in turns, after a warm-up that also says how many calls to time."""
    calls = {}
    for name, function in functions.items():
        seconds_of(function, 2)
        calls[name] = max(1, min(100, int(5e-3 / seconds_of(function, 3))))
    times = {name: [] for name in functions}
    for _ in range(rounds):
        for name, function in functions.items():
            times[name].append(seconds_of(function, calls[name]))
    return {name: statistics.median(values) for name, values in times.items()}


def measure_bandwidth() -> float:
    """Bytes per second that a large copy reads and writes."""
    source = torch.empty(1 << 30, dtype=torch.uint8, device="cuda")
    target = torch.empty_like(source)
    times = [seconds_of(lambda: target.copy_(source), 5) for _ in range(7)]
    return 2 * source.numel() / statistics.median(times)


def bytes_moved(case: Case, with_backward: bool) -> int:
    """Of inputs and output once; with backward also inputs again, gradients, and the output's."""
    inputs = sum(tensor.nbytes for tensor in case.inputs)
    output = gradient_for(case).nbytes
    return inputs + output + (2 * inputs + output if with_backward else 0)


def peak_bytes(function: Callable[[], object]) -> int:
    torch.cuda.synchronize()
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    function()
    torch.cuda.synchronize()
    return torch.cuda.max_memory_allocated() - before


def measure_case(case: Case, sides: dict, rounds: int, bandwidth: float) -> None:
    grad, expected = gradient_for(case), expected_results(case)
    operators = {}
    for name, make in sides.items():
        try:
            slack = 1 if name == "hf_detr" else SLACK_OF_OTHERS
            error = check_case(case, operator := make(case), expected, slack)
        except Exception as failure:
            error = " ".join(str(failure).split())[:120]
        if error is None:
            operators[name] = operator
        else:
            print(f"{case.title}: no time for {name}: {error}")
    del expected
    if "hf_detr" not in operators:
        raise SystemExit("the operator's result is wrong: nothing is measured")

    def run_forward(operator: Operator) -> Tensor:
        with torch.no_grad():
            return operator(*case.inputs)

    for title, run in (
        ("forward", run_forward),
        ("forward+backward", lambda operator: forward_backward(operator, case.inputs, grad)),
    ):
        functions = {name: functools.partial(run, operators[name]) for name in operators}
        peaks = {name: peak_bytes(function) for name, function in functions.items()}
        times = medians(functions, rounds)
        limit = bytes_moved(case, title != "forward") / bandwidth
        for name, seconds in times.items():
            print(
                f"{case.title:<28} {title:<17} {name:<21} {seconds * 1e6:>9.1f} us  "
                f"{seconds / times['hf_detr']:>6.2f} x ours  {limit / seconds:>5.0%} of the limit  "
                f"peak {peaks[name] / 2**20:>7.1f} MiB"
            )


def measure_all(arguments: argparse.Namespace) -> None:
    shapes = QUICK_SHAPES if arguments.quick else SHAPES
    sides = find_sides()
    bandwidth = measure_bandwidth()
    print(f"a large copy moves {bandwidth / 1e9:.0f} GB/s")
    layers = [(f"encoder B{batch}", batch, None) for batch in (1, 2)]
    layers += [(f"decoder B{batch}", batch, NUM_DECODER_QUERIES) for batch in (1, 2)]
    for (title, batch, queries), dtype, is_fused in itertools.product(
        layers, arguments.dtypes, (False, True)
    ):
        title = f"{title} {dtype} {'fused' if is_fused else 'unfused'}"
        case = make_case(
            title, shapes, DTYPES[dtype], is_fused=is_fused, batch=batch, queries=queries
        )
        measure_case(case, sides, arguments.rounds, bandwidth)


# ---------------------------------------------------------------- command line


def sanitize() -> int:
    """Run the check of small shapes under each of compute-sanitizer's tools."""
    program = shutil.which("compute-sanitizer")
    failures = 0
    for tool in ("memcheck", "racecheck", "initcheck", "synccheck"):
        command = [program or "compute-sanitizer", "--tool", tool, "--error-exitcode", "1"]
        # Torch's own kernels would take most of the time.
        command += ["--kernel-name", "kernel_substring=deformable_attention"]
        command += [sys.executable, str(Path(__file__).resolve()), "--quick", "--check-only"]
        print(f"$ {shlex.join(command)}", flush=True)
        if program is not None:
            failures += subprocess.run(command).returncode != 0
    if program is None:
        print("compute-sanitizer is not installed: nothing was run", file=sys.stderr)
        return 1
    return int(failures > 0)


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="small levels, few rounds")
    parser.add_argument("--check-only", action="store_true", help="measure nothing")
    parser.add_argument("--sanitize", action="store_true", help="check under compute-sanitizer")
    parser.add_argument("--rounds", type=int, help="of each measurement; 30, or 5 if quick")
    parser.add_argument("--dtypes", nargs="+", choices=DTYPES, default=list(DTYPES))
    arguments = parser.parse_args()
    if arguments.rounds is None:
        arguments.rounds = 5 if arguments.quick else 30
    return arguments


def main() -> int:
    arguments = parse_arguments()
    if not torch.cuda.is_available():
        print("there is no CUDA device here, or torch was built without CUDA", file=sys.stderr)
        return 1
    if arguments.sanitize:
        return sanitize()
    from hf_detr.ops.kernel_loader import load_kernel

    status = load_kernel("cuda")
    print(f"{torch.cuda.get_device_name()}, torch {torch.__version__}, CUDA {torch.version.cuda}")
    if status.namespace is None:
        print(f"the compiled operator is not available: {status.reason}", file=sys.stderr)
        return 1
    print(f"compiled operator: {status.source}")
    if check_all(QUICK_SHAPES):
        return 1
    if not arguments.check_only:
        measure_all(arguments)
    return 0


if __name__ == "__main__":
    sys.exit(main())
