"""Train DETR, Conditional DETR or Deformable DETR to detect objects, on one device or many.

    python examples/train_detection.py --data data/garments --model deformable_detr
    accelerate launch --num_processes 4 examples/train_detection.py --data … --model …
    python examples/train_detection.py --data … --model … --overfit 8      # is all well?
    python examples/train_detection.py --data … --model … --resume         # after a crash

The data are a folder in one of the usual layouts of COCO, YOLO or Pascal VOC (see
`detection_folders.py`). Everything that isn't given follows the paper of the model.

A step's images, its augmentation and its dropout follow from the seed and the number of the step.
So a training that was killed goes on exactly as if it hadn't been, and the number of processes
changes nothing but the time. The result is in `--output`: `model`, `README.md` (the model card),
`losses.csv`, and `checkpoints`, of which any can be loaded with `from_pretrained`.
"""

import copy
import json
import math
import sys
from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from accelerate import Accelerator
from backbone_weights import load_backbone_weights
from detection_folders import read_split
from huggingface_hub import HfApi
from torch import Tensor, nn
from torch.utils.data import DataLoader
from tqdm.auto import tqdm
from training_card import write_card
from transformers import (
    AutoConfig,
    AutoImageProcessor,
    AutoModelForImageSegmentation,
    AutoModelForObjectDetection,
    HfArgumentParser,
    PreTrainedConfig,
    PreTrainedModel,
    pipeline,
)
from transformers.hf_argparser import HfArg

import hf_detr
from hf_detr.augmentation import (
    PAPER_SHORTEST_EDGES,
    make_evaluation_transform,
    make_training_transform,
)
from hf_detr.batches import DetectionCollator
from hf_detr.data_check import check_dataset
from hf_detr.detection_data import DetectionDataset
from hf_detr.evaluation import evaluate
from hf_detr.learning_rate import learning_rate_factor
from hf_detr.matcher import NonFinitePredictionError
from hf_detr.model_ema import ModelEma
from hf_detr.training_checkpoint import (
    checkpoint_folder,
    load_checkpoint,
    load_newest_checkpoint,
    save_checkpoint,
)
from hf_detr.training_health import (
    NonFiniteLossError,
    TrainingHealth,
    describe_nonfinite_gradients,
    find_nonfinite_loss,
)
from hf_detr.training_plan import MicroBatch, plan_epoch
from hf_detr.training_state import gather_training_state, restore_training_state


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
    push_to: str | None = HfArg(default=None, help="name on the Hub to publish the result as")


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
    panoptic: bool = HfArg(default=False, help="learn masks too, from COCO panoptic data")
    freeze_detector: bool = HfArg(default=False, help="with --panoptic: learn masks alone")
    save_every: int = HfArg(default=1000, help="steps between checkpoints, beside every epoch's")
    evaluate_every: int = HfArg(default=1, help="epochs between evaluations")
    skip_nonfinite: bool = HfArg(default=False, help="leave out steps whose loss isn't finite")
    gradient_checkpointing: bool = HfArg(default=False, help="less memory, more time")
    compile: bool = HfArg(default=False, help="torch.compile the model")
    tracker: Literal["none", "tensorboard", "trackio"] = HfArg(default="none", help="log there")


# What may differ when a training is taken up again.
MAY_CHANGE = (
    *("output", "resume", "workers", "push_to", "save_every", "skip_nonfinite", "tracker"),
    *("micro_batch_size", "gradient_checkpointing", "compile", "data"),
)


