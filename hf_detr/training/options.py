"""The options of a training; nothing here needs torch.

Each is stated once: its type, default, help, lowest value, and whether it may change when a
training is resumed.
"""

import json
from dataclasses import asdict, dataclass, field, fields, replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

from ..data.tile_grid import OVERLAP, check_tiles

TRACKERS = ("tensorboard", "trackio", "wandb")
# What a model can be chosen by; not all are computed for all models and data.
AREAS = ("small", "medium", "large")
PANOPTIC_METRICS = ("pq", "sq", "rq")
METRICS = ("AP", "AP50", "AP75", "AR_1", "AR_10", "AR_100", *PANOPTIC_METRICS)
METRICS += tuple(f"{kind}_{area}" for kind in ("AP", "AR") for area in AREAS)
AUTO = "auto"
# The first option of each group in the command's help
GROUPS = {
    "small_data": "recipe",
    "image_size": "model",
    "crop": "augmentation",
    "evaluate_every": "evaluation",
    "micro_batch_size": "speed and memory",
    "resume": "saving and logging",
}
FINE_TUNING_EPOCHS = 50  # of small data; papers train DETR for 500 epochs from a backbone
EVALUATIONS = 10  # of small data
PAPER_WIDTH = 256  # `d_model` that the papers' learning rates are for
PACKAGES = ("accelerate", "hotcoco", "matplotlib")  # of the extra "train"
# Values of options that the papers do without
PLAIN = {
    "schedule": "step",
    "ema": 0.0,
    "warmup_steps": 0,
    "class_factor": 1.0,
    "evaluate_every": 1,
}


def _option(default: Any, help: str, lowest: float | None = None, may_change: bool = False) -> Any:
    metadata = {"help": help, "lowest": lowest, "may_change": may_change}
    if isinstance(default, list):
        return field(default_factory=list, metadata=metadata)
    return field(default=default, metadata=metadata)


