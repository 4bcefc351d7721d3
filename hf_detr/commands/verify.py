"""Measure a published checkpoint on COCO, and compare it with its authors' figure.

hf-detr verify facebook/detr-resnet-50 --coco COCO

COCO is the folder with annotations/instances_val2017.json and val2017. A panoptic checkpoint, whose
figure is PQ, needs annotations/panoptic_val2017.json and the folder annotations/panoptic_val2017.
One line is printed, to paste into an issue or a README. Of all 5000 images, the exit status is 1 if
the difference is more than 0.2; of fewer, the figure says less, and the status is 0.
"""

import argparse
import random
import sys
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING

from ..data.coco_layouts import find_coco, find_panoptic
from .options import add_device_options, model_name, positive

if TYPE_CHECKING:
    from ..checkpoints.published_checkpoints import PublishedCheckpoint
    from ..data.dataset import DetectionDataset
    from ..models.pretrained_model import DetectionPreTrainedModel

NUM_IMAGES = 5000  # of COCO 2017 val
TOLERANCE = 0.2  # percent; the authors' figures are rounded, and images are resized differently
PACKAGES = ("hf_detr", "torch", "transformers", "timm")
SEED = 0  # of the random part


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the command's options."""
    help = "name on the Hub, or folder of the same name, of a checkpoint in model_cards/"
    parser.add_argument("checkpoint", type=model_name, help=help)
    parser.add_argument("--coco", type=Path, required=True, help="folder of COCO 2017")
    help = "evaluate a random part of this size, always the same one; default: all"
    parser.add_argument("--images", type=positive, metavar="N", help=help)
    add_device_options(parser)
    parser.add_argument("--batch-size", type=positive, default=8, help="default 8")
    help = "processes that load images, default 0"
    parser.add_argument("--num-workers", type=int, default=0, help=help)


def check(parsed: argparse.Namespace) -> None:
    """Check the arguments."""
    if _find_boxes(parsed.coco) is None and find_panoptic(parsed.coco, "val") is None:
        raise FileNotFoundError(
            f"{parsed.coco} doesn't have annotations/instances_val2017.json and val2017; expected "
            "the folder of COCO 2017."
        )


def _find_boxes(folder: Path) -> tuple[Path, Path] | None:
    """Find the annotation file and the image folder of COCO 2017 val, not of another year."""
    file, images, *_ = find_coco(folder, "val") or (Path(), Path())
    return (file, images) if file.name == "instances_val2017.json" else None


def run(parsed: argparse.Namespace) -> int:
    """Evaluate the checkpoint and compare; return the exit status."""
    from ..checkpoints.coco_labels import coco_id2label
    from ..evaluation.evaluate import evaluate, evaluate_panoptic
    from ..inference.model_loading import load_model

    published = _find_published(parsed.checkpoint)
    dataset = _read(parsed, published)
    model, processor = load_model(
        parsed.checkpoint, parsed.device, published.has_masks, parsed.dtype
    )
    # On the Hub some names of stuff are missing.
    labels = model.config.id2label
    model.config.id2label = coco_id2label(len(labels)) or labels
    given = model, processor, dataset, parsed.batch_size, parsed.num_workers
    figure = 100 * (
        evaluate_panoptic(*given)["pq"] if published.has_masks else evaluate(*given)["AP"]
    )
    difference = round(figure - published.metrics[published.main_metric], 2)
    print(_line(parsed, published, model, figure, difference, len(dataset)))
    if len(dataset) == NUM_IMAGES:
        return int(abs(difference) > TOLERANCE)
    # Twice the standard error, estimated as 0.35 points of all images; it goes as 1 / sqrt(images).
    deviation = 2 * 0.35 * (NUM_IMAGES / len(dataset)) ** 0.5
    print(
        f"This is a part of the {NUM_IMAGES} images: comparable within roughly ±{deviation:.1f} "
        "points only, so it is no proof that the checkpoint is right or wrong.",
        file=sys.stderr,
    )
    return 0


def _find_published(name: str) -> "PublishedCheckpoint":
    """Return the published checkpoint of a name or folder.

    Raises:
        ValueError: if it isn't known, or its authors published no figure on COCO.
    """
    from ..checkpoints.published_checkpoints import find_published_checkpoint, published_checkpoints

    published = find_published_checkpoint(name)
    if published is None:
        known = ", ".join(one.name for one in published_checkpoints() if one.is_on_coco)
        raise ValueError(
            f"{name} isn't a published checkpoint; expected one of {known}, or a folder of the "
            "same name. `hf-detr evaluate` measures any model."
        )
    if not published.is_on_coco:
        raise ValueError(f"The authors of {name} published no figure on COCO to compare with.")
    return published


def _read(parsed: argparse.Namespace, published: "PublishedCheckpoint") -> "DetectionDataset":
    """Read the images and annotations that the authors' figure is about.

    Raises:
        ValueError: if the folder doesn't have them.
    """
    from ..data.coco import read_coco, read_coco_panoptic

    if published.has_masks:
        if (found := find_panoptic(parsed.coco, "val")) is None:
            raise ValueError(
                f"{published.name} is compared by PQ, for which {parsed.coco} needs "
                "annotations/panoptic_val2017.json and the PNG files in "
                "annotations/panoptic_val2017."
            )
        dataset = read_coco_panoptic(*found)
    elif (found := _find_boxes(parsed.coco)) is None:
        raise ValueError(
            f"{published.name} is compared by AP, for which {parsed.coco} needs "
            "annotations/instances_val2017.json."
        )
    else:
        dataset = read_coco(*found)
    if parsed.images is None or parsed.images >= len(dataset):
        parsed.images = None  # all of the folder, which aren't a random part
        return dataset
    chosen = random.Random(SEED).sample(range(len(dataset)), parsed.images)
    return dataset.subset(sorted(chosen))


def _line(
    parsed: argparse.Namespace,
    published: "PublishedCheckpoint",
    model: "DetectionPreTrainedModel",
    figure: float,
    difference: float,
    num_images: int,
) -> str:
    """Return the line to paste."""
    from ..inference.model_loading import model_revision

    name, authors = published.main_metric, published.metrics[published.main_metric]
    part = f" (random, seed {SEED})" if parsed.images else ""
    revision = model_revision(model)
    device = str(model.device)
    if model.device.type == "cuda":
        import torch

        device = torch.cuda.get_device_name(model.device)
    versions = ", ".join(f"{package} {_version(package)}" for package in PACKAGES)
    dtype = str(model.dtype).removeprefix("torch.")
    return (
        f"{published.name} ({revision[:12] if revision else 'unknown revision'}): "
        f"{name} {figure:.2f}, authors {authors} ({difference:+.2f}), "
        f"{num_images} images of COCO 2017 val{part}; {versions}; {device}, {dtype}"
    )


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "(not installed)"