class Training:
    """Everything that changes while a model learns, and the loop that changes it."""

    def __init__(
        self,
        accelerator: Accelerator,
        model: PreTrainedModel,
        processor: Any,
        train_data: DetectionDataset,
        val_data: DetectionDataset,
        options: Options,
        further: FurtherOptions,
    ) -> None:
        self.accelerator, self.options, self.further = accelerator, options, further
        self.processor, self.train_data, self.val_data = processor, train_data, val_data
        optimizer = torch.optim.AdamW(
            model.parameter_groups(options.lr, further.slow_factor),
            weight_decay=further.weight_decay,
        )
        self.criterion = model.criterion
        self.health = TrainingHealth(
            self.criterion.weights,
            self.criterion.classification,
            model.config.id2label,
            further.max_grad_norm,
        )
        self.base_lrs = [group["lr"] for group in optimizer.param_groups]
        self.plain_model = model
        self.model, self.optimizer = accelerator.prepare(model, optimizer)
        self.ema = ModelEma(self.model, options.ema) if options.ema else None
        per_pass = options.micro_batch_size * accelerator.num_processes
        if options.batch_size % per_pass:
            raise ValueError(
                f"--batch-size {options.batch_size} isn't a multiple of --micro-batch-size times "
                f"the number of processes, {options.micro_batch_size} x "
                f"{accelerator.num_processes}."
            )
        self.accumulation_steps = options.batch_size // per_pass
        self.steps_per_epoch = math.ceil(len(train_data) / options.batch_size)
        self.total_steps = self.steps_per_epoch * options.epochs
        self.step = 0  # optimiser steps done
        self.history: list[dict[str, Any]] = []  # metrics of every evaluation
        self.losses = LossLog(options.output / "losses.csv", accelerator.is_main_process)
        self.checkpoints = options.output / "checkpoints"

    # -- the loop --

    def run(self) -> None:
        """Train to the end."""
        bar = tqdm(
            total=self.total_steps,
            initial=self.step,
            unit="step",
            disable=not self.accelerator.is_main_process,
        )
        with bar:
            while self.step < self.total_steps:
                epoch = self.step // self.steps_per_epoch
                for steps in self.rest_of_epoch(epoch):
                    loss = self.take_step(*steps)
                    self.step += 1
                    self.note(loss, bar)
                    if self.step % self.further.save_every == 0:
                        self.save()
                self.say(f"epoch {epoch + 1}", *self.health.report())
                is_last = self.step >= self.total_steps
                if is_last or (epoch + 1) % self.further.evaluate_every == 0:
                    self.evaluate(epoch)
                self.save()

    def rest_of_epoch(self, epoch: int) -> Iterator[tuple[list[MicroBatch], list[dict]]]:
        """The epoch's steps that aren't done yet: what is planned, and the loaded batches."""
        self.train_data.set_epoch(epoch)
        steps = plan_epoch(
            len(self.train_data),
            self.options.micro_batch_size,
            epoch=epoch,
            seed=self.options.seed,
            accumulation_steps=self.accumulation_steps,
            num_processes=self.accelerator.num_processes,
            process_index=self.accelerator.process_index,
        )[self.step % self.steps_per_epoch :]
        loader = iter(
            DataLoader(
                self.train_data,
                batch_sampler=[part.indices for parts in steps for part in parts],
                collate_fn=DetectionCollator(self.processor),
                num_workers=self.options.workers,
                pin_memory=self.accelerator.device.type == "cuda",
            )
        )
        for parts in steps:
            yield parts, [next(loader) for _ in parts]

    def take_step(self, parts: list[MicroBatch], batches: list[dict]) -> float | None:
        """One optimiser step; its loss, or None if it was left out.

        Raises:
            NonFiniteLossError: before any weight has changed.
        """
        self.seed_step()
        for group, lr in zip(self.optimizer.param_groups, self.base_lrs, strict=True):
            group["lr"] = lr * self.lr_factor()
        counted = [batch for part, batch in zip(parts, batches, strict=True) if part.counts]
        labels = [label for batch in counted for label in batch["labels"]]
        total = torch.zeros((), device=self.accelerator.device)
        try:
            with self.criterion.whole_batch(labels):
                for i, (part, batch) in enumerate(zip(parts, batches, strict=True)):
                    is_last = i == len(parts) - 1
                    with nullcontext() if is_last else self.accelerator.no_sync(self.model):
                        loss = self.loss(batch) * part.counts
                        self.accelerator.backward(loss)
                    total += loss.detach()
            self.clip_gradients()
        except NonFiniteLossError as error:
            self.optimizer.zero_grad()
            if not self.further.skip_nonfinite:
                raise
            self.health.add_skipped_step()
            self.say(f"step {self.step} is left out: {error}")
            return None
        self.optimizer.step()
        self.optimizer.zero_grad()
        if self.ema is not None:
            self.ema.update(self.step + 1)
        return self.accelerator.reduce(total, "mean").item()

    def seed_step(self) -> None:
        """Let all random numbers follow from the step, so that none of their states is saved."""
        process = self.accelerator.process_index
        torch.manual_seed(hash((self.options.seed, self.step, process)) % 2**63)

    def lr_factor(self) -> float:
        """What every group's learning rate is multiplied by now."""
        return learning_rate_factor(
            self.step, self.total_steps, self.options.schedule, self.further.warmup_steps
        )

    def loss(self, batch: dict[str, Any]) -> Tensor:
        """Loss of a batch; where it isn't finite in one process, all of them raise."""
        batch = to_device(batch, self.accelerator.device)
        outputs, images = None, []
        try:
            outputs = self.model(**batch)
        except NonFinitePredictionError as error:
            images = error.images
        problem = find_nonfinite_loss(batch, outputs, images)
        if problem is not None:
            raise NonFiniteLossError(f"{problem} {self.where()}")
        self.health.add_batch(outputs, batch["labels"])
        return outputs.loss

    def clip_gradients(self) -> None:
        """Clip the gradients, which are the same in all processes; raise if they aren't finite."""
        norm = self.accelerator.clip_grad_norm_(self.model.parameters(), self.further.max_grad_norm)
        # In float16 gradients overflow now and then; the scaler leaves out such steps by itself.
        if self.accelerator.scaler is None and not norm.isfinite():
            raise NonFiniteLossError(f"{describe_nonfinite_gradients(self.model)} {self.where()}")
        self.health.add_step(norm)

    def where(self) -> str:
        """Where training is, for messages."""
        lrs = [group["lr"] for group in self.optimizer.param_groups]
        return (
            f"This is step {self.step} of {self.total_steps}, with learning rates {lrs}; its "
            "weights are those of the step before, and nothing is saved. --skip_nonfinite leaves "
            "such steps out."
        )

    def say(self, *lines: str) -> None:
        """Print without breaking the progress bar."""
        if self.accelerator.is_main_process:
            tqdm.write("\n    ".join(lines), file=sys.stderr)

    # -- looking and keeping --

    def note(self, loss: float | None, bar: tqdm) -> None:
        """Note the loss of the step that was done last, and show it."""
        lr = self.optimizer.param_groups[0]["lr"]
        self.losses.add(self.step, loss, lr)
        self.accelerator.log(
            {"lr": lr} if loss is None else {"lr": lr, "loss": loss}, step=self.step
        )
        shown = {"loss": "left out" if loss is None else f"{loss:.3f}"}
        if self.history:
            shown["AP"] = f"{self.history[-1]['AP']:.3f}"
        bar.set_postfix(shown, refresh=False)
        bar.update()

    def evaluate(self, epoch: int) -> None:
        """Evaluate, with averaged weights if there are any, and note the metrics."""
        with nullcontext() if self.ema is None else self.ema.applied():
            metrics = evaluate(
                self.plain_model,
                self.processor,
                self.val_data,
                batch_size=self.options.micro_batch_size,
                num_workers=self.options.workers,
                iou_types=("bbox", "segm") if self.further.panoptic else ("bbox",),
            )
        self.history.append({"epoch": epoch + 1, "step": self.step, **metrics})
        numbers = {name: value for name, value in metrics.items() if isinstance(value, float)}
        self.accelerator.log(numbers, step=self.step)
        self.say(", ".join(f"{name} {value:.3f}" for name, value in numbers.items()))

    def best_step(self) -> int | None:
        """The evaluated step with the best AP so far."""
        key = "segm_AP" if self.further.panoptic else "AP"
        return max(self.history, key=lambda entry: entry[key])["step"] if self.history else None

    def save(self) -> None:
        """Write a checkpoint; a failure leaves the earlier ones."""
        tensors = gather_training_state(self.model, self.optimizer.optimizer, self.ema)
        if not self.accelerator.is_main_process:
            return
        scaler = self.accelerator.scaler
        state = {
            "options": self.recorded_options(),
            "history": self.history,
            "scaler": None if scaler is None else scaler.state_dict(),
        }

        def write_more(folder: Path) -> None:
            publishable(self.plain_model).save_pretrained(folder)
            self.processor.save_pretrained(folder)

        save_checkpoint(
            self.checkpoints,
            self.step,
            tensors,
            state,
            protect=(self.best_step(),),
            write_more=write_more,
        )

    def resume(self) -> None:
        """Go on from the newest complete checkpoint, if there is one.

        Raises:
            ValueError: if options differ that change what is learned.
        """
        checkpoint = load_newest_checkpoint(self.checkpoints)
        if checkpoint is None:
            self.accelerator.print(f"No checkpoint in {self.checkpoints}; training from the start.")
            return
        before, now = checkpoint.state["options"], self.recorded_options()
        changed = [name for name in now if now[name] != before.get(name)]
        if changed:
            raise ValueError(
                "A training goes on only as it began: "
                + ", ".join(
                    f"{name} was {before.get(name)!r}, is {now[name]!r}" for name in changed
                )
                + ". Give the old values, or train into another --output."
            )
        restore_training_state(checkpoint.tensors, self.model, self.optimizer.optimizer, self.ema)
        if self.accelerator.scaler is not None:
            self.accelerator.scaler.load_state_dict(checkpoint.state["scaler"])
        self.step, self.history = checkpoint.step, checkpoint.state["history"]
        self.losses.cut(self.step)
        self.accelerator.print(f"Going on from {checkpoint.folder}.")

    def recorded_options(self) -> dict[str, Any]:
        """The options that decide what is learned, as JSON has them."""
        both = {**asdict(self.options), **asdict(self.further)}
        kept = {name: value for name, value in both.items() if name not in MAY_CHANGE}
        return json.loads(json.dumps(kept, default=str))


