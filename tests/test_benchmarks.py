"""Tests that the benchmarks check results and print all parts."""

import pytest
import torch

from hf_detr.models.variants import VARIANTS
from hf_detr.ops.compiled_attention import find_operators

from .test_examples import run


@pytest.mark.slow
@pytest.mark.parametrize(
    ("script", "options", "parts"),
    [
        (
            "",
            (),
            (
                "loss + matcher",
                "image processor",
                "ceiling",
                *(f"{name} resnet18" for name, row in VARIANTS.items() if not row.only_here),
            ),
        ),
        (
            "",
            ("--parts", "sizes", "--sizes", "64", "96", "--models", "detr"),
            ("detr 1 x 64 x 64", "detr 8 x 96 x 96"),
        ),
        ("_training", ("--dtypes", "fp32", "--models", "detr"), ("| detr | 64 x 96 | fp32 |",)),
        ("_evaluation", (), ("boxes, 20 images", "masks, 20 images", "pycocotools")),
        ("_batches", (), ("sent: bytes", "sent, prepared: bytes", "114 tensors")),
        ("_export", ("--rounds", "1"), tuple(f"| {one} |" for one in VARIANTS)),
        ("_other_models", ("--models", "Mask2Former"), ("| Mask2Former |",)),
        ("_precision", ("--rounds", "1"), tuple(f"| {one} |" for one in VARIANTS)),
        ("_predict", (), ("| hf-detr | 1 |", "| transformers | 1 |")),
        ("_reading", ("--processes", "2"), ("| first |", "| mapped |", "by 2 together")),
        ("_segmentation", (), ("panoptic, 30", "instance, 30", "semantic, 30", "MiB, resnet18")),
    ],
)
def test_benchmarks_run(script: str, options: tuple[str, ...], parts: tuple[str, ...]) -> None:
    """The quick benchmarks check results and print all parts."""
    if script == "_export":
        pytest.importorskip("onnxruntime")
    result = run(f"examples/benchmarks/benchmark{script}.py", "--quick", *options)
    assert result.returncode == 0, result.stderr
    for part in parts:
        assert part in result.stdout


@pytest.mark.slow
def test_gpu_benchmark_runs() -> None:
    """On the CPU its results are equal and all parts are printed; rows without time are named."""
    script = ("examples/benchmarks/gpu.py", "--device", "cpu", "--quick", "--models", "detr")
    result = run(*script, "--modes", "eager")
    assert result.returncode == 0, result.stderr
    parts = ("keys' biases", "| cpu float32, TF32 |")
    for part in (*parts, "| detr | inference | bf16 | eager | 2 |", "| detr | training | fp32 |"):
        assert part in result.stdout
    assert "not timed" not in result.stdout
    result = run(*script, "--parts", "training", "--minutes", "0")
    assert result.stdout.count("not measured") == 4, result.stderr


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_gpu_benchmark_needs_a_gpu() -> None:
    """Without one it says so in a sentence."""
    result = run("examples/benchmarks/gpu.py")
    assert result.returncode == 1
    assert result.stderr.startswith("torch sees no CUDA device") and result.stderr.count("\n") == 1


@pytest.mark.slow
def test_operator_benchmark_runs() -> None:
    """The benchmark checks and measures all implementations."""
    namespace, reason = find_operators("cpu")
    if namespace is None:
        pytest.skip(f"the compiled operator is unavailable: {reason}")
    options = ("--quick", "--threads", "1", "--batch-sizes", "1")
    result = run("examples/benchmarks/benchmark_operator.py", *options)
    assert result.returncode == 0, result.stderr
    for part in ("encoder forward + backward", "decoder forward", "transformers", "peak memory"):
        assert part in result.stdout
