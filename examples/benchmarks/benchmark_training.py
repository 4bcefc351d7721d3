"""Compare a training step of hf_detr and transformers: CPU time and peak memory.

    python examples/benchmarks/benchmark_training.py            # half an hour on one core
    python examples/benchmarks/benchmark_training.py --models detr --sizes 800x1066 --rounds 3
    python examples/benchmarks/benchmark_training.py --quick    # a short test

A step is the forward pass, the loss of all decoder layers and the backward pass, of random weights
and two random images with 10 objects each; bfloat16 is that of `torch.autocast`. Times are medians
of steps that run alternately; memory is measured in a process of its own for each side. Both are
printed only if losses and gradients agree without dropout, which is random, and without auxiliary
losses, which transformers computes differently.
"""

import argparse
import multiprocessing
import os
import tempfile

os.environ.setdefault("HF_DETR_REGISTER", "0")  # don't replace transformers' classes

import torch
import transformers
from benchmark_timing import medians, parse_arguments, peak_memory, progress
from torch import nn

import hf_detr
from hf_detr.commands.options import size_hw
from hf_detr.models.variants import VARIANTS

PACKAGES = {"hf_detr": hf_detr, "transformers": transformers}
MODELS = [name for name, row in VARIANTS.items() if not row.only_here]
NUM_LABELS = 91
DTYPES = {"fp32": (torch.float32, 1e-3), "bf16": (torch.bfloat16, 0.05)}  # relative tolerance
DROPOUTS = ("dropout", "attention_dropout", "activation_dropout")


def make_files(name: str, backbone: str, folder: str) -> None:
    """Save a detector with random weights, without dropout and auxiliary losses."""
    torch.manual_seed(0)
    config = VARIANTS[name].config(
        backbone=backbone,
        use_pretrained_backbone=False,
        num_labels=NUM_LABELS,
        auxiliary_loss=False,
        **dict.fromkeys(DROPOUTS, 0.0),
    )
    if hasattr(config, "cls_loss_coefficient"):
        config.cls_loss_coefficient = 1  # transformers has no other
    VARIANTS[name].detector(config).save_pretrained(folder)


def load(package: str, name: str, folder: str) -> nn.Module:
    """Load the files by one of the packages, to train."""
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    detector = getattr(PACKAGES[package], VARIANTS[name].detector.__name__)
    return detector.from_pretrained(folder).train()


def make_batch(size: tuple[int, int], num_objects: int = 10) -> dict:
    """Two random images (2, 3, H, W) and their labels."""
    generator = torch.Generator().manual_seed(0)
    labels = [
        {
            "class_labels": torch.randint(NUM_LABELS, (num_objects,), generator=generator),
            "boxes": 0.2 + 0.3 * torch.rand(num_objects, 4, generator=generator),
        }
        for _ in range(2)
    ]
    return {"pixel_values": torch.randn(2, 3, *size, generator=generator), "labels": labels}


def step(model: nn.Module, batch: dict, dtype: torch.dtype) -> float:
    """Forward pass, loss and backward pass; return the loss."""
    model.zero_grad()
    with torch.autocast("cpu", dtype, enabled=dtype != torch.float32):
        loss = model(**batch).loss
    loss.backward()
    return loss.item()


def train_as_usual(model: nn.Module) -> nn.Module:
    """Turn the auxiliary losses on again."""
    model.config.auxiliary_loss = True
    return model


def disagreement(models: list[nn.Module], batch: dict, kind: str) -> str:
    """In what one step of both models differs; empty if in nothing."""
    dtype, tolerance = DTYPES[kind]
    losses = [step(model, batch, dtype) for model in models]
    if abs(losses[0] - losses[1]) > tolerance * losses[1]:
        return f"losses {losses[0]:.4f} and {losses[1]:.4f}"
    norms = [gradient_norm(model) for model in models]
    if abs(norms[0] - norms[1]) > 10 * tolerance * norms[1]:
        return f"gradients' norms {norms[0]:.4f} and {norms[1]:.4f}"
    return ""


def gradient_norm(model: nn.Module) -> float:
    """Norm of all gradients together."""
    gradients = [p.grad for p in model.parameters() if p.grad is not None]
    return nn.utils.get_total_norm(gradients).item()


def peak(package: str, name: str, folder: str, batch: dict, kind: str) -> float:
    """MiB by which the first step increases the memory of a new process at most."""
    torch.set_num_threads(1)
    model = train_as_usual(load(package, name, folder))
    return peak_memory(lambda: step(model, batch, DTYPES[kind][0]))[1]


def measure(name: str, backbone: str, size: tuple[int, int], kind: str, rounds: int) -> str:
    """A row of the table."""
    title = f"| {name} | {size[0]} x {size[1]} | {kind} |"
    batch = make_batch(size)
    with tempfile.TemporaryDirectory() as folder:
        make_files(name, backbone, folder)
        models = [load(package, name, folder) for package in PACKAGES]
        difference = disagreement(models, batch, kind)
        if difference:
            return f"{title} not timed: {difference} |"
        for model in models:
            train_as_usual(model)
        dtype = DTYPES[kind][0]
        seconds = medians(*(lambda m=m: step(m, batch, dtype) for m in models), rounds=rounds)
        del models
        context, mib = multiprocessing.get_context("spawn"), []
        for package in PACKAGES:
            progress(f"  memory of {package}")
            with context.Pool(1) as pool:
                mib.append(pool.apply(peak, (package, name, folder, batch, kind)))
    progress("")
    cells = [f"{1e3 * s:.0f}" for s in seconds] + [f"{seconds[1] / seconds[0]:.2f}x"]
    cells += [f"{m:.0f}" for m in mib] + [f"{mib[1] / mib[0]:.2f}x"]
    return f"{title} {' | '.join(cells)} |"


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--models", nargs="+", choices=MODELS, default=MODELS)
    parser.add_argument(
        "--sizes", nargs="+", type=size_hw, default=[(800, 1066), (128, 128)], metavar="HxW"
    )
    parser.add_argument("--dtypes", nargs="+", choices=list(DTYPES), default=list(DTYPES))
    arguments = parse_arguments(parser)
    sizes = [(64, 96)] if arguments.quick else arguments.sizes
    backbone = "resnet18" if arguments.quick else "resnet50"
    columns = ("hf_detr ms", "transformers", "ratio", "hf_detr MiB", "transformers", "ratio")
    print(f"{backbone}, {torch.backends.cpu.get_cpu_capability()}")
    print(f"| model | size | | {' | '.join(columns)} |\n|{'---|' * (3 + len(columns))}")
    for name in arguments.models:
        for size in sizes:
            for kind in arguments.dtypes:
                print(measure(name, backbone, size, kind, arguments.rounds), flush=True)


if __name__ == "__main__":
    main()
