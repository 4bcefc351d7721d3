"""Run the CPU operators under AddressSanitizer and UndefinedBehaviorSanitizer on random calls.

    python kernels/tests/sanitize_cpu.py                # 2000 calls of each instruction set
    python kernels/tests/sanitize_cpu.py --calls 200

Builds the library with g++ and both sanitizers, then calls it from a second Python process that
has their runtimes loaded first. Each call draws shapes, dtypes and locations, wild ones among them,
forward and backward, plain and fused; tensors are as large as they must be, so that a read or write
past an end is reported. Exits with an error, and the sanitizer's report, at the first finding.
"""

import argparse
import os
import random
import subprocess
import sys
import tempfile
from pathlib import Path

import torch

KERNELS = Path(__file__).parents[1]
NAMESPACE = "sanitized_deformable_attention"
TORCH = Path(torch.__file__).parent
WILD = (float("inf"), float("-inf"), float("nan"), 1e30, -1e30, 2.0**31, -1.0, 0.0, 1.0, 0.5)


def build(folder: Path) -> Path:
    """Compile with both sanitizers; errors of either end the process."""
    library = folder / "sanitized.so"
    sources = [KERNELS / "torch-ext" / "torch_binding.cpp"]
    sources += sorted((KERNELS / "deformable_attention_cpu").glob("*.cpp"))
    flags = ["-std=c++17", "-O1", "-g", "-fPIC", "-shared", "-fno-omit-frame-pointer"]
    flags += ["-fsanitize=address,undefined", "-fno-sanitize-recover=all"]
    flags += ["-fno-math-errno", "-fno-trapping-math", f"-DTORCH_EXTENSION_NAME={NAMESPACE}"]
    flags += ["-DTORCH_TARGET_VERSION=0x020b000000000000", "-isystem", str(TORCH / "include")]
    libraries = ["-Wl,--no-as-needed", f"-L{TORCH / 'lib'}", "-ltorch_cpu", "-ltorch"]
    command = ["g++", *flags, *map(str, sources), *libraries, "-o", str(library)]
    subprocess.run(command, check=True)
    return library


def run_calls(library: Path, capability: str, calls: int, seed: int) -> None:
    """Start the second process, with the sanitizers' runtimes before everything else."""
    runtimes = [
        subprocess.run(
            ["g++", f"-print-file-name={name}"], check=True, capture_output=True, text=True
        ).stdout.strip()
        for name in ("libasan.so", "libubsan.so")
    ]
    environment = {
        **os.environ,
        "LD_PRELOAD": " ".join(runtimes),
        # Python and torch keep memory until they end, which is not an error.
        "ASAN_OPTIONS": "detect_leaks=0:abort_on_error=0",
        "UBSAN_OPTIONS": "print_stacktrace=1",
        "ATEN_CPU_CAPABILITY": capability,
    }
    command = [sys.executable, __file__, "--library", str(library), "--calls", str(calls)]
    subprocess.run([*command, "--seed", str(seed)], check=True, env=environment)


def exact(tensor: torch.Tensor) -> torch.Tensor:
    """A copy in separate memory, with nothing before or after it."""
    return tensor.clone(memory_format=torch.contiguous_format)


def call_once(operators: object, draw: random.Random) -> None:
    """One random call of every operator."""
    shapes = [(draw.randint(1, 9), draw.randint(1, 9)) for _ in range(draw.randint(1, 5))]
    sizes = [size for shape in shapes for size in shape]
    tokens = sum(height * width for height, width in shapes)
    batch_size, num_heads = draw.randint(0, 2), draw.randint(0, 3)
    num_queries = draw.choice([0, 1, 2, 3, 17, 60])
    num_points, width = draw.randint(0, 5), draw.choice([0, 1, 3, 4, 7, 8, 16, 23, 32, 64, 65])
    dtype = draw.choice([torch.float32, torch.float64, torch.bfloat16, torch.float16])
    layout = (batch_size, num_queries, num_heads, len(shapes), num_points)
    value = torch.randn(batch_size, tokens, num_heads, width).to(dtype)
    points = torch.rand(*layout, 2) * draw.choice([1.0, 1.5, 10.0])
    for _ in range(draw.choice([0, 0, 3])):
        if points.numel():
            points.view(-1)[draw.randrange(points.numel())] = draw.choice(WILD)
    weights = torch.randn(layout)
    references = torch.rand(batch_size, num_queries, len(shapes), draw.choice([2, 4]))
    references = references.double() if dtype == torch.float64 else references
    points, weights = points.to(dtype), weights.to(dtype)
    grad = torch.randn(batch_size, num_queries, num_heads * width).to(dtype)
    value, points, weights, grad = map(exact, (value, points, weights, grad))
    torch.set_num_threads(draw.choice([1, 2, 5]))
    operators.deformable_attention(value, points, weights, sizes)
    operators.deformable_attention_backward(grad, value, points, weights, sizes, False)
    arguments = (value, references, points, weights, sizes)
    operators.fused_deformable_attention(*arguments)
    operators.fused_deformable_attention_backward(
        grad, *arguments, draw.choice([True, False]), False
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--calls", type=int, default=2000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--library", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.library is not None:
        torch.ops.load_library(arguments.library)
        draw = random.Random(arguments.seed)
        torch.manual_seed(arguments.seed)
        for _ in range(arguments.calls):
            call_once(getattr(torch.ops, NAMESPACE), draw)
        return
    with tempfile.TemporaryDirectory() as folder:
        library = build(Path(folder))
        for capability in ("default", "avx2", "avx512"):
            run_calls(library, capability, arguments.calls, arguments.seed)
            print(f"{capability}: {arguments.calls} calls of each operator, nothing found")


if __name__ == "__main__":
    main()
