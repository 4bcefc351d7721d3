"""Protects `kernels/` as a project of kernel-builder, and a build of it with the Hub's layout.

The build is made from the files that build.toml lists and laid out in the builder's way; what the
builder generates has simple stand-ins here.
"""

import ast
import ctypes
import functools
import importlib
import importlib.util
import json
import os
import platform
import shutil
import subprocess
import sys
import tomllib
import types
from pathlib import Path

import pytest
import torch
from torch import Tensor
from transformers.models.deformable_detr import modeling_deformable_detr

from hf_detr.ops import compiled_attention
from hf_detr.ops.kernel_build import CXX_FLAGS, FOLDERS, SUFFIXES, Recipe, find_compiler
from hf_detr.ops.kernel_loader import find_or_build, load_kernel
from hf_detr.ops.multi_scale_deformable_attention import (
    attend_around_references,
    multi_scale_deformable_attention,
)

from ..operator_cases import random_inputs, starts

KERNELS = Path(__file__).parents[2] / "kernels"
BUILD = tomllib.loads((KERNELS / "build.toml").read_text())
PACKAGE = KERNELS / "torch-ext" / "deformable_attention"
NAMESPACE = "_deformable_attention_cpu_abc123"
SHAPES = [(5, 3), (2, 4)]

REGISTRATION = """
#define JOIN(a, b) a##b
#define REGISTER_EXTENSION(name) REGISTER(name)
#define REGISTER(name) \\
  extern "C" __attribute__((visibility("default"))) int JOIN(PyInit_, name)() { return 42; }
"""
OPS = f"""
from pathlib import Path
import torch
torch.ops.load_library(Path(__file__).with_name("{NAMESPACE}.abi3.so"))
ops = torch.ops.{NAMESPACE}
def add_op_namespace_prefix(op_name):
    return f"{NAMESPACE}::{{op_name}}"
"""


def listed_files(backend: str) -> set[str]:
    """Files that the builder uses for a backend."""
    sections = [s for s in BUILD["kernel"].values() if s["backend"] == backend]
    return {path for section in (BUILD["torch"], *sections) for path in section["src"]}


