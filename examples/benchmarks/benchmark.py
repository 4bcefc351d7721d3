"""Compare the speed of hf_detr and transformers with the same weights and inputs.

    python examples/benchmarks/benchmark.py            # about ten minutes on two cores
    python examples/benchmarks/benchmark.py --parts model --rounds 3
    python examples/benchmarks/benchmark.py --parts sizes --sizes 64 224 800 --batch-sizes 1 8
    python examples/benchmarks/benchmark.py --quick    # a short test with two rounds

Both sides run alternately, so that load on the machine affects both. Medians are printed in CPU
milliseconds, and only if the results of both sides are equal. The times of whole models are also
compared with the machine's limit: the FLOP of their convolutions and matrix products at the speed
of a single large one.
"""

import argparse
import os
import tempfile
import time
from functools import partial
from pathlib import Path

os.environ.setdefault("HF_DETR_REGISTER", "0")  # don't replace transformers' classes

import numpy as np
import torch
import transformers
from benchmark_timing import medians, parse_arguments
from PIL import Image
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

import hf_detr
from hf_detr.models.variants import VARIANTS, Variant

PARTS = ["loss", "processor", "model"]
MODELS = [name for name, row in VARIANTS.items() if not row.only_here]  # transformers has them too
SIZES, BATCH_SIZES = [64, 128, 224, 400, 800, 1333], [1, 8]  # of the part "sizes"


def report(name: str, ours: float, theirs: float) -> None:
    print(f"{name:34}{ours * 1e3:12.1f}{theirs * 1e3:14.1f}{theirs / ours:9.2f}x", flush=True)


# ---------------------------------------------------------------- loss + matcher


def random_predictions(batch_size: int, num_queries: int) -> tuple[list[Tensor], list[dict]]:
    """Logits (6, B, Q, 92) and boxes (6, B, Q, 4) of six layers; labels with 7 to 20 objects."""
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(6, batch_size, num_queries, 92, generator=generator)
    boxes = torch.rand(6, batch_size, num_queries, 4, generator=generator) * 0.5 + 0.2
    counts = torch.randint(7, 21, (batch_size,), generator=generator).tolist()
    labels = [
        {
            "class_labels": torch.randint(91, (n,), generator=generator),
            "boxes": torch.rand(n, 4, generator=generator) * 0.5 + 0.2,
        }
        for n in counts
    ]
    return [logits.requires_grad_(), boxes.requires_grad_()], labels


def benchmark_loss(batch_size: int, num_queries: int, rounds: int) -> None:
    """Time forward and backward pass of matcher and loss with six decoder layers."""
    from transformers.loss.loss_for_object_detection import ForObjectDetectionLoss

    predictions, labels = random_predictions(batch_size, num_queries)
    config = hf_detr.DetrConfig(num_labels=91)
    with torch.device("meta"):
        criterion = hf_detr.DetrForObjectDetection(config).criterion
    their_config = transformers.DetrConfig(num_labels=91, auxiliary_loss=True)

    def ours() -> list[Tensor]:
        loss, _ = criterion(*predictions, labels)
        return [loss, *torch.autograd.grad(loss, predictions)]

    def theirs() -> list[Tensor]:
        logits, boxes = predictions
        loss, _, _ = ForObjectDetectionLoss(
            logits[-1], labels, logits.device, boxes[-1], their_config, logits, boxes
        )
        return [loss, *torch.autograd.grad(loss, predictions)]

    for got, expected in zip(ours(), theirs(), strict=True):
        torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-5)
    name = f"loss + matcher, b{batch_size} q{num_queries}"
    report(name, *medians(ours, theirs, rounds=rounds))


# ---------------------------------------------------------------- image processor


def make_images(count: int, width: int = 640, height: int = 480) -> list[Image.Image]:
    """Make different smooth images with some noise."""
    generator = np.random.default_rng(0)
    images = []
    for _ in range(count):
        coarse = generator.integers(0, 256, (12, 16, 3), dtype=np.uint8)
        smooth = Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)
        noise = generator.integers(-8, 9, (height, width, 3))
        images.append(Image.fromarray((np.asarray(smooth) + noise).clip(0, 255).astype("u1")))
    return images


def benchmark_processor(batch_size: int, width: int, height: int, rounds: int) -> None:
    """Time the processing of 4:3 images to a normalized batch of 1066 x 800."""
    images = make_images(batch_size, width, height)
    ours, theirs = hf_detr.DetrImageProcessor(), transformers.DetrImageProcessor()
    got, expected = ours(images, return_tensors="pt"), theirs(images, return_tensors="pt")
    torch.testing.assert_close(got["pixel_values"], expected["pixel_values"], rtol=0, atol=1e-6)
    torch.testing.assert_close(got["pixel_mask"], expected["pixel_mask"], rtol=0, atol=0)
    seconds = medians(
        lambda: ours(images, return_tensors="pt"),
        lambda: theirs(images, return_tensors="pt"),
        rounds=rounds,
    )
    report(f"image processor, {batch_size} x {width} x {height}", *seconds)


# ---------------------------------------------------------------- end to end


def make_models(
    variant: Variant, backbone: str, **options: float | bool
) -> tuple[nn.Module, nn.Module]:
    """Make a random detector and load its files with hf_detr and transformers."""
    torch.manual_seed(0)
    options = {"auxiliary_loss": False} | options
    config = variant.config(backbone=backbone, num_labels=91, **options)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name, "model")
        variant.detector(config).save_pretrained(folder)
        ours, theirs = (
            one.from_pretrained(folder).eval()
            for one in (variant.detector, getattr(transformers, variant.detector.__name__))
        )
    return ours, theirs