@dataclass(frozen=True)
class TrainingOptions:
    """How a model is trained; None means the value of its paper, or of `small_data`.

    `micro_batch_size`, `workers` and other options of speed don't change the result, except by
    rounding, and by dropout and denoising, which are drawn anew for each micro-batch.
    """

    small_data: bool = _option(
        False,
        "for a few thousand images or fewer: small batches, averaged weights, warm-up, cosine "
        "schedule, fast class heads for new classes of a trained model, few queries in a new one",
    )
    epochs: int | None = _option(
        None, "default: the paper's, or 50 to fine-tune with --small-data", 1
    )
    batch_size: int | None = _option(None, "images per step of all processes; default: paper's", 1)
    lr: float | None = _option(
        None,
        "learning rate; default: the paper's, with --small-data times 256 / d_model",
        0,
    )
    schedule: Literal["step", "cosine"] | None = _option(
        None, "schedule of the learning rate; default: step, as in the papers"
    )
    warmup_steps: float | None = _option(
        None,
        "steps in which the learning rate increases linearly; below 1, a share of all steps, such "
        "as 0.05; default: 0",
        0,
    )
    weight_decay: float = _option(1e-4, "weight decay of AdamW", 0)
    max_grad_norm: float = _option(0.1, "norm at which gradients are clipped", 0)
    slow_factor: float = _option(
        0.1,
        "factor of the learning rate for backbone, sampling offsets and reference points",
        0,
    )
    class_factor: float | None = _option(
        None,
        "factor of the learning rate for class heads; default: 1, or with --small-data 10 or 30, "
        "by the type of the model, if classes are new to a trained one",
        0,
    )
    ema: float | None = _option(
        None, "decay of averaged weights, such as 0.999; default: 0, which disables averaging", 0
    )
    query_groups: int = _option(
        0,
        "additional groups of queries in training, which aren't saved: faster convergence, slower "
        "steps",
        0,
    )
    denoising: int | None = _option(
        None,
        "pairs of queries in training that start from noised objects, such as 100; default: the "
        "paper's, which is 0 for all models but DINO",
        0,
    )
    patience: int | None = _option(
        None, "stop after this number of evaluations without a better --metric", 1
    )
    seed: int = _option(0, "seed of weights, order, augmentation and dropout", 0)
    image_size: int | None = _option(
        None, "shortest edge in pixels; default: the model's, 800 in the papers", 1
    )
    num_queries: int | None = _option(None, "object queries; default: the model's", 1)
    backbone_weights: Path | None = _option(
        None, ".safetensors or .pth file with the weights of a new model's backbone"
    )
    frozen_stages: int = _option(1, "number of frozen stages of the backbone", 0)
    freeze: list[str] = _option(
        [], "parts of the model that aren't trained, such as backbone or encoder"
    )
    lora: int = _option(
        0, "rank of LoRA adapters, which are trained with the heads instead of all weights", 0
    )
    tiles: int | None = _option(
        None,
        "train on tiles of this side in pixels instead of larger images; evaluations join the "
        "results of tiles",
    )
    overlap: float = _option(OVERLAP, "share of a tile's side in common with the next one")
    panoptic: bool = _option(False, "also train a mask head, with COCO panoptic data")
    crop: float = _option(0.5, "probability of a random crop", 0)
    no_augmentation: bool = _option(False, "train without augmentation")
    evaluate_every: int | None = _option(
        None, "epochs between evaluations; default: 1, with --small-data a tenth of the epochs", 1
    )
    metric: str | None = _option(
        None, "metric by which the best weights are chosen, such as AP50; default: AP or pq"
    )
    eval_batch_size: int | None = _option(
        None, "images per forward pass in evaluation; default: --micro-batch-size", 1, True
    )
    overfit: int = _option(
        0, "health check: overfit this number of images and report whether it worked", 0
    )
    micro_batch_size: int | str | None = _option(
        None,
        "images per forward pass, default 2; gradients are accumulated over a step; auto: as many "
        "as the GPU's memory holds",
        1,
        True,
    )
    workers: int | None = _option(
        None, "workers that load images, per training process, default 2", 0, True
    )
    precision: Literal["no", "bf16", "fp16"] = _option("no", "mixed precision")
    gradient_checkpointing: bool = _option(False, "use less memory and more time", None, True)
    compile: bool = _option(False, "torch.compile the model", None, True)
    resume: bool = _option(False, "resume from the newest complete checkpoint", None, True)
    save_every: int = _option(1000, "steps between checkpoints, in addition to each epoch", 1, True)
    skip_nonfinite: bool = _option(False, "skip steps whose loss isn't finite", None, True)
    tracker: list[str] = _option([], f"trackers of metrics: {', '.join(TRACKERS)}", None, True)
    push_to: str | None = _option(None, "repository on the Hub to publish the model", None, True)

    def check(self) -> None:
        """Check the options before anything is read.

        Raises:
            ValueError: if a value is too low or unknown, or has no effect with the others.
            TypeError: if a value isn't a list where one is needed.
            FileNotFoundError: if the file of the backbone's weights doesn't exist.
            ImportError: if a package isn't installed.
        """
        for one in fields(self):
            value, lowest = getattr(self, one.name), one.metadata["lowest"]
            if isinstance(value, str) and one.default_factory is list:
                raise TypeError(f"{one.name} is {value!r}; expected a list, as [{value!r}].")
            if one.name == "micro_batch_size" and isinstance(value, str):
                if value != AUTO:
                    raise ValueError(f"{flag(one.name)} is {value!r}; expected a number or {AUTO}.")
            elif lowest is not None and value is not None and not value >= lowest:
                raise ValueError(f"{flag(one.name)} is {value}; expected at least {lowest}.")
        if self.max_grad_norm == 0:
            raise ValueError(
                "--max-grad-norm is 0, which makes all gradients 0; expected a positive number. A "
                "large one, such as inf, doesn't clip."
            )
        if not 0 <= self.crop <= 1:
            raise ValueError(f"--crop is {self.crop}; expected a probability from 0 to 1.")
        if (self.ema or 0) >= 1:
            raise ValueError(f"--ema is {self.ema}; expected a number below 1, such as 0.999.")
        if (self.warmup_steps or 0) > 1 and self.warmup_steps % 1:
            raise ValueError(
                f"--warmup-steps is {self.warmup_steps}; expected a whole number of steps, or a "
                "share below 1."
            )
        check_tiles(self.tiles, self.overlap)
        if self.metric is not None and self.metric not in METRICS:
            raise ValueError(f"--metric is {self.metric!r}; expected one of {METRICS}.")
        self._check_together()
        for tracker in self.tracker:
            if tracker not in TRACKERS:
                raise ValueError(f"--tracker is {tracker!r}; expected some of {TRACKERS}.")
        for package in (*PACKAGES, *self.tracker, *(["peft"] if self.lora else [])):
            if find_spec(package) is None:
                raise ImportError(
                    f"This training needs {package}: `pip install {package}`, or "
                    "`pip install 'hf_detr[train]'` for all that training always needs."
                )

    def _check_together(self) -> None:
        """Check that options have an effect with the others, and that files exist."""
        if len(self.augmentation()) > 1:
            raise ValueError("--crop has no effect with --no-augmentation; omit one of them.")
        if self.overlap != OVERLAP and self.tiles is None:
            raise ValueError("--overlap has no effect without --tiles.")
        if self.metric == "AR_100" and self.tiles is not None:
            raise ValueError("--metric AR_100 isn't computed with --tiles; use another one.")
        if self.metric in PANOPTIC_METRICS and not self.panoptic:
            raise ValueError(f"--metric {self.metric} is computed with --panoptic only.")
        if self.backbone_weights is not None and not Path(self.backbone_weights).is_file():
            raise FileNotFoundError(f"--backbone-weights {self.backbone_weights} isn't a file.")
        if "detector" in self.freeze and not self.panoptic:
            raise ValueError("--freeze detector leaves nothing to train without --panoptic.")
        if self.query_groups and self.denoising:
            raise ValueError("Use --query-groups or --denoising, not both.")
        for name in ("patience", "push_to"):
            if getattr(self, name) is not None and self.overfit:
                raise ValueError(
                    f"{flag(name)} can't be used with --overfit, which evaluates once and saves no "
                    "model."
                )

    def filled(
        self,
        recipe: Any,
        num_images: int,
        *,
        width: int = PAPER_WIDTH,
        is_trained: bool = False,
        has_new_classes: bool = False,
    ) -> "TrainingOptions":
        """Set missing options to the defaults of a paper, of small data or of the health check.

        Args:
            recipe: the paper's `lr`, `epochs` and `batch_size`, and the `class_factor` of new
                classes.
            num_images: number of images for training.
            width: the model's `d_model`; narrow models need larger learning rates.
            is_trained: whether the model is a trained one.
            has_new_classes: whether some classes are new to the trained model.
        """
        defaults: dict[str, Any] = {
            **{"lr": recipe.lr, "epochs": recipe.epochs, "batch_size": recipe.batch_size},
            **{"workers": 2, "metric": "pq" if self.panoptic else "AP"},
            **PLAIN,
        }
        if self.small_data:
            defaults |= {"batch_size": 8, "ema": 0.998, "schedule": "cosine"}
            defaults["warmup_steps"] = 0.05
            if has_new_classes:
                defaults["class_factor"] = recipe.class_factor
            defaults["lr"] = recipe.lr * PAPER_WIDTH / width
            if is_trained:
                defaults["epochs"] = FINE_TUNING_EPOCHS
            # Epochs are short, so that an evaluation after each would take most of the time.
            epochs = self.epochs or defaults["epochs"]
            defaults["evaluate_every"] = max(epochs // EVALUATIONS, 1)
        if self.overfit:
            defaults |= {"lr": 5 * recipe.lr, "epochs": 300, "workers": 0}
            defaults |= {"batch_size": num_images, "evaluate_every": self.epochs or 300}
        batch_size = self.batch_size or defaults["batch_size"]
        defaults["micro_batch_size"] = batch_size if self.overfit else min(2, batch_size)
        given = {name: value for name, value in vars(self).items() if value is not None}
        return replace(self, **{**defaults, **given})

    def augmentation(self) -> list[str]:
        """Return the names of the options of augmentation that were given."""
        names = "crop", "no_augmentation"
        return [name for name in names if getattr(self, name) != getattr(TrainingOptions, name)]

    def recorded(self) -> dict[str, Any]:
        """Return the options that affect the result, as in JSON."""
        kept = {one.name for one in fields(self) if not one.metadata["may_change"]}
        values = {name: value for name, value in asdict(self).items() if name in kept}
        return json.loads(json.dumps(values, default=str))


def check_output(output: Path, resume: bool) -> None:
    """Check that a training doesn't write over another one.

    Raises:
        ValueError: if it has checkpoints which aren't to be resumed from.
    """
    checkpoints = output / "checkpoints"
    if not resume and any(checkpoints.glob("checkpoint-*")):
        raise ValueError(f"{checkpoints} contains a training; use --resume or another --output.")


def flag(name: str) -> str:
    """Return an option's name on the command line."""
    return f"--{name.replace('_', '-')}"