@pytest.fixture(scope="module")
def variant(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A build for the CPU as one folder of a Hub repository's `build`."""
    if find_compiler() is None or platform.system() != "Linux":
        pytest.skip("there is no C++ compiler, or this isn't Linux")
    folder = tmp_path_factory.mktemp("hub_kernel")
    for path in listed_files("cpu"):
        (folder / "sources" / path).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(KERNELS / path, folder / "sources" / path)
    (folder / "sources" / "torch-ext" / "registration.h").write_text(REGISTRATION)
    recipe = Recipe("cpu", folder / "sources", NAMESPACE)
    _, library = find_or_build(recipe, folder / "cache")
    variant = folder / "build" / f"torch-stable-abi211-cpu-{platform.machine()}-linux"
    package = variant / "deformable_attention"
    shutil.copytree(PACKAGE, package, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(library, package / f"{NAMESPACE}.abi3.so")
    (package / "_ops.py").write_text(OPS)
    metadata = {key: BUILD["general"][key] for key in ("name", "version", "license")}
    metadata |= {"id": NAMESPACE, "python-depends": [], "backend": {"type": "cpu"}}
    (variant / "metadata.json").write_text(json.dumps(metadata))
    return variant


@pytest.fixture(scope="module")
def kernel(variant: Path) -> types.ModuleType:
    """The package, imported under a separate name as `kernels` does."""
    path = variant / "deformable_attention" / "__init__.py"
    spec = importlib.util.spec_from_file_location(NAMESPACE, path)
    module = importlib.util.module_from_spec(spec)
    sys.modules[NAMESPACE] = module
    spec.loader.exec_module(module)
    return module


def values_and_gradients(function, inputs: list[Tensor]) -> list[Tensor]:
    output = function(*inputs)
    generator = torch.Generator().manual_seed(2)
    grad = torch.randn(output.shape, dtype=output.dtype, generator=generator)
    return [output, *torch.autograd.grad(output, inputs, grad)]


def assert_same(function, other, inputs: list[Tensor]) -> None:
    """Equal outputs and gradients."""
    torch.testing.assert_close(
        values_and_gradients(function, inputs), values_and_gradients(other, inputs)
    )


def torch_attention(value: Tensor, *points: Tensor) -> Tensor:
    return multi_scale_deformable_attention(value, SHAPES, starts(SHAPES), *points, "torch")


# ---------------------------------------------------------------- the project's files


def test_build_toml_lists_every_file() -> None:
    """The builder uses listed files only, so a missing one breaks builds for the Hub."""
    for backend, folders in (("cpu", ["cpu"]), ("cuda", ["cpu", "cuda"])):
        names = ["torch-ext", *(FOLDERS[folder] for folder in folders)]
        found = [path for name in names for path in (KERNELS / name).iterdir()]
        expected = {p.relative_to(KERNELS).as_posix() for p in found if p.suffix in SUFFIXES}
        assert listed_files(backend) == expected


def test_build_toml_has_the_format_s_fields() -> None:
    """The builder refuses fields that it doesn't know and values of another edition."""
    assert set(BUILD) == {"general", "torch", "kernel"}
    general = BUILD["general"]
    assert set(general) == {"name", "version", "edition", "license", "backends", "hub"}
    assert general["edition"] == 5 and type(general["version"]) is int
    assert general["name"].replace("-", "_") == PACKAGE.name
    assert set(BUILD["torch"]) == {"src", "stable-abi"}
    assert set(BUILD["torch"]["stable-abi"]) == set(general["backends"])
    for section in BUILD["kernel"].values():
        assert section["backend"] in general["backends"] and section["depends"] == ["torch"]
        assert set(section) - {"backend", "depends", "src"} <= {"cxx-flags", "cuda-capabilities"}


def test_build_toml_targets_the_same_torch_as_we_do() -> None:
    """The stable ABI's version is the one that the sources are compiled against here."""
    version = BUILD["torch"]["stable-abi"]["cpu"].split(".")
    number = (int(version[0]) << 56) | (int(version[1]) << 48)
    assert f"-DTORCH_TARGET_VERSION=0x{number:016x}" in CXX_FLAGS


def test_build_toml_passes_the_builder_s_own_parser() -> None:
    """If the PyPI package `kernels` is installed, its parser, the builder's, accepts the file."""
    parser = pytest.importorskip("kernels._rust", reason="the package `kernels` isn't installed")
    backends = parser.Build.open(KERNELS).general.backends
    assert [str(backend).lower() for backend in backends] == BUILD["general"]["backends"]


def test_no_python_directly_in_the_folder() -> None:
    """A module in `kernels/` would hide the PyPI package of that name from transformers."""
    assert not list(KERNELS.glob("*.py"))


def test_python_of_the_kernel_is_portable() -> None:
    """The Hub requires Python 3.9, and imports of torch, the standard library and itself only."""
    for path in PACKAGE.glob("*.py"):
        tree = ast.parse(path.read_text(), feature_version=(3, 9))
        imports = [node for node in ast.walk(tree) if isinstance(node, ast.Import | ast.ImportFrom)]
        for node in imports:
            names = [alias.name for alias in node.names]
            if isinstance(node, ast.ImportFrom):
                names = [] if node.level else [node.module]
            assert {name.split(".")[0] for name in names} <= {"torch", *sys.stdlib_module_names}


# ---------------------------------------------------------------- a build


def test_library_is_a_python_module_too(variant: Path) -> None:
    """With the builder's header the library has the function that Python's import looks for."""
    library = ctypes.CDLL(str(variant / "deformable_attention" / f"{NAMESPACE}.abi3.so"))
    assert getattr(library, f"PyInit_{NAMESPACE}")() == 42


def test_function(kernel: types.ModuleType) -> None:
    """Outputs and gradients are those of our torch implementation."""

    def attend(value: Tensor, *points: Tensor) -> Tensor:
        return kernel.deformable_attention(value, SHAPES, *points)

    assert_same(attend, torch_attention, random_inputs(SHAPES))


@pytest.mark.parametrize("coordinates", [2, 4])
def test_fused_function(kernel: types.ModuleType, coordinates: int) -> None:
    """The same from references, offsets and logits."""
    value, offsets, logits = random_inputs(SHAPES)
    size = (*logits.shape[:2], len(SHAPES), coordinates)
    generator = torch.Generator().manual_seed(1)
    references = torch.rand(size, dtype=torch.float64, generator=generator).requires_grad_()

    def attend(value: Tensor, *points: Tensor) -> Tensor:
        return kernel.fused_deformable_attention(value, SHAPES, *points)

    def expected(value: Tensor, *points: Tensor) -> Tensor:
        return attend_around_references(value, SHAPES, starts(SHAPES), *points, "torch")

    assert_same(attend, expected, [value, references, offsets, logits])


@pytest.mark.parametrize("point_dtype", [torch.float32, torch.bfloat16])
def test_half_precision(kernel: types.ModuleType, point_dtype: torch.dtype) -> None:
    """Dtypes may differ, and the output has that of value."""
    value, locations, weights = (tensor.detach() for tensor in random_inputs(SHAPES))
    inputs = (value.bfloat16(), locations.to(point_dtype), weights.bfloat16())
    output = kernel.deformable_attention(inputs[0], SHAPES, *inputs[1:])
    expected = torch_attention(*(tensor.float() for tensor in inputs))
    torch.testing.assert_close(output, expected.bfloat16())


def test_layer_is_the_one_of_transformers(kernel: types.ModuleType) -> None:
    """It can replace transformers' layer: same signature, same result."""
    layer = kernel.layers.MultiScaleDeformableAttention()
    reference = modeling_deformable_detr.MultiScaleDeformableAttention()

    def call(module: torch.nn.Module, value: Tensor, *points: Tensor) -> Tensor:
        tensors = (torch.tensor(SHAPES), SHAPES, torch.tensor(starts(SHAPES)))
        return module(value, *tensors, *points, 64)

    assert_same(*(functools.partial(call, m) for m in (layer, reference)), random_inputs(SHAPES))


def test_the_kernel_s_own_tests(variant: Path) -> None:
    """The tests that kernel-builder runs pass on this build."""
    environment = {**os.environ, "PYTHONPATH": str(variant), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-m", "kernels_ci"]
    result = subprocess.run(
        [*command, str(KERNELS / "tests")],
        env=environment,
        cwd=variant,
        capture_output=True,
        text=True,
    )
    assert result.returncode == 0, result.stdout + result.stderr


def test_our_loader_takes_it(
    kernel: types.ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """HF_DETR_HUB_KERNEL works with this build, which registers its own derivatives."""
    stand_in = types.SimpleNamespace(get_kernel=lambda *arguments, **options: kernel)
    monkeypatch.setitem(sys.modules, "kernels", stand_in)
    monkeypatch.setenv("HF_DETR_HUB_KERNEL", "owner/attention")
    status = load_kernel("cpu", (tmp_path,), "hf_detr_test_hub_build")
    assert (status.source, status.namespace) == ("hub", NAMESPACE)

    def attend(*tensors: Tensor) -> Tensor:
        sizes = [size for shape in SHAPES for size in shape]
        return compiled_attention.sample_with_compiled_operator(NAMESPACE, *tensors, sizes)

    assert_same(attend, torch_attention, random_inputs(SHAPES))


@pytest.fixture
def kernels() -> types.ModuleType:
    """The PyPI package."""
    module = pytest.importorskip("kernels")
    if not hasattr(module, "get_local_kernel"):  # our own folder, found as a namespace package
        pytest.skip("the package `kernels` isn't installed")
    return module


def test_the_kernels_package_loads_it(kernels: types.ModuleType, variant: Path) -> None:
    """The package knows the variant's name, reads its metadata, and imports this build."""
    from kernels.variants import get_variants_local, resolve_variant

    chosen, _ = resolve_variant(get_variants_local(variant.parent), backend="cpu")
    assert chosen.variant_str == variant.name
    metadata = kernels._rust.Metadata.read_from_file(variant / "metadata.json")
    assert (str(metadata.name), metadata.version) == (BUILD["general"]["name"], 0)
    loaded = kernels.get_local_kernel(variant.parents[1], backend="cpu")
    assert loaded.ops.name == NAMESPACE

    def attend(value: Tensor, *points: Tensor) -> Tensor:
        return loaded.deformable_attention(value, SHAPES, *points)

    assert_same(attend, torch_attention, random_inputs(SHAPES))


def test_the_kernels_package_replaces_the_layer(kernels: types.ModuleType, variant: Path) -> None:
    """On CPU `kernelize` makes a model of transformers use this build, in training too."""
    name = "MultiScaleDeformableAttention"

    class Marked(modeling_deformable_detr.MultiScaleDeformableAttention):
        """As transformers marks its own, if it accepts the version of `kernels`."""

    kernels.replace_kernel_forward_from_hub(Marked, name)
    reference, model = Marked(), torch.nn.Sequential(Marked())
    # The folder itself: with torch for CUDA, `kernels` looks for variants for CUDA only.
    layer = kernels.LocalLayerRepository(variant, layer_name=name)
    with kernels.use_kernel_mapping({name: {"cpu": layer}}, inherit_mapping=False):
        mode = kernels.Mode.TRAINING | kernels.Mode.TORCH_COMPILE
        kernels.kernelize(model, mode=mode, device="cpu", use_fallback=False)
    assert model[0].forward.__func__ is not reference.forward.__func__

    def call(module: torch.nn.Module, value: Tensor, *points: Tensor) -> Tensor:
        tensors = (torch.tensor(SHAPES), SHAPES, torch.tensor(starts(SHAPES)))
        return module(value, *tensors, *points, 64)

    inputs = random_inputs(SHAPES)
    assert_same(*(functools.partial(call, m) for m in (model[0], reference)), inputs)
    assert NAMESPACE in call(model[0], *inputs).grad_fn.name()
