"""Compare the speed of hf_detr and transformers on the same weights and inputs, in one run.

    python examples/benchmark.py            # about ten minutes on two cores
    python examples/benchmark.py --quick    # two rounds of everything: does it run?

Rounds of both sides alternate, so that whatever else the machine does slows both; medians are
printed, in milliseconds of CPU. No time is printed unless both sides give the same result.
"""

import argparse
import os
import tempfile
from pathlib import Path

os.environ.setdefault("HF_DETR_REGISTER", "0")  # transformers' side stays transformers' own

import numpy as np
import torch
import transformers
from benchmark_timing import medians
from PIL import Image
from torch import Tensor

import hf_detr


def report(name: str, ours: float, theirs: float) -> None:
    print(f"{name:34}{ours * 1e3:12.1f}{theirs * 1e3:14.1f}{theirs / ours:9.2f}x", flush=True)


# ---------------------------------------------------------------- loss + matcher


def random_predictions(batch_size: int, num_queries: int) -> tuple[list[Tensor], list[dict]]:
    """Logits (6, B, Q, 92) and boxes (6, B, Q, 4) of six layers, and 7 to 20 objects an image."""
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
    """Forward and backward of matching and loss, six decoder layers."""
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
    report(name, *medians(ours, theirs, rounds))


# ---------------------------------------------------------------- image processor


def make_images(count: int, width: int = 640, height: int = 480) -> list[Image.Image]:
    """Smooth images with some noise, all different."""
    generator = np.random.default_rng(0)
    images = []
    for _ in range(count):
        coarse = generator.integers(0, 256, (12, 16, 3), dtype=np.uint8)
        smooth = Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)
        noise = generator.integers(-8, 9, (height, width, 3))
        images.append(Image.fromarray((np.asarray(smooth) + noise).clip(0, 255).astype("u1")))
    return images


def benchmark_processor(batch_size: int, rounds: int) -> None:
    """Photographs of 640 x 480 to a normalised batch of 1066 x 800."""
    images = make_images(batch_size)
    ours, theirs = hf_detr.DetrImageProcessor(), transformers.DetrImageProcessor()
    got, expected = ours(images, return_tensors="pt"), theirs(images, return_tensors="pt")
    torch.testing.assert_close(got["pixel_values"], expected["pixel_values"], rtol=0, atol=1e-6)
    torch.testing.assert_close(got["pixel_mask"], expected["pixel_mask"], rtol=0, atol=0)
    seconds = medians(
        lambda: ours(images, return_tensors="pt"),
        lambda: theirs(images, return_tensors="pt"),
        rounds,
    )
    report(f"image processor, {batch_size} images", *seconds)


# ---------------------------------------------------------------- forward


@torch.no_grad()
def benchmark_forward(prefix: str, backbone: str, height: int, width: int, rounds: int) -> None:
    """Inference on one image by the classes whose names begin with `prefix`."""
    torch.manual_seed(0)
    config_class, detector = f"{prefix}Config", f"{prefix}ForObjectDetection"
    config = getattr(hf_detr, config_class)(backbone=backbone, num_labels=91, auxiliary_loss=False)
    model = getattr(hf_detr, detector)(config).eval()
    with tempfile.TemporaryDirectory() as folder:
        model.save_pretrained(folder)
        peer = getattr(transformers, detector).from_pretrained(Path(folder))
    image = torch.randn(1, 3, height, width)
    mask = torch.ones(1, height, width, dtype=torch.long)
    got, expected = model(image, mask), peer(pixel_values=image, pixel_mask=mask)
    torch.testing.assert_close(got.logits, expected.logits, rtol=0, atol=1e-4)
    torch.testing.assert_close(got.pred_boxes, expected.pred_boxes, rtol=0, atol=1e-5)
    seconds = medians(
        lambda: model(image, mask), lambda: peer(pixel_values=image, pixel_mask=mask), rounds
    )
    report(f"{prefix} {backbone}, 1x{height}x{width}", *seconds)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="two rounds, small inputs")
    parser.add_argument("--rounds", type=int, default=11)
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    if arguments.rounds < 1 or arguments.threads < 1:
        parser.error("--rounds and --threads must be at least 1")
    torch.set_num_threads(arguments.threads)
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    rounds = 2 if arguments.quick else arguments.rounds

    print(
        f"torch {torch.__version__}, transformers {transformers.__version__}, "
        f"{arguments.threads} thread(s), medians of {rounds} interleaved rounds, CPU ms"
    )
    print(f"{'':34}{'hf_detr':>12}{'transformers':>14}{'ratio':>10}")
    for batch_size, num_queries in [(2, 100), (2, 300), (16, 100), (16, 300)]:
        benchmark_loss(batch_size, num_queries, rounds)
    for batch_size in (1, 8):
        benchmark_processor(batch_size, rounds)
    for prefix in ("Detr", "DeformableDetr"):
        if arguments.quick:
            benchmark_forward(prefix, "resnet18", 256, 320, rounds)
        else:
            benchmark_forward(prefix, "resnet50", 800, 1066, rounds)


if __name__ == "__main__":
    main()
