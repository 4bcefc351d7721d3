"""Options of the training example, and what the papers and small data set them to."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from transformers.hf_argparser import HfArg

import hf_detr


@dataclass(frozen=True)
class Recipe:
    """How a paper trains; all drop the learning rate to a tenth after 80 % of the epochs."""

    lr: float
    epochs: int
    batch_size: int
    processor: type


RECIPES = {
    "detr": Recipe(1e-4, 500, 64, hf_detr.DetrImageProcessor),
    "conditional_detr": Recipe(1e-4, 50, 32, hf_detr.ConditionalDetrImageProcessor),
    "deformable_detr": Recipe(2e-4, 50, 32, hf_detr.DeformableDetrImageProcessor),
}


@dataclass
class Options:
    """What one usually chooses."""

    data: Path = HfArg(help="folder with train and val (or test), or COCO's own folder")
    model: str = HfArg(
        help="what to start from: detr, conditional_detr or deformable_detr as in the paper; a "
        ".json file with another architecture; or a trained model's folder or name on the Hub"
    )
    small_data: bool = HfArg(
        default=False,
        help="for some thousand images or fewer: small batches, so more steps, averaged weights, "
        "a warm-up, a cosine, and for a fresh model few queries",
    )
    output: Path = HfArg(default=Path("trained"), help="folder for all results")
    epochs: int | None = HfArg(default=None, help="default: the paper's")
    batch_size: int | None = HfArg(
        default=None, help="images of a step, over all processes; default: the paper's"
    )
    micro_batch_size: int = HfArg(
        default=2, help="images that a process runs at once; gradients of a step add up"
    )
    lr: float | None = HfArg(default=None, help="learning rate; default: the paper's")
    schedule: Literal["step", "cosine"] = HfArg(default="step", help="of the learning rate")
    image_size: int | None = HfArg(
        default=None, help="shortest edge in pixels; default: the model's, 800 in the papers"
    )
    precision: Literal["no", "bf16", "fp16"] = HfArg(default="no", help="mixed precision")
    ema: float = HfArg(default=0.0, help="decay of averaged weights, such as 0.999; 0: don't")
    workers: int = HfArg(default=2, help="processes that load images, for each training process")
    seed: int = HfArg(default=0, help="of weights, order, augmentation and dropout")
    resume: bool = HfArg(default=False, help="go on from the newest complete checkpoint")
    overfit: int = HfArg(
        default=0, help="health check: learn so many images by heart, and say whether it worked"
    )


@dataclass
class FurtherOptions:
    """What one seldom chooses."""

    backbone_weights: Path | None = HfArg(
        default=None, help=".safetensors or .pth with the weights of a fresh model's backbone"
    )
    warmup_steps: int = HfArg(default=0, help="steps until the learning rate is reached")
    weight_decay: float = HfArg(default=1e-4, help="of AdamW")
    max_grad_norm: float = HfArg(default=0.1, help="gradients are clipped to it")
    slow_factor: float = HfArg(
        default=0.1, help="of the learning rate, for backbone, sampling offsets and references"
    )
    frozen_stages: int = HfArg(default=1, help="the backbone's first stages, which don't learn")
    crop: float = HfArg(default=0.5, help="how often the augmentation cuts out a window")
    query_groups: int = HfArg(
        default=0,
        help="groups of queries that learn beside the model's own and aren't saved: more to learn "
        "from each image, in more time",
    )
    no_augmentation: bool = HfArg(default=False, help="learn from the images as they are")
    panoptic: bool = HfArg(default=False, help="learn masks too, from COCO panoptic data")
    freeze_detector: bool = HfArg(default=False, help="with --panoptic: learn masks alone")
    save_every: int = HfArg(default=1000, help="steps between checkpoints, beside every epoch's")
    evaluate_every: int = HfArg(default=1, help="epochs between evaluations")
    skip_nonfinite: bool = HfArg(default=False, help="leave out steps whose loss isn't finite")
    gradient_checkpointing: bool = HfArg(default=False, help="less memory, more time")
    compile: bool = HfArg(default=False, help="torch.compile the model")
    push_to: str | None = HfArg(default=None, help="name on the Hub to publish the result as")
    tracker: Literal["none", "tensorboard", "trackio"] = HfArg(default="none", help="log there")


# What may differ when a training is taken up again.
MAY_CHANGE = (
    *("output", "resume", "workers", "push_to", "save_every", "skip_nonfinite", "tracker"),
    *("micro_batch_size", "gradient_checkpointing", "compile", "data"),
)


def fill_in(options: Options, further: FurtherOptions, model_type: str, num_images: int) -> None:
    """Give options that were left out the values of the paper, of small data or of the check."""
    recipe = RECIPES[model_type]
    options.lr = options.lr or recipe.lr * (5 if options.overfit else 1)
    options.epochs = options.epochs or (300 if options.overfit else recipe.epochs)
    if options.small_data:
        options.batch_size = options.batch_size or 8
        options.ema, options.schedule = options.ema or 0.998, "cosine"
        further.warmup_steps = further.warmup_steps or 200
    options.batch_size = options.batch_size or recipe.batch_size
    if options.overfit:
        options.batch_size = options.micro_batch_size = num_images
        options.workers, further.evaluate_every = 0, options.epochs
