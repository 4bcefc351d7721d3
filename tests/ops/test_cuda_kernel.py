"""Protects the CUDA kernels of deformable attention, run on the host by an emulation of CUDA.

The kernels' own sources are compiled for the CPU; see kernels/tests/emulated_cuda/cuda_runtime.h.
"""

import ctypes
import functools
import itertools
import math
import re
import shutil
import subprocess
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
from torch import Tensor

from hf_detr.ops.multi_scale_deformable_attention import multi_scale_deformable_attention

KERNELS = Path(__file__).parents[2] / "kernels"
SOURCES = KERNELS / "deformable_attention_cuda"
EMULATION = KERNELS / "tests" / "emulated_cuda"
NAMES = {
    torch.float32: "Float32",
    torch.float64: "Float64",
    torch.float16: "Float16",
    torch.bfloat16: "BFloat16",
}
PAIRS = [
    (torch.float32, torch.float32),
    (torch.float64, torch.float64),
    (torch.bfloat16, torch.bfloat16),
    (torch.bfloat16, torch.float32),
    (torch.float16, torch.float16),
    (torch.float16, torch.float32),
]
# Errors of one rounding to a type, and those of sums in float32.
TOLERANCES = {
    torch.float64: 1e-11,
    torch.float32: 3e-6,
    torch.float16: 1e-3,
    torch.bfloat16: 8e-3,
}
Shapes = list[tuple[int, int]]
FOUR_LEVELS = [(6, 7), (3, 4), (2, 2), (1, 2)]


class Sizes(NamedTuple):
    """Channels of a head, levels, points, heads, queries and images."""

    width: int
    shapes: Shapes
    points: int = 4
    heads: int = 2
    queries: int = 11
    batch: int = 2


ALL_SIZES = [
    Sizes(16, FOUR_LEVELS),
    Sizes(32, FOUR_LEVELS),
    Sizes(64, FOUR_LEVELS, heads=1),
    Sizes(32, [(5, 6), (3, 3), (2, 1)], points=3),
    Sizes(48, [(5, 6), (3, 3)], points=5, queries=3),
    Sizes(72, [(5, 6)], points=2, queries=3),
    Sizes(4, [(5, 6)], points=1, heads=5),
    Sizes(7, FOUR_LEVELS, points=3, queries=9),
    Sizes(19, [(2, 3)], points=9, queries=1, heads=3),
]

# ---------------------------------------------------------------- the emulation


def run_one(command: list[str]) -> subprocess.CompletedProcess:
    return subprocess.run(command, capture_output=True, text=True)


def run_all(commands: list[list[str]]) -> None:
    """Run commands in parallel; all must succeed without output."""
    with ThreadPoolExecutor(len(commands)) as pool:
        for run in pool.map(run_one, commands):
            output = run.stdout + run.stderr
            assert run.returncode == 0 and not output, output


def compile_library(target: Path, value: torch.dtype, architecture: int) -> None:
    compiler = shutil.which("g++")
    if compiler is None:
        pytest.skip("g++ is not installed")
    command = [compiler, "-std=c++17", "-O1", "-Wall", "-Wextra", "-Werror"]
    command += ["-Wno-unknown-pragmas", "-shared", "-fPIC", f"-I{EMULATION}", f"-I{SOURCES}"]
    command += [f'-DSOURCE="{NAMES[value].lower()}.cu"', f"-DLAUNCHERS=k{NAMES[value]}Launchers"]
    command += [f"-D__CUDA_ARCH__={architecture}", str(EMULATION / "emulated.cpp")]
    run = subprocess.run([*command, "-o", str(target)], capture_output=True, text=True)
    assert run.returncode == 0, run.stderr


