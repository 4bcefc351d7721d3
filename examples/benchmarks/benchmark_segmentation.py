"""Compare post-processing and training memory of panoptic DETR with transformers.

    python examples/benchmarks/benchmark_segmentation.py    # about three minutes on two cores
    python examples/benchmarks/benchmark_segmentation.py --quick    # a short test with small inputs

Times are medians in CPU milliseconds of both sides running alternately. Memory is the peak of a
training step without model, weights and inputs, measured in separate processes on Linux. Numbers
are printed only if the results of both sides are equal.
"""

import argparse
import multiprocessing
import os
import sys
import tempfile
from functools import partial

os.environ.setdefault("HF_DETR_REGISTER", "0")  # don't replace transformers' classes

import torch
import transformers
from benchmark_timing import medians, parse_arguments, peak_memory, progress
from torch import Tensor
from torch.nn import functional as F

import hf_detr

NUM_LABELS = 250
DIFFERENT_PIXELS = 2e-3  # allowed fraction; rounding decides between nearly equal queries


def report(name: str, ours: float, theirs: float) -> None:
    print(f"{name:44}{ours:10.1f}{theirs:14.1f}{theirs / ours:9.2f}x", flush=True)


# ---------------------------------------------------------------- post-processing


def trained_outputs(num_queries: int, height: int, width: int) -> transformers.utils.ModelOutput:
    """Outputs similar to a trained model's: logits (1, Q, 251) and masks (1, Q, h, w).

    Two of five queries have a high score, and their masks divide the image with rough borders. The
    others predict no object, with similar masks.
    """
    generator = torch.Generator().manual_seed(0)
    num_objects = 2 * num_queries // 5
    y, x = torch.linspace(0, 1, height)[:, None], torch.linspace(0, 1, width)
    at_y, at_x, extent = torch.rand(3, num_objects, 1, 1, generator=generator)
    rough = torch.randn(1, num_objects, height // 8, width // 8, generator=generator)
    distance = ((y - at_y) ** 2 + (x - at_x) ** 2).sqrt() / (0.2 + extent)
    distance += 0.02 * F.interpolate(rough, size=(height, width), mode="bicubic")[0]
    two_nearest = distance.topk(2, dim=0, largest=False).values
    rival = torch.where(distance == two_nearest[0], two_nearest[1], two_nearest[0])
    objects = 40 * (rival - distance).clamp(-0.3, 0.3)
    masks = objects[torch.arange(num_queries) % num_objects]

    logits = torch.randn(num_queries, NUM_LABELS + 1, generator=generator)
    classes = torch.randint(NUM_LABELS, (num_queries,), generator=generator)
    classes[num_objects:] = NUM_LABELS
    logits[torch.arange(num_queries), classes] += 10
    order = torch.randperm(num_queries, generator=generator)
    return transformers.utils.ModelOutput(logits=logits[order][None], pred_masks=masks[order][None])


def check_maps(got: list[Tensor], expected: list[Tensor]) -> None:
    for one, other in zip(got, expected, strict=True):
        if (one != other).float().mean() > DIFFERENT_PIXELS:
            raise SystemExit("The segmentation maps differ.")


def benchmark_post_processing(is_quick: bool, rounds: int) -> None:
    outputs = trained_outputs(30, 50, 66) if is_quick else trained_outputs(100, 200, 267)
    size = (200, 266) if is_quick else (800, 1066)
    name = f"{outputs.logits.shape[1]} queries, {size[0]} x {size[1]}"
    processors = hf_detr.DetrImageProcessor(), transformers.DetrImageProcessor()
    for kind in ("panoptic", "instance", "semantic"):
        options = {"label_ids_to_fuse": set()} if kind == "panoptic" else {}
        ours, theirs = (
            partial(
                getattr(processor, f"post_process_{kind}_segmentation"),
                outputs,
                target_sizes=[size],
                **options,
            )
            for processor in processors
        )
        got, expected = ours(), theirs()
        if kind == "semantic":
            check_maps(got, expected)
        else:
            (one,), (other,) = got, expected
            if one["segments_info"] != other["segments_info"]:
                raise SystemExit("The segments differ.")
            check_maps([one["segmentation"]], [other["segmentation"]])
        seconds = medians(ours, theirs, rounds=rounds)
        report(f"{kind}, {name}", *(1e3 * value for value in seconds))


# ---------------------------------------------------------------- memory of a training step


def make_batch(size: int, num_objects: int) -> tuple[Tensor, list[dict[str, Tensor]]]:
    """Two random images (2, 3, size, size) and labels with elliptic masks."""
    generator = torch.Generator().manual_seed(0)
    axis = torch.linspace(0, 1, size)
    labels = []
    for _ in range(2):
        centers = 0.2 + 0.6 * torch.rand(num_objects, 2, generator=generator)
        sizes = 0.1 + 0.3 * torch.rand(num_objects, 2, generator=generator)
        along = [(axis - centers[:, i, None]) / sizes[:, i, None] for i in (0, 1)]
        labels.append(
            {
                "class_labels": torch.randint(NUM_LABELS, (num_objects,), generator=generator),
                "boxes": torch.cat([centers, sizes], dim=1),
                "masks": along[1][:, :, None] ** 2 + along[0][:, None] ** 2 < 0.25,
            }
        )
    return torch.randn(2, 3, size, size, generator=generator), labels


def training_step(package: str, folder: str, size: int, num_objects: int) -> tuple[float, float]:
    """Return loss and peak memory in MiB of a training step; runs in a new process."""
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    torch.set_num_threads(1)
    module = {"hf_detr": hf_detr, "transformers": transformers}[package]
    model = module.DetrForSegmentation.from_pretrained(folder).train()
    images, labels = make_batch(size, num_objects)

    def step() -> float:
        loss = model(pixel_values=images, labels=labels).loss
        loss.backward()
        return loss.item()

    return peak_memory(step)


def benchmark_memory(is_quick: bool) -> None:
    """Measure a training step of the model without dropout on two images.

    With 20 objects per image, transformers needs 6 GiB.
    """
    backbone, size, num_objects = ("resnet18", 128, 4) if is_quick else ("resnet50", 320, 20)
    torch.manual_seed(0)
    no_dropout = dict.fromkeys(("dropout", "attention_dropout", "activation_dropout"), 0.0)
    # transformers computes auxiliary losses differently.
    config = hf_detr.DetrConfig(
        backbone=backbone, num_labels=NUM_LABELS, auxiliary_loss=False, **no_dropout
    )
    context = multiprocessing.get_context("spawn")
    results = []
    with tempfile.TemporaryDirectory() as folder:
        hf_detr.DetrForSegmentation(config).save_pretrained(folder)
        for package in ("hf_detr", "transformers"):
            progress(f"  a training step of {package}")
            with context.Pool(1) as pool:
                results.append(pool.apply(training_step, (package, folder, size, num_objects)))
    progress("")
    (loss, ours), (expected, theirs) = results
    if abs(loss - expected) > 1e-4 * expected:
        raise SystemExit(f"The losses differ: {loss} and {expected}.")
    report(f"MiB, {backbone}, 2 x {size} x {size}, {num_objects} objects each", ours, theirs)


def main() -> None:
    arguments = parse_arguments(argparse.ArgumentParser(description=__doc__.splitlines()[0]))
    print(f"{'':44}{'hf_detr':>10}{'transformers':>14}{'ratio':>10}")
    benchmark_post_processing(arguments.quick, arguments.rounds)
    if sys.platform == "linux":
        benchmark_memory(arguments.quick)


if __name__ == "__main__":
    main()