@torch.no_grad()
def benchmark_end_to_end(
    variant: Variant, backbone: str, size: dict[str, int], rounds: int, ceiling: float
) -> None:
    """Time image processing, model and post-processing of one image.

    Args:
        variant: the model's classes.
        backbone: timm's name.
        size: size of the image processor.
        rounds: number of measurements per side.
        ceiling: maximum FLOP per CPU second of the machine.
    """
    models = make_models(variant, backbone)
    name = variant.config.model_type
    theirs = getattr(transformers, variant.image_processor.__name__)
    processors = [one(size=size) for one in (variant.image_processor, theirs)]
    (image,) = make_images(1)

    def detect(side: int) -> tuple[Tensor, Tensor, Tensor]:
        inputs = processors[side](image, return_tensors="pt")
        outputs = models[side](**inputs)
        (found,) = processors[side].post_process_object_detection(
            outputs, threshold=0, target_sizes=[(image.height, image.width)]
        )
        return outputs.logits, outputs.pred_boxes, found["scores"]

    # Labels and boxes sorted by score aren't compared, because rounding can change their order.
    for got, expected in zip(detect(0), detect(1), strict=True):
        torch.testing.assert_close(got, expected, rtol=0, atol=1e-4)
    ours, theirs = medians(lambda: detect(0), lambda: detect(1), rounds=rounds)
    report(f"{name} {backbone}", ours, theirs)
    pixels = processors[0](image, return_tensors="pt")["pixel_values"]
    flop = count_flop(models[0], pixels)
    shares = [f"{flop / seconds / ceiling:.0%}" for seconds in (ours, theirs)]
    print(f"{'  of the ceiling':34}{shares[0]:>12}{shares[1]:>14}", flush=True)


@torch.no_grad()
def benchmark_sizes(
    variant: Variant, backbone: str, sizes: list[int], batch_sizes: list[int], rounds: int
) -> None:
    """Time the model alone with square images of several sizes."""
    models = make_models(variant, backbone)
    for batch_size in batch_sizes:
        for size in sizes:
            generator = torch.Generator().manual_seed(0)
            pixels = torch.randn(batch_size, 3, size, size, generator=generator)
            outputs = [model(pixels) for model in models]
            for name in ("logits", "pred_boxes"):
                pair = [output[name] for output in outputs]
                torch.testing.assert_close(*pair, rtol=0, atol=1e-4)
            seconds = medians(*(partial(model, pixels) for model in models), rounds=rounds)
            report(f"{variant.config.model_type} {batch_size} x {size} x {size}", *seconds)


def count_flop(model: nn.Module, pixels: Tensor) -> int:
    """Count the FLOP of convolutions and matrix products in a forward pass on the meta device."""
    with torch.device("meta"):
        model = type(model)(model.config).eval()
    with FlopCounterMode(display=False) as counter:
        model(pixels.to("meta"))
    return counter.get_total_flops()


def measure_ceiling(tries: int = 5) -> float:
    """Measure the maximum FLOP per CPU second of a large convolution and matrix product."""
    matrix = torch.randn(2048, 2048)
    maps = torch.randn(1, 256, 100, 134).to(memory_format=torch.channels_last)
    kernels = torch.randn(256, 256, 3, 3).to(memory_format=torch.channels_last)
    best = 0.0
    for function, inputs in (
        (torch.mm, (matrix, matrix)),
        (partial(torch.conv2d, padding=1), (maps, kernels)),
    ):
        with FlopCounterMode(display=False) as counter:
            function(*inputs)
        for _ in range(tries):
            start = time.process_time()
            function(*inputs)
            best = max(best, counter.get_total_flops() / (time.process_time() - start))
    return best


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parts = [*PARTS, "sizes"]  # which takes long
    parser.add_argument("--parts", nargs="+", choices=parts, default=PARTS, help="parts to measure")
    parser.add_argument("--models", nargs="+", choices=MODELS, default=MODELS)
    parser.add_argument("--sizes", nargs="+", type=int, default=SIZES, metavar="PIXELS")
    parser.add_argument("--batch-sizes", nargs="+", type=int, default=BATCH_SIZES, metavar="N")
    arguments = parse_arguments(parser)
    rounds = arguments.rounds
    print(f"{'':34}{'hf_detr':>12}{'transformers':>14}{'ratio':>10}")
    if "loss" in arguments.parts:
        for batch_size, num_queries in [(2, 100), (2, 300), (16, 100), (16, 300)]:
            benchmark_loss(batch_size, num_queries, rounds)
    if "processor" in arguments.parts:
        for batch_size, width, height in [(1, 640, 480), (8, 640, 480), (1, 4000, 3000)]:
            benchmark_processor(batch_size, width, height, rounds)
    backbone, edge = ("resnet18", 256) if arguments.quick else ("resnet50", 800)
    variants = [VARIANTS[name] for name in arguments.models]
    if "model" in arguments.parts:
        ceiling = measure_ceiling()
        print(f"{'ceiling of this machine':34}{ceiling / 1e9:12.1f} GFLOP per CPU second")
        size = {"shortest_edge": edge, "longest_edge": 1333}
        for variant in variants:
            benchmark_end_to_end(variant, backbone, size, rounds, ceiling)
    if "sizes" in arguments.parts:
        for variant in variants:
            benchmark_sizes(variant, backbone, arguments.sizes, arguments.batch_sizes, rounds)


if __name__ == "__main__":
    main()