def publishable(model: PreTrainedModel) -> PreTrainedConfig:
    """The model's config, without what only training needs."""
    config = copy.deepcopy(model.config)
    config.auxiliary_loss = False
    return config


class LossLog:
    """`losses.csv`: the loss of every step, empty where a step was left out."""

    def __init__(self, path: Path, writes: bool) -> None:
        self.path, self.writes = path, writes
        if writes:
            path.parent.mkdir(parents=True, exist_ok=True)
            if not path.exists():
                path.write_text("step,loss,lr\n")

    def add(self, step: int, loss: float | None, lr: float) -> None:
        """Append a line."""
        if self.writes:
            with self.path.open("a") as file:
                file.write(f"{step},{'' if loss is None else loss!r},{lr!r}\n")

    def cut(self, step: int) -> None:
        """Forget what came after a step, where training goes on."""
        if self.writes:
            header, *lines = self.path.read_text().splitlines(keepends=True)
            kept = [
                line for line in lines if line.endswith("\n") and int(line.split(",")[0]) <= step
            ]
            self.path.write_text("".join([header, *kept]))


def to_device(batch: dict[str, Any], device: torch.device) -> dict[str, Any]:
    """The batch's images on the device; of the labels the loss takes there what it needs."""
    pixel_values = batch["pixel_values"].to(
        device, non_blocking=True, memory_format=torch.channels_last
    )
    pixel_mask = batch["pixel_mask"].to(device, non_blocking=True)
    return {"pixel_values": pixel_values, "pixel_mask": pixel_mask, "labels": batch["labels"]}


