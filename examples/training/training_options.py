"""Options of the training example, with defaults of the papers and for small data."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from transformers.hf_argparser import HfArg

import hf_detr


@dataclass(frozen=True)
class Recipe:
    """A paper's recipe; all divide the learning rate by 10 after 80 % of the epochs."""

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
    """Common options."""

    data: Path = HfArg(help="folder with train and val (or test), or COCO's own folder")
    model: str = HfArg(
        help="detr, conditional_detr or deformable_detr for a new model as in the paper; a .json "
        "file with another architecture; or folder or Hub name of a trained model"
    )
    small_data: bool = HfArg(
        default=False,
        help="for a few thousand images or fewer: small batches, averaged weights, warm-up, cosine "
        "schedule, and few queries in a new model",
    )
    output: Path = HfArg(default=Path("trained"), help="folder for all results")
    epochs: int | None = HfArg(default=None, help="default: the paper's")
    batch_size: int | None = HfArg(
        default=None, help="images per step, over all processes; default: the paper's"
    )
    micro_batch_size: int = HfArg(
        default=2, help="images per forward pass; gradients are accumulated over a step"
    )
    lr: float | None = HfArg(default=None, help="learning rate; default: the paper's")
    schedule: Literal["step", "cosine"] = HfArg(
        default="step", help="schedule of the learning rate"
    )
    image_size: int | None = HfArg(
        default=None, help="shortest edge in pixels; default: the model's, 800 in the papers"
    )
    precision: Literal["no", "bf16", "fp16"] = HfArg(default="no", help="mixed precision")
    ema: float = HfArg(
        default=0.0, help="decay of averaged weights, such as 0.999; 0 disables averaging"
    )
    workers: int = HfArg(default=2, help="workers that load images, per training process")
    seed: int = HfArg(default=0, help="seed of weights, order, augmentation and dropout")
    resume: bool = HfArg(default=False, help="resume from the newest complete checkpoint")
    overfit: int = HfArg(
        default=0, help="health check: overfit this number of images and report whether it worked"
    )


@dataclass
class FurtherOptions:
    """Further options."""

    backbone_weights: Path | None = HfArg(
        default=None, help=".safetensors or .pth file with the weights of a new model's backbone"
    )
    warmup_steps: int = HfArg(default=0, help="steps in which the learning rate increases linearly")
    weight_decay: float = HfArg(default=1e-4, help="weight decay of AdamW")
    max_grad_norm: float = HfArg(default=0.1, help="norm at which gradients are clipped")
    slow_factor: float = HfArg(
        default=0.1,
        help="factor of the learning rate for backbone, sampling offsets and reference points",
    )
    frozen_stages: int = HfArg(default=1, help="number of frozen stages of the backbone")
    crop: float = HfArg(default=0.5, help="probability of a random crop")
    query_groups: int = HfArg(
        default=0,
        help="additional groups of queries in training, which aren't saved: faster convergence, "
        "slower steps",
    )
    no_augmentation: bool = HfArg(default=False, help="train without augmentation")
    panoptic: bool = HfArg(default=False, help="also train a mask head, with COCO panoptic data")
    freeze_detector: bool = HfArg(default=False, help="with --panoptic: train only the mask head")
    save_every: int = HfArg(
        default=1000, help="steps between checkpoints, in addition to each epoch"
    )
    evaluate_every: int = HfArg(default=1, help="epochs between evaluations")
    skip_nonfinite: bool = HfArg(default=False, help="skip steps whose loss isn't finite")
    gradient_checkpointing: bool = HfArg(default=False, help="use less memory and more time")
    compile: bool = HfArg(default=False, help="torch.compile the model")
    push_to: str | None = HfArg(default=None, help="repository on the Hub to publish the model")
    tracker: Literal["none", "tensorboard", "trackio"] = HfArg(
        default="none", help="tracker of metrics"
    )


# Options that may differ when a training is resumed.
MAY_CHANGE = (
    *("output", "resume", "workers", "push_to", "save_every", "skip_nonfinite", "tracker"),
    *("micro_batch_size", "gradient_checkpointing", "compile", "data"),
)


def fill_in(options: Options, further: FurtherOptions, model_type: str, num_images: int) -> None:
    """Set missing options to defaults of the paper, for small data or for the health check."""
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
