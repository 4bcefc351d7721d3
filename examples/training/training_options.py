"""Options of the training example, with defaults of the papers and for small data."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

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
    micro_batch_size: int | None = HfArg(
        default=None,
        help="images per forward pass, default 2, or 1 for an odd --batch_size; gradients are "
        "accumulated over a step",
    )
    lr: float | None = HfArg(default=None, help="learning rate; default: the paper's")
    schedule: Literal["step", "cosine"] | None = HfArg(
        default=None, help="schedule of the learning rate; default: step, as in the papers"
    )
    image_size: int | None = HfArg(
        default=None, help="shortest edge in pixels; default: the model's, 800 in the papers"
    )
    precision: Literal["no", "bf16", "fp16"] = HfArg(default="no", help="mixed precision")
    ema: float | None = HfArg(
        default=None,
        help="decay of averaged weights, such as 0.999; default: 0, which disables averaging",
    )
    workers: int | None = HfArg(
        default=None, help="workers that load images, per training process, default 2"
    )
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
    warmup_steps: int | None = HfArg(
        default=None, help="steps in which the learning rate increases linearly, default 0"
    )
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
    evaluate_every: int | None = HfArg(default=None, help="epochs between evaluations, default 1")
    skip_nonfinite: bool = HfArg(default=False, help="skip steps whose loss isn't finite")
    gradient_checkpointing: bool = HfArg(default=False, help="use less memory and more time")
    compile: bool = HfArg(default=False, help="torch.compile the model")
    push_to: str | None = HfArg(default=None, help="repository on the Hub to publish the model")
    tracker: Literal["none", "tensorboard", "trackio"] = HfArg(
        default="none", help="tracker of metrics"
    )


# Options that may differ when a training is resumed
MAY_CHANGE = (
    *("output", "resume", "workers", "push_to", "save_every", "skip_nonfinite", "tracker"),
    *("micro_batch_size", "gradient_checkpointing", "compile", "data"),
)
# Lowest values of options
LOWEST = {
    **dict.fromkeys(("epochs", "batch_size", "micro_batch_size", "image_size"), 1),
    **dict.fromkeys(("save_every", "evaluate_every"), 1),
    **dict.fromkeys(("workers", "seed", "overfit", "warmup_steps", "query_groups"), 0),
}


def check_options(options: Options, further: FurtherOptions) -> None:
    """Check the options before anything is read.

    Raises:
        ValueError: if a number is too low, or an option has no effect with the others.
    """
    given = {**vars(options), **vars(further)}
    for name, lowest in LOWEST.items():
        if given[name] is not None and given[name] < lowest:
            raise ValueError(f"--{name} is {given[name]}; expected at least {lowest}.")
    is_new = options.model in RECIPES or options.model.endswith(".json")
    if further.backbone_weights is not None and not is_new:
        raise ValueError(
            f"--backbone_weights is for a new model; {options.model} is loaded with its own."
        )
    if further.freeze_detector and not further.panoptic:
        raise ValueError("--freeze_detector leaves nothing to train without --panoptic.")


def fill_in(options: Options, further: FurtherOptions, model_type: str, num_images: int) -> None:
    """Set missing options to defaults of the paper, for small data or for the health check."""
    recipe = RECIPES[model_type]
    defaults: dict[str, Any] = {
        "lr": recipe.lr,
        "epochs": recipe.epochs,
        "batch_size": recipe.batch_size,
        "schedule": "step",
        "ema": 0.0,
        "workers": 2,
        "warmup_steps": 0,
        "evaluate_every": 1,
    }
    if options.small_data:
        defaults |= {"batch_size": 8, "ema": 0.998, "schedule": "cosine", "warmup_steps": 200}
    if options.overfit:
        defaults |= {"lr": 5 * recipe.lr, "epochs": 300, "workers": 0}
        defaults |= {"batch_size": num_images, "evaluate_every": options.epochs or 300}
    batch_size = options.batch_size or defaults["batch_size"]
    defaults["micro_batch_size"] = batch_size if options.overfit else 2 - batch_size % 2
    for group in (options, further):
        for name in vars(group).keys() & defaults.keys():
            if getattr(group, name) is None:
                setattr(group, name, defaults[name])