def make_model(options: Options, further: FurtherOptions, data: DetectionDataset) -> tuple:
    """The model to start from, ready to learn, and its image processor."""
    factory = AutoModelForImageSegmentation if further.panoptic else AutoModelForObjectDetection
    labels = {"id2label": data.id2label, "label2id": {n: i for i, n in data.id2label.items()}}
    if options.model not in RECIPES and not options.model.endswith(".json"):
        model = factory.from_pretrained(options.model, ignore_mismatched_sizes=True, **labels)
        processor = AutoImageProcessor.from_pretrained(options.model)
    else:
        architecture = read_architecture(options, further, data)
        preprocessing = architecture.pop("preprocessing", {})
        config = AutoConfig.for_model(architecture.pop("model_type"), **architecture, **labels)
        model = factory.from_config(config)
        if further.backbone_weights is not None:
            load_backbone_weights(model, further.backbone_weights)
        processor = RECIPES[config.model_type].processor(**preprocessing)
    model.config.auxiliary_loss = True
    model.unfreeze_backbone(further.frozen_stages)
    if further.freeze_detector:
        model.freeze_detector()
    if further.gradient_checkpointing:
        model.gradient_checkpointing_enable()
    if options.image_size is not None:
        longest = round(options.image_size * 1333 / 800)
        processor.size = {"shortest_edge": options.image_size, "longest_edge": longest}
    return model.to(memory_format=torch.channels_last), processor


def read_architecture(
    options: Options, further: FurtherOptions, data: DetectionDataset
) -> dict[str, Any]:
    """The config's values of a fresh model, and `preprocessing`, those of its processor."""
    if options.model.endswith(".json"):
        return json.loads(Path(options.model).read_text())
    architecture: dict[str, Any] = {
        "model_type": options.model,
        "backbone": "resnet50.tv_in1k",
        "use_pretrained_backbone": further.backbone_weights is None,
    }
    if options.small_data:
        most = int(np.diff(data.table.offsets).max())
        architecture["num_queries"] = max(2 * most, 20)
    return architecture