class Emulator:
    """Calls the kernels as the host code does, in memory that shows accesses outside."""

    MARGIN = 1024
    OUTSIDE = 0xFF  # NaN of all types, if it is read

    def __init__(self, folder: Path, architecture: int = 900) -> None:
        self.folder = folder
        self.architecture = architecture
        self.is_reversed = False
        self.memory: list[tuple[Tensor, int, int]] = []

    @functools.cache  # noqa: B019
    def library(self, value: torch.dtype) -> Callable:
        path = self.folder / f"{NAMES[value]}{self.architecture}.so"
        compile_library(path, value, self.architecture)
        function = ctypes.CDLL(str(path)).emulate
        function.restype = ctypes.c_char_p
        return function

    def place(self, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        """A tensor full of NaN on a 16-byte boundary, with margins that nothing may touch."""
        size = math.prod(shape) * dtype.itemsize
        memory = torch.full((size + 2 * self.MARGIN + 16,), self.OUTSIDE, dtype=torch.uint8)
        start = self.MARGIN - memory.data_ptr() % 16
        self.memory.append((memory, start, size))
        return memory[start : start + size].view(dtype).view(shape)

    def copy(self, tensor: Tensor) -> Tensor:
        return self.place(tensor.shape, tensor.dtype).copy_(tensor)

    def zeros(self, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        return self.place(shape, dtype).zero_()

    def check_margins(self) -> None:
        for memory, start, size in self.memory:
            assert (memory[:start] == self.OUTSIDE).all(), "written before a tensor"
            assert (memory[start + size :] == self.OUTSIDE).all(), "written behind a tensor"
        self.memory.clear()

    def call(self, operation: str, tensors: list[Tensor | None], sizes: list[int], shapes: Shapes):
        pointers = [tensor.data_ptr() if tensor is not None else None for tensor in tensors]
        flat = [size for shape in shapes for size in shape]
        error = self.library(tensors[0].dtype)(
            operation.encode(),
            (ctypes.c_void_p * len(pointers))(*pointers),
            (ctypes.c_int64 * len(sizes))(*sizes),
            (ctypes.c_int64 * len(flat))(*flat),
            int(self.is_reversed),
        )
        assert error is None, error
        self.check_margins()

    def forward(self, shapes: Shapes, inputs: list[Tensor]) -> Tensor:
        """The output for value, points, weights and, in the fused operator, reference points."""
        value, points, weights, *references = map(self.copy, inputs)
        output = self.place((*weights.shape[:3], value.shape[-1]), value.dtype)
        tensors = [value, points, weights, *(references or [None]), output, *([None] * 9)]
        self.call("forward", tensors, read_sizes(inputs), shapes)
        return output.flatten(2)

    def backward(
        self, shapes: Shapes, grad: Tensor, inputs: list[Tensor], deterministic: bool = False
    ) -> list[Tensor]:
        """The gradients of all inputs."""
        value, points, weights, *references = map(self.copy, inputs)
        exact = torch.float64 if value.dtype == torch.float64 else torch.float32
        grad_value = self.zeros(value.shape, torch.int64 if deterministic else exact)
        grads = [self.place(tensor.shape, tensor.dtype) for tensor in (points, weights)]
        # As in the host code: weights' gradients need no scratch unless they would be rounded.
        are_exact = weights.dtype == exact
        scratch = [grads[1] if are_exact else self.place(weights.shape, exact)]
        scratch.append(self.place(points.shape, exact))
        grad_references = [self.place(tensor.shape, exact) for tensor in references]
        converted = self.place(value.shape, value.dtype)
        fixed_point = self.zeros((3,), torch.int32) if deterministic else None
        tensors = [value, points, weights, *(references or [None]), None, self.copy(grad)]
        tensors += [grad_value, *grads, *scratch, *(grad_references or [None])]
        self.call("backward", [*tensors, converted, fixed_point], read_sizes(inputs), shapes)
        if not deterministic:
            converted = grad_value.to(value.dtype)
        return [converted, *grads, *grad_references]


def read_sizes(inputs: list[Tensor]) -> list[int]:
    value, points, weights, *references = inputs
    batch, tokens, heads, width = value.shape
    coordinates = references[0].shape[-1] if references else 0
    are_wide = value.dtype != points.dtype
    sizes = [batch, weights.shape[1], tokens, heads, width, *weights.shape[3:], coordinates]
    return [*sizes, int(are_wide)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("emulated_cuda")


@pytest.fixture(scope="module")
def newest(folder: Path) -> Emulator:
    """As on sm_90 and later, with atomic additions of four floats."""
    return Emulator(folder)


@pytest.fixture(scope="module")
def oldest(folder: Path) -> Emulator:
    """As on sm_75."""
    return Emulator(folder, 750)


# ---------------------------------------------------------------- what is expected


def random_inputs(
    sizes: Sizes, value: torch.dtype, points: torch.dtype, coordinates: int = 0, seed: int = 0
) -> list[Tensor]:
    """Inputs of one operator: of the fused one if reference points have coordinates."""
    generator = torch.Generator().manual_seed(seed)
    rand = functools.partial(torch.rand, generator=generator, dtype=torch.float64)
    tokens = sum(height * width for height, width in sizes.shapes)
    samples = (sizes.batch, sizes.queries, sizes.heads, len(sizes.shapes), sizes.points)
    inputs = [rand(sizes.batch, tokens, sizes.heads, sizes.width) * 2 - 1]
    if coordinates == 0:
        weights = rand(samples)
        inputs += [rand(*samples, 2) * 1.4 - 0.2, weights / weights.sum((-2, -1), keepdim=True)]
    else:
        inputs += [rand(*samples, 2) * 6 - 3, rand(samples) * 4 - 2]
    inputs = [inputs[0].to(value), inputs[1].to(points), inputs[2].to(points)]
    if coordinates:
        exact = torch.float64 if value == torch.float64 else torch.float32
        inputs.append(rand(*samples[:2], samples[3], coordinates).to(exact))
    return inputs


def attend(shapes: Shapes, inputs: list[Tensor]) -> Tensor:
    """The specification, with torch's own operations."""
    value, points, weights, *references = inputs
    if references:
        weights = weights.flatten(3).softmax(-1).view_as(weights)
        points = locate(shapes, points, references[0])
    starts = [0, *itertools.accumulate(height * width for height, width in shapes)][:-1]
    return multi_scale_deformable_attention(value, shapes, starts, points, weights, kernel="torch")


def locate(shapes: Shapes, offsets: Tensor, references: Tensor) -> Tensor:
    references = references[:, :, None, :, None]
    if references.shape[-1] == 2:
        return references + offsets / offsets.new_tensor(shapes).flip(-1)[:, None]
    center, size = references.split(2, dim=-1)
    return center + offsets / offsets.shape[4] * size * 0.5


def differentiate(shapes: Shapes, grad: Tensor, inputs: list[Tensor]) -> list[Tensor]:
    """Output and gradients in float64."""
    exact = [tensor.double().requires_grad_() for tensor in inputs]
    output = attend(shapes, exact)
    return [output.detach(), *torch.autograd.grad(output, exact, grad.double())]


def random_gradient(sizes: Sizes, dtype: torch.dtype) -> Tensor:
    generator = torch.Generator().manual_seed(7)
    shape = (sizes.batch, sizes.queries, sizes.heads * sizes.width)
    return torch.randn(shape, generator=generator).to(dtype)


def check(got: list[Tensor], expected: list[Tensor], dtypes: list[torch.dtype]) -> None:
    """Compares to float64; errors may be as large as rounding the largest number once."""
    for index, (tensor, exact, dtype) in enumerate(zip(got, expected, dtypes, strict=True)):
        assert tensor.dtype == dtype
        atol = TOLERANCES[dtype] * max(1.0, float(exact.abs().max()))
        torch.testing.assert_close(
            tensor.double(),
            exact,
            atol=atol,
            rtol=TOLERANCES[dtype],
            msg=lambda m, i=index: f"{i}: {m}",
        )


def check_sizes(
    emulator: Emulator,
    sizes: Sizes,
    value: torch.dtype,
    points: torch.dtype,
    coordinates: int,
    deterministic: bool = False,
) -> None:
    inputs = random_inputs(sizes, value, points, coordinates)
    grad = random_gradient(sizes, value)
    expected = differentiate(sizes.shapes, grad, inputs)
    got = [emulator.forward(sizes.shapes, inputs)]
    got += emulator.backward(sizes.shapes, grad, inputs, deterministic)
    check(got, expected, [value, *(tensor.dtype for tensor in inputs)])


# ---------------------------------------------------------------- values and gradients


@pytest.mark.parametrize(("value", "points"), PAIRS)
@pytest.mark.parametrize("coordinates", [0, 2, 4])
@pytest.mark.parametrize("sizes", ALL_SIZES, ids=lambda sizes: f"{sizes.width}")
def test_equals_the_specification(
    newest: Emulator, sizes: Sizes, value: torch.dtype, points: torch.dtype, coordinates: int
) -> None:
    """Protects output and gradients of both operators, for each kernel that widths choose."""
    check_sizes(newest, sizes, value, points, coordinates)


@pytest.mark.parametrize("value", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("coordinates", [0, 4])
@pytest.mark.parametrize("sizes", ALL_SIZES[:5], ids=lambda sizes: f"{sizes.width}")
def test_older_architectures(
    oldest: Emulator, sizes: Sizes, value: torch.dtype, coordinates: int
) -> None:
    """Protects architectures before sm_90: atomic additions one by one, in another layout."""
    check_sizes(oldest, sizes, value, value, coordinates)


@pytest.mark.parametrize(("value", "points"), PAIRS)
@pytest.mark.parametrize("coordinates", [0, 2])
@pytest.mark.parametrize("sizes", ALL_SIZES[1:5], ids=lambda sizes: f"{sizes.width}")
def test_deterministic(
    newest: Emulator, sizes: Sizes, value: torch.dtype, points: torch.dtype, coordinates: int
) -> None:
    """Protects the fixed-point sums: their precision, and that no order changes a bit."""
    check_sizes(newest, sizes, value, points, coordinates, deterministic=True)
    inputs = random_inputs(sizes, value, points, coordinates)
    grad = random_gradient(sizes, value)
    expected = newest.backward(sizes.shapes, grad, inputs, deterministic=True)
    newest.is_reversed = True
    got = newest.backward(sizes.shapes, grad, inputs, deterministic=True)
    newest.is_reversed = False
    torch.testing.assert_close(got, expected, atol=0, rtol=0)


@pytest.mark.parametrize("value", [torch.float32, torch.float64])
@pytest.mark.parametrize("scale", [1e-30, 1e-3, 1e12, 1e30])
def test_fixed_point_fits_any_scale(newest: Emulator, value: torch.dtype, scale: float) -> None:
    """Protects the unit of fixed point from gradients and weights of any size."""
    sizes = ALL_SIZES[3]
    inputs = random_inputs(sizes, value, value)
    inputs[2] *= scale**0.2
    grad = random_gradient(sizes, value) * scale
    expected = differentiate(sizes.shapes, grad, inputs)[1]
    got = newest.backward(sizes.shapes, grad, inputs, deterministic=True)[0]
    atol = float(expected.abs().max()) * (1e-10 if value == torch.float64 else 1e-6)
    torch.testing.assert_close(got.double(), expected, atol=atol, rtol=0)


def test_sums_at_one_pixel_fit_fixed_point(newest: Emulator) -> None:
    """Protects the largest sum there can be: all samples with equal sign on a single pixel."""
    sizes = Sizes(4, [(1, 1)], points=9, queries=7, batch=1)
    value, locations, weights = random_inputs(sizes, torch.float32, torch.float32)
    inputs = [value, torch.full_like(locations, 0.5), torch.full_like(weights, 1.9999)]
    grad = torch.full((1, 7, 8), 1.9999)
    got = newest.backward(sizes.shapes, grad, inputs, deterministic=True)[0]
    torch.testing.assert_close(got, torch.full_like(got, 1.9999**2 * 63), rtol=1e-6, atol=0)


# ---------------------------------------------------------------- unusual locations

# A kernel each for usual sizes, others, and single channels.
KINDS = [ALL_SIZES[1], ALL_SIZES[3], ALL_SIZES[7]]


def fill_locations(locations: Tensor, shapes: Shapes) -> None:
    """Puts points on pixels' centres, on borders, and just outside."""
    pixels = [-1.0, -0.5, 0.0, 1.0, 1.5]
    for level, (height, width) in enumerate(shapes):
        columns = torch.tensor([*pixels, width - 1.0, width - 0.5, width])
        lines = torch.tensor([*pixels, height - 1.0, height - 0.5, height])
        count = locations[:, :, :, level, :, 0].numel()
        points = list(itertools.islice(itertools.cycle(itertools.product(columns, lines)), count))
        x, y = (torch.stack(numbers) for numbers in zip(*points, strict=True))
        target = locations[:, :, :, level]
        target[..., 0] = ((x + 0.5) / width).view(target.shape[:-1])
        target[..., 1] = ((y + 0.5) / height).view(target.shape[:-1])


@pytest.mark.parametrize("width", [7, 16, 32])
def test_pixels_and_borders(newest: Emulator, width: int) -> None:
    """Protects values and one-sided gradients where corners change, borders included."""
    sizes = Sizes(width, [(4, 8), (2, 4), (8, 2), (1, 1)])  # exact in float32
    value, locations, weights = random_inputs(sizes, torch.float32, torch.float32)
    fill_locations(locations, sizes.shapes)
    inputs = [value, locations, weights]
    grad = random_gradient(sizes, torch.float32)
    expected = differentiate(sizes.shapes, grad, inputs)
    got = [newest.forward(sizes.shapes, inputs), *newest.backward(sizes.shapes, grad, inputs)]
    check(got, expected, [torch.float32] * 4)


@pytest.mark.parametrize("sizes", KINDS, ids=lambda sizes: f"{sizes.width}")
@pytest.mark.parametrize("far", [math.inf, -math.inf, 1e30, -1e30, 1e9, -3.0])
def test_far_locations_sample_zero(newest: Emulator, sizes: Sizes, far: float) -> None:
    """Protects that no location, however far, becomes an index or a gradient."""
    inputs = random_inputs(sizes, torch.float32, torch.float32)
    inputs[1][0, 1, :, 0, :, 0] = far
    inputs[1][1, 2, :, 1, 0] = far
    grad = random_gradient(sizes, torch.float32)
    usual = [inputs[0], inputs[1].clamp(-3, 3), inputs[2]]
    expected = differentiate(sizes.shapes, grad, usual)
    got = [newest.forward(sizes.shapes, inputs), *newest.backward(sizes.shapes, grad, inputs)]
    check(got, expected, [torch.float32] * 4)
    assert not got[2][0, 1, :, 0].any() and not got[3][1, 2, :, 1, 0].any()


@pytest.mark.parametrize("sizes", KINDS, ids=lambda sizes: f"{sizes.width}")
@pytest.mark.parametrize("coordinates", [0, 2, 4])
@pytest.mark.parametrize("deterministic", [False, True])
def test_nan_locations_show(
    newest: Emulator, sizes: Sizes, coordinates: int, deterministic: bool
) -> None:
    """Protects that NaN reaches its query's head and its own gradients, and nothing else."""
    inputs = random_inputs(sizes, torch.float32, torch.float32, coordinates)
    points = inputs[1]
    points[1, 2, 0, 1, 1, 0] = math.nan
    points[0, 3, 1, 0, 0] = math.nan
    grad = random_gradient(sizes, torch.float32)
    usual = [inputs[0], points.nan_to_num(1e9), *inputs[2:]]
    expected = newest.forward(sizes.shapes, usual).unflatten(-1, (sizes.heads, -1))
    expected[1, 2, 0] = expected[0, 3, 1] = math.nan
    got = newest.forward(sizes.shapes, inputs).unflatten(-1, (sizes.heads, -1))
    torch.testing.assert_close(got, expected, equal_nan=True, atol=1e-6, rtol=0)
    expected = newest.backward(sizes.shapes, grad, usual, deterministic)
    got = newest.backward(sizes.shapes, grad, inputs, deterministic)
    torch.testing.assert_close(got[0], expected[0], atol=1e-5, rtol=0)
    spread = (slice(None), slice(None)) if coordinates else (1, 1), (0, 0)
    expected[1][1, 2, 0, 1, 1] = expected[1][0, 3, 1, 0, 0] = math.nan
    expected[2][(1, 2, 0, *spread[0])] = math.nan
    expected[2][(0, 3, 1, *(spread[0] if coordinates else spread[1]))] = math.nan
    torch.testing.assert_close(got[1:3], expected[1:3], equal_nan=True, atol=1e-4, rtol=1e-4)
    if coordinates:
        assert got[3][1, 2, 1].isnan().all() and got[3][0, 3, 0].isnan().all()
        assert got[3].isfinite().sum() == got[3].numel() - 2 * coordinates


@pytest.mark.parametrize("sizes", KINDS, ids=lambda sizes: f"{sizes.width}")
def test_pixels_that_are_not_sampled_are_not_read(newest: Emulator, sizes: Sizes) -> None:
    """Protects that a NaN pixel spreads neither to samples outside nor past a row's end."""
    value, locations, weights = random_inputs(sizes, torch.float32, torch.float32)
    grad = random_gradient(sizes, torch.float32)
    locations[:] = 1.5
    inputs = [torch.full_like(value, math.nan), locations, weights]
    got = [newest.forward(sizes.shapes, inputs), *newest.backward(sizes.shapes, grad, inputs)]
    assert not any(tensor.any() for tensor in got)
    # In the middle of the last column: its neighbours in memory are in the next row.
    height, width = sizes.shapes[0]
    value[:, 0 : height * width : width] = math.nan
    value[:, height * width :] = math.nan
    weights[:, :, :, 1:] = 0
    locations[:, :, :, 0] = torch.tensor([(width - 0.25) / width, 1.5 / height])
    locations[:, :, :, 1:] = -1
    inputs = [value, locations, weights]
    got = [newest.forward(sizes.shapes, inputs), *newest.backward(sizes.shapes, grad, inputs)]
    assert all(tensor.isfinite().all() for tensor in got) and got[0].any()


def test_wild_logits_and_gradients(newest: Emulator) -> None:
    """Protects the softmax from large logits, and fixed point from numbers that are not finite."""
    sizes = ALL_SIZES[1]
    inputs = random_inputs(sizes, torch.float32, torch.float32, 2)
    inputs[2][0] *= 1e3
    inputs[2][1, :, :, 1] = -math.inf
    grad = random_gradient(sizes, torch.float32)
    expected = differentiate(sizes.shapes, grad, inputs)
    got = [newest.forward(sizes.shapes, inputs), *newest.backward(sizes.shapes, grad, inputs)]
    check(got, expected, [torch.float32] * 5)
    for bad in (math.inf, math.nan):
        wild = grad.clone()
        wild[1, 2, 3] = bad
        assert newest.backward(sizes.shapes, wild, inputs, deterministic=True)[0].isnan().all()
    inputs[2][0, 1, 1] = math.nan
    assert newest.forward(sizes.shapes, inputs).isnan().sum() == sizes.width
    assert newest.backward(sizes.shapes, grad, inputs, deterministic=True)[0].isnan().all()


def test_sanitizers_find_nothing(tmp_path: Path) -> None:
    """Protects from access outside any tensor, and from NaN and infinity becoming integers."""
    compiler = shutil.which("g++")
    if compiler is None:
        pytest.skip("g++ is not installed")
    flags = ["-g", "-std=c++17", "-O1", "-fsanitize=address,undefined,float-cast-overflow"]
    flags += ["-fno-sanitize-recover", "-D__CUDA_ARCH__=900", f"-I{EMULATION}", f"-I{SOURCES}"]
    probe = [compiler, *flags, "-x", "c++", "-", "-o", str(tmp_path / "probe")]
    if subprocess.run(probe, input=b"int main() {}", capture_output=True).returncode != 0:
        pytest.skip("g++ has no sanitizers here")
    programs = {"Float32": "float", "BFloat16": "__nv_bfloat16"}
    run_all(
        [
            [compiler, *flags, f'-DSOURCE="{name.lower()}.cu"', f"-DLAUNCHERS=k{name}Launchers"]
            + [f"-DTYPE={number}", str(EMULATION / "sanitize.cpp"), "-o", str(tmp_path / name)]
            for name, number in programs.items()
        ]
    )
    for name in programs:
        run = subprocess.run([str(tmp_path / name)], capture_output=True, text=True)
        assert run.returncode == 0, run.stderr


# ---------------------------------------------------------------- the host code

NAMESPACE = "hf_detr_emulated_cuda"
TORCH = Path(torch.__path__[0])
HOST_FLAGS = [
    *("-std=c++17", "-O1", "-fPIC", "-fvisibility=hidden", "-Wall", "-Wextra", "-Werror"),
    *("-Wno-unknown-pragmas", "-DTORCH_TARGET_VERSION=0x020b000000000000", "-DUSE_CUDA"),
    *("-isystem", str(TORCH / "include")),
]


@pytest.fixture(scope="module")
def operators(folder: Path) -> Path:
    """Path of a library that registers the CUDA operators for CPU tensors."""
    compiler = shutil.which("g++")
    if compiler is None:
        pytest.skip("g++ is not installed")
    flags = [*HOST_FLAGS, f"-DTORCH_EXTENSION_NAME={NAMESPACE}", f"-I{EMULATION}", f"-I{SOURCES}"]
    units = [EMULATION / "operators_on_cpu.cpp", KERNELS / "torch-ext" / "torch_binding.cpp"]
    units += [SOURCES / f"{name.lower()}.cu" for name in NAMES.values()]
    objects = [str(folder / f"{unit.name}.o") for unit in units]
    run_all(
        [
            # A name that torch's headers would follow too.
            [compiler, *flags, *(["-D__CUDA_ARCH__=900"] if unit.suffix == ".cu" else [])]
            + ["-x", "c++", "-c", str(unit), "-o", target]
            for unit, target in zip(units, objects, strict=True)
        ]
    )
    library = folder / "operators.so"
    link = [compiler, "-shared", *objects, "-o", str(library), f"-L{TORCH / 'lib'}"]
    run_all([[*link, "-Wl,--no-as-needed", "-ltorch_cpu", "-ltorch"]])
    torch.ops.load_library(str(library))
    return library


def call_forward(shapes: Shapes, inputs: list[Tensor]) -> Tensor:
    value, points, weights, *references = inputs
    sizes = [size for shape in shapes for size in shape]
    operators = getattr(torch.ops, NAMESPACE)
    if references:
        return operators.fused_deformable_attention(value, *references, points, weights, sizes)
    return operators.deformable_attention(value, points, weights, sizes)


def call_backward(
    shapes: Shapes, grad: Tensor, inputs: list[Tensor], deterministic: bool = False
) -> list[Tensor]:
    """The gradients in the order of `inputs`."""
    value, points, weights, *references = inputs
    sizes = [size for shape in shapes for size in shape]
    operators = getattr(torch.ops, NAMESPACE)
    if not references:
        return list(
            operators.deformable_attention_backward(
                grad, value, points, weights, sizes, deterministic
            )
        )
    grads = operators.fused_deformable_attention_backward(
        grad, value, *references, points, weights, sizes, True, deterministic
    )
    return [grads[0], *grads[2:], grads[1]]


@pytest.mark.parametrize(("value", "points"), PAIRS)
@pytest.mark.parametrize("coordinates", [0, 2, 4])
@pytest.mark.parametrize("deterministic", [False, True])
def test_operators(
    operators: Path,
    value: torch.dtype,
    points: torch.dtype,
    coordinates: int,
    deterministic: bool,
) -> None:
    """Protects the arguments that the host code passes to the kernels, and its results."""
    for sizes in (ALL_SIZES[1], ALL_SIZES[3]):
        inputs = random_inputs(sizes, value, points, coordinates)
        grad = random_gradient(sizes, value)
        expected = differentiate(sizes.shapes, grad, inputs)
        got = [call_forward(sizes.shapes, inputs)]
        got += call_backward(sizes.shapes, grad, inputs, deterministic)
        check(got, expected, [value, *(tensor.dtype for tensor in inputs)])


def test_orders_change_no_bit(operators: Path) -> None:
    """Protects that the deterministic flag arrives: all gradients equal in any order."""
    sizes = ALL_SIZES[1]
    inputs = random_inputs(sizes, torch.float32, torch.float32, 4)
    grad = random_gradient(sizes, torch.float32)
    reverse = ctypes.CDLL(str(operators)).reverse_order
    results = []
    for is_reversed in (0, 1):
        reverse(is_reversed)
        results.append(call_backward(sizes.shapes, grad, inputs, True))
        results.append(call_backward(sizes.shapes, grad, inputs, False))
    reverse(0)
    torch.testing.assert_close(results[2], results[0], atol=0, rtol=0)
    torch.testing.assert_close(results[3][1:], results[1][1:], atol=0, rtol=0)
    assert not results[3][0].equal(results[1][0])  # else this test shows nothing


def test_reference_gradient_only_if_asked_for(operators: Path) -> None:
    """Protects the empty gradient in place of one that is not needed."""
    sizes = ALL_SIZES[1]
    value, offsets, logits, references = random_inputs(sizes, torch.float32, torch.float32, 2)
    flat = [size for shape in sizes.shapes for size in shape]
    grad = random_gradient(sizes, torch.float32)
    operator = getattr(torch.ops, NAMESPACE).fused_deformable_attention_backward
    arguments = (grad, value, references, offsets, logits, flat)
    asked, unasked = (operator(*arguments, asked, False) for asked in (True, False))
    assert asked[1].shape == references.shape and unasked[1].shape == (0,)
    for index in (0, 2, 3):
        torch.testing.assert_close(unasked[index], asked[index], atol=1e-6, rtol=0)


@pytest.mark.parametrize("coordinates", [0, 4])
def test_strides_and_alignment_do_not_matter(operators: Path, coordinates: int) -> None:
    """Protects vector loads from views that start anywhere, and kernels from strides."""
    sizes = ALL_SIZES[1]
    inputs = random_inputs(sizes, torch.float32, torch.float32, coordinates)
    grad = random_gradient(sizes, torch.float32)
    expected = [call_forward(sizes.shapes, inputs), *call_backward(sizes.shapes, grad, inputs)]

    def shift(tensor: Tensor) -> Tensor:
        return torch.cat([tensor.new_zeros(1), tensor.flatten()])[1:].view(tensor.shape)

    def transpose(tensor: Tensor) -> Tensor:
        return tensor.transpose(0, 1).contiguous().transpose(0, 1)

    for change in (shift, transpose):
        views = [change(tensor) for tensor in inputs]
        got = [call_forward(sizes.shapes, views)]
        got += call_backward(sizes.shapes, change(grad), views)
        torch.testing.assert_close(got, expected, atol=1e-6, rtol=0)
        assert all(tensor.is_contiguous() for tensor in got)


@pytest.mark.parametrize("coordinates", [0, 2])
@pytest.mark.parametrize("empty", ["batch", "queries", "points", "width", "heads"])
def test_empty_inputs(operators: Path, empty: str, coordinates: int) -> None:
    """Protects empty inputs: the output is empty or zero, and no kernel is started."""
    sizes = Sizes(4, [(3, 4), (2, 1)])._replace(**{empty: 0})
    inputs = random_inputs(sizes, torch.bfloat16, torch.bfloat16, coordinates)
    output = call_forward(sizes.shapes, inputs)
    assert output.shape == (sizes.batch, sizes.queries, sizes.heads * sizes.width)
    assert not output.any()
    for deterministic in (False, True):
        grads = call_backward(sizes.shapes, output, inputs, deterministic)
        for grad, tensor in zip(grads, inputs, strict=True):
            torch.testing.assert_close(grad, torch.zeros_like(tensor), atol=0, rtol=0)


def test_number_of_levels(operators: Path) -> None:
    """Protects the largest number of levels, and the error message beyond it."""
    sizes = Sizes(4, [(1, 2)] * 64, points=1, queries=2, batch=1)
    inputs = random_inputs(sizes, torch.float32, torch.float32)
    expected = attend(sizes.shapes, inputs)
    torch.testing.assert_close(call_forward(sizes.shapes, inputs), expected, atol=1e-5, rtol=0)
    sizes = sizes._replace(shapes=[(1, 2)] * 65)
    inputs = random_inputs(sizes, torch.float32, torch.float32)
    with pytest.raises(RuntimeError, match="at most 64 levels, not 65"):
        call_forward(sizes.shapes, inputs)


# ---------------------------------------------------------------- compilers


def test_host_code_uses_the_stable_abi_only(tmp_path: Path) -> None:
    """Protects that one build works with several versions of torch: it uses no C++ symbols."""
    compiler, reader = shutil.which("g++"), shutil.which("nm")
    if compiler is None or reader is None:
        pytest.skip("g++ or nm is not installed")
    unit, target = SOURCES / "deformable_attention_cuda.cpp", tmp_path / "host.o"
    names = [f"-DTORCH_EXTENSION_NAME={NAMESPACE}", "-c", str(unit), "-o", str(target)]
    run_all([[compiler, *HOST_FLAGS, *names]])
    symbols = subprocess.run(
        [reader, "-u", str(target)], capture_output=True, text=True, check=True
    )
    used = [line.split()[-1] for line in symbols.stdout.splitlines()]
    assert "aoti_torch_get_current_cuda_stream" in used
    foreign = [
        name for name in used if name.startswith(("_ZN2at", "_ZN3c10", "_ZNK2at", "_ZNK3c10"))
    ]
    assert not foreign and not any("5torch" in name for name in used)


def test_kernels_compile_for_cuda(tmp_path: Path) -> None:
    """Protects that the emulated code compiles as CUDA, and usual kernels stay in registers.

    Compilers differ by a few bytes; an array that is not in registers takes more.
    """
    compiler = shutil.which("nvcc")
    if compiler is None:
        pytest.skip("nvcc is not installed")
    command = [compiler, "-std=c++17", "-O3", "-arch=sm_90", "-Xptxas=-v", "-Werror=all-warnings"]
    commands = [
        [*command, "-c", str(SOURCES / f"{name}.cu"), "-o", str(tmp_path / f"{name}.o")]
        for name in ("float32", "bfloat16")
    ]
    for run in map(run_one, commands):
        assert run.returncode == 0, run.stderr
        kernels = run.stderr.split("Compiling entry function ")[1:]
        usual = [kernel for kernel in kernels if "Li16ELi" in kernel.split()[0]]
        assert len(usual) == 12
        assert all(int(re.search(r"(\d+) bytes stack frame", text)[1]) <= 48 for text in usual)