def fill_in(options: Options, further: FurtherOptions, model_type: str, num_images: int) -> None:
    """Give options that were left out the values of the paper, of small data or of the check."""
    recipe = RECIPES[model_type]
    options.lr = options.lr or recipe.lr
    options.epochs = options.epochs or recipe.epochs
    if options.small_data:
        options.batch_size = options.batch_size or 8
        options.ema, options.schedule = options.ema or 0.998, "cosine"
        further.warmup_steps = further.warmup_steps or 200
    options.batch_size = options.batch_size or recipe.batch_size
    if options.overfit:
        options.batch_size = options.micro_batch_size = num_images


def make_transform(options: Options, further: FurtherOptions, processor: Any) -> nn.Module:
    """The papers' augmentation in proportion to the model's image size; none for the check."""
    size = dict(processor.size)
    if options.overfit:
        return make_evaluation_transform(size["shortest_edge"], size.get("longest_edge"))
    scale = size["shortest_edge"] / max(PAPER_SHORTEST_EDGES)
    return make_training_transform(
        [round(edge * scale) for edge in PAPER_SHORTEST_EDGES],
        size.get("longest_edge"),
        crop_probability=further.crop,
    )


def check(data: DetectionDataset, name: str, config: PreTrainedConfig) -> None:
    """Refuse data that can't be learned from."""
    num_queries = config.num_queries
    if getattr(config, "two_stage", False):
        num_queries = config.two_stage_num_proposals
    report = check_dataset(data, num_queries)
    print(f"{name} data: {report.text()}", file=sys.stderr)
    if not report.may_train:
        sys.exit(f"The {name} data can't be learned from; mend what is marked ERROR above.")


def finish(training: Training) -> None:
    """Keep the best checkpoint's weights, averaged if they were, as the model, with a card."""
    options, best = training.options, training.best_step()
    checkpoint = load_checkpoint(checkpoint_folder(training.checkpoints, best))
    model = training.plain_model
    model.load_state_dict(checkpoint.tensors.get("ema", checkpoint.tensors["model"]))
    model.config.auxiliary_loss = False
    model.save_pretrained(options.output / "model")
    training.processor.save_pretrained(options.output / "model")
    write_card(
        options.output / "model",
        pipeline("object-detection", model=model, image_processor=training.processor),
        training.val_data,
        training.history,
        training.losses.path,
        training.recorded_options(),
    )
    print(f"The best model, of step {best}, is in {options.output / 'model'}.")
    if options.push_to is not None:
        HfApi().create_repo(options.push_to, exist_ok=True)
        HfApi().upload_folder(repo_id=options.push_to, folder_path=options.output / "model")


def say_whether_healthy(training: Training) -> None:
    """End the health check with a verdict, which is also the exit status."""
    metrics = training.history[-1]
    if metrics["AP50"] < 0.9:
        sys.exit(
            f"NOT healthy: after {training.step} steps AP50 is {metrics['AP50']:.2f} on the images "
            "that were learned by heart; it should be above 0.9. Look at the boxes and class names "
            "of the data (python -m hf_detr.data_check), try more --epochs or another --lr."
        )
    print(f"Healthy: AP50 is {metrics['AP50']:.2f} on {training.options.overfit} learned images.")


def main() -> None:
    """Read the options, train, and write the result."""
    options, further = HfArgumentParser(
        (Options, FurtherOptions), description=__doc__
    ).parse_args_into_dataclasses()
    accelerator = Accelerator(
        mixed_precision=options.precision,
        log_with=None if further.tracker == "none" else further.tracker,
        project_dir=options.output,
        dynamo_backend="inductor" if further.compile else None,
    )
    checkpoints = options.output / "checkpoints"
    if not options.resume and any(checkpoints.glob("checkpoint-*")):
        sys.exit(f"{checkpoints} holds a training; go on with --resume, or name another --output.")
    torch.manual_seed(options.seed)
    train_data = read_split(options.data, "train", further.panoptic, options.seed)
    val_data = read_split(options.data, "val", further.panoptic, options.seed)
    if options.overfit:
        train_data = val_data = train_data.first(options.overfit)
    model, processor = make_model(options, further, train_data)
    fill_in(options, further, model.config.model_type, len(train_data))
    with accelerator.main_process_first():
        check(train_data, "training", model.config)
        check(val_data, "validation", model.config)
    train_data.set_transform(make_transform(options, further, processor))
    accelerator.init_trackers("hf_detr")
    training = Training(accelerator, model, processor, train_data, val_data, options, further)
    if options.resume:
        training.resume()
    training.run()
    accelerator.end_training()
    if options.overfit:
        say_whether_healthy(training)
    elif accelerator.is_main_process:
        finish(training)
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main()
