"""Train DETR, Conditional DETR or Deformable DETR to detect objects, on one device or many.

    python examples/training/train_detection.py --data data/garments --model deformable_detr
    accelerate launch --num_processes 4 examples/training/train_detection.py --data … --model …
    python examples/training/train_detection.py --data … --model … --overfit 8      # health check
    python examples/training/train_detection.py --data … --model … --resume         # after a crash

The data are a folder in a layout of COCO, YOLO or Pascal VOC (see `detection_folders.py`). Defaults
of options are those of the model's paper.

Images, augmentation and dropout of a step depend on the seed and the index of the step only. So a
resumed training gives the same result as an uninterrupted one, and the result doesn't depend on the
number of processes. `--output` contains `model` with the model card, `losses.csv`, and
`checkpoints`, which can be loaded with `from_pretrained`.
"""

import copy
import json
import math
import re
import sys
from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator, DistributedType
from detection_folders import read_splits
from torch import Tensor
from torch.utils.data import DataLoader
from tqdm.auto import tqdm
from training_card import write_card
from training_options import MAY_CHANGE, FurtherOptions, Options, check_options, fill_in
from training_setup import check, make_model, make_transform
from transformers import HfArgumentParser, PreTrainedModel, pipeline

from hf_detr.atomic_saving import atomic_file
from hf_detr.checkpoints.publishing import push_to_hub
from hf_detr.data.batches import DetectionCollator
from hf_detr.data.dataset import DetectionDataset
from hf_detr.evaluation.evaluate import evaluate, evaluate_panoptic
from hf_detr.losses.loss_terms import LossNormalizers
from hf_detr.losses.matcher import NonFinitePredictionError
from hf_detr.models.pretrained_model import without_auxiliary_loss
from hf_detr.training.checkpoint import (
    checkpoint_folder,
    load_checkpoint,
    load_newest_checkpoint,
    save_checkpoint,
)
from hf_detr.training.health import (
    NonFiniteLossError,
    TrainingHealth,
    describe_nonfinite_gradients,
    find_nonfinite_loss,
)
from hf_detr.training.model_ema import ModelEma
from hf_detr.training.plan import MicroBatch, learning_rate_factor, plan_epoch
from hf_detr.training.state import copy_whole_model, gather_training_state, restore_training_state

LOSS_LINE = re.compile(r"\d+,[^,]*,[^,]+")  # of losses.csv


class Training:
    """The state of a training and its loop."""

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
        self.health = TrainingHealth(
            model.criterion.weights,
            model.criterion.classification,
            model.config.id2label,
            further.max_grad_norm,
        )
        self.base_lrs = [group["lr"] for group in optimizer.param_groups]
        self.is_sharded = accelerator.distributed_type == DistributedType.FSDP
        self.plain_model = copy.deepcopy(model) if self.is_sharded else model
        self.model, self.optimizer = accelerator.prepare(model, optimizer)
        self.ema = ModelEma(self.model, options.ema) if options.ema else None
        per_pass = options.micro_batch_size * accelerator.num_processes
        if options.batch_size % per_pass:
            raise ValueError(
                f"--batch_size is {options.batch_size}; expected a multiple of --micro_batch_size "
                f"x processes = {options.micro_batch_size} x {accelerator.num_processes}."
            )
        self.accumulation_steps = options.batch_size // per_pass
        self.steps_per_epoch = math.ceil(len(train_data) / options.batch_size)
        self.total_steps = self.steps_per_epoch * options.epochs
        self.step = 0  # number of finished optimizer steps
        self.history: list[dict[str, Any]] = []  # metrics of all evaluations
        self.losses = LossLog(options.output / "losses.csv", accelerator.is_main_process)
        self.checkpoints = options.output / "checkpoints"

    # -- the loop --

    def run(self) -> None:
        """Train to the end."""
        self.losses.begin(self.step)
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
                    # The end of an epoch is saved after its evaluation, so that none is missed.
                    is_within_epoch = self.step % self.steps_per_epoch != 0
                    if is_within_epoch and self.step % self.further.save_every == 0:
                        self.save()
                is_last = self.step >= self.total_steps
                if is_last or (epoch + 1) % self.further.evaluate_every == 0:
                    self.say(f"epoch {epoch + 1}", *self.health.report())
                    self.evaluate(epoch)
                self.save()

    def rest_of_epoch(self, epoch: int) -> Iterator[tuple[list[MicroBatch], list[dict]]]:
        """Yield the plan and the batches of each remaining step of an epoch."""
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
        """Do an optimizer step and return its loss, or None if it was skipped.

        Raises:
            NonFiniteLossError: if the loss or gradient isn't finite; weights are unchanged.
        """
        self.seed_step()
        for group, lr in zip(self.optimizer.param_groups, self.base_lrs, strict=True):
            group["lr"] = lr * self.lr_factor()
        counted = [batch for part, batch in zip(parts, batches, strict=True) if part.counts]
        labels = [label for batch in counted for label in batch["labels"]]
        normalizers = self.accelerator.unwrap_model(self.model).count_loss_normalizers(labels)
        total = torch.zeros((), device=self.accelerator.device)
        try:
            for i, (part, batch) in enumerate(zip(parts, batches, strict=True)):
                is_last = i == len(parts) - 1
                with nullcontext() if is_last else self.accelerator.no_sync(self.model):
                    loss = self.loss(batch, normalizers) * part.counts
                    self.accelerator.backward(loss)
                total += loss.detach()
            self.clip_gradients()
        except NonFiniteLossError as error:
            self.optimizer.zero_grad()
            if not self.further.skip_nonfinite:
                raise
            self.health.add_skipped_step()
            self.say(f"step {self.step} is skipped: {error}")
            return None
        self.optimizer.step()
        self.optimizer.zero_grad()
        if self.ema is not None:
            self.ema.update(self.step + 1)
        return self.accelerator.reduce(total, "mean").item()

    def seed_step(self) -> None:
        """Seed random numbers by the step, so that checkpoints don't need their state."""
        process = self.accelerator.process_index
        torch.manual_seed(hash((self.options.seed, self.step, process)) % 2**63)

    def lr_factor(self) -> float:
        """Factor of the learning rates in the current step."""
        return learning_rate_factor(
            self.step, self.total_steps, self.options.schedule, self.further.warmup_steps
        )

    def loss(self, batch: dict[str, Any], normalizers: LossNormalizers) -> Tensor:
        """A batch's part of the step's loss; if it isn't finite in one process, all raise."""
        batch = to_device(batch, self.accelerator.device)
        outputs, images = None, []
        try:
            outputs = self.model(**batch, loss_normalizers=normalizers)
        except NonFinitePredictionError as error:
            images = error.images
        problem = find_nonfinite_loss(batch, outputs, images)
        if problem is not None:
            raise NonFiniteLossError(f"{problem} {self.where()}")
        self.health.add_batch(outputs, batch["labels"])
        return outputs.loss

    def clip_gradients(self) -> None:
        """Clip gradients; raise if they aren't finite."""
        norm = self.accelerator.clip_grad_norm_(self.model.parameters(), self.further.max_grad_norm)
        # In float16, gradients may overflow; the scaler skips such steps itself.
        if self.accelerator.scaler is None and not norm.isfinite():
            raise NonFiniteLossError(f"{describe_nonfinite_gradients(self.model)} {self.where()}")
        self.health.add_step(norm)

    def where(self) -> str:
        """Describe the current step for messages."""
        lrs = [group["lr"] for group in self.optimizer.param_groups]
        return (
            f"This is step {self.step} of {self.total_steps} with learning rates {lrs}. Weights "
            "are unchanged and nothing is saved. --skip_nonfinite skips such steps."
        )

    def say(self, *lines: str) -> None:
        """Print without breaking the progress bar."""
        if self.accelerator.is_main_process:
            tqdm.write("\n    ".join(lines), file=sys.stderr)

    # -- logging, evaluation and checkpoints --

    def note(self, loss: float | None, bar: tqdm) -> None:
        """Log the loss of the last step."""
        lr = self.optimizer.param_groups[0]["lr"]
        self.losses.add(self.step, loss, lr)
        self.accelerator.log(
            {"lr": lr} if loss is None else {"lr": lr, "loss": loss}, step=self.step
        )
        shown = {"loss": "skipped" if loss is None else f"{loss:.3f}"}
        if self.history:
            shown["AP"] = f"{self.history[-1]['AP']:.3f}"
        bar.set_postfix(shown, refresh=False)
        bar.update()

    def evaluate(self, epoch: int) -> None:
        """Evaluate, with averaged weights if available, and log metrics."""
        given = self.plain_model, self.processor, self.val_data, self.options.micro_batch_size
        with nullcontext() if self.ema is None else self.ema.applied():
            if self.is_sharded:  # a sharded model would communicate in every batch
                copy_whole_model(self.model, self.plain_model.to(self.accelerator.device))
            metrics = evaluate(*given, self.options.workers)
            if self.further.panoptic:
                quality = evaluate_panoptic(*given, self.options.workers)
                metrics |= {name: quality[name] for name in ("pq", "sq", "rq")}
        self.history.append({"epoch": epoch + 1, "step": self.step, **metrics})
        numbers = {name: value for name, value in metrics.items() if isinstance(value, float)}
        self.accelerator.log(numbers, step=self.step)
        self.say(", ".join(f"{name} {value:.3f}" for name, value in numbers.items()))

    def best_step(self) -> int | None:
        """The evaluated step with the best AP or panoptic quality."""
        key = "pq" if self.further.panoptic else "AP"
        return max(self.history, key=lambda entry: entry[key])["step"] if self.history else None

    def save(self) -> None:
        """Save a checkpoint; if this fails, earlier checkpoints remain."""
        if self.options.overfit:
            return
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
            with without_auxiliary_loss(self.plain_model):
                self.plain_model.config.save_pretrained(folder)
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
        """Resume from the newest complete checkpoint, if there is one.

        Raises:
            ValueError: if options that affect the result differ.
        """
        checkpoint = load_newest_checkpoint(self.checkpoints)
        if checkpoint is None:
            self.accelerator.print(
                f"No checkpoint in {self.checkpoints}; training starts from the beginning."
            )
            return
        before, now = checkpoint.state["options"], self.recorded_options()
        changed = [name for name in now if now[name] != before.get(name)]
        if changed:
            raise ValueError(
                "Options differ from those of the training to resume: "
                + ", ".join(
                    f"{name} was {before.get(name)!r}, is {now[name]!r}" for name in changed
                )
                + ". Use the old values, or another --output."
            )
        try:
            restore_training_state(
                checkpoint.tensors, self.model, self.optimizer.optimizer, self.ema
            )
        except RuntimeError as error:  # other names or shapes
            raise ValueError(f"{checkpoint.folder} doesn't fit this model: {error}") from error
        if self.accelerator.scaler is not None:
            self.accelerator.scaler.load_state_dict(checkpoint.state["scaler"])
        self.step, self.history = checkpoint.step, checkpoint.state["history"]
        self.accelerator.print(f"Resuming from {checkpoint.folder}.")

    def recorded_options(self) -> dict[str, Any]:
        """Options that affect the result, as in JSON."""
        both = {**asdict(self.options), **asdict(self.further)}
        kept = {name: value for name, value in both.items() if name not in MAY_CHANGE}
        return json.loads(json.dumps({**kept, "images": len(self.train_data)}, default=str))


class LossLog:
    """`losses.csv`: the loss of every step, empty for skipped steps."""

    def __init__(self, path: Path, writes: bool) -> None:
        self.path, self.writes = path, writes

    def add(self, step: int, loss: float | None, lr: float) -> None:
        """Append a line."""
        if self.writes:
            with self.path.open("a") as file:
                written = "" if loss is None else repr(loss)
                file.write(f"{step},{written},{lr!r}\n")

    def begin(self, step: int) -> None:
        """Start the file, or keep the lines of finished steps of a resumed training."""
        if not self.writes:
            return
        text = self.path.read_text(errors="replace") if self.path.exists() else ""
        whole = filter(LOSS_LINE.fullmatch, text.split("\n")[:-1])  # the last one may be torn
        kept = [line for line in whole if int(line.split(",")[0]) <= step]
        if len(kept) < step:
            print(f"{self.path} lacks {step - len(kept)} of {step} steps.", file=sys.stderr)
        with atomic_file(self.path) as unfinished:
            unfinished.write_text("".join(f"{line}\n" for line in ["step,loss,lr", *kept]))


def to_device(batch: dict[str, Any], device: torch.device) -> dict[str, Any]:
    """Move images and masks to the device; the loss moves the labels it needs."""
    pixel_values = batch["pixel_values"].to(
        device, non_blocking=True, memory_format=torch.channels_last
    )
    pixel_mask = batch["pixel_mask"].to(device, non_blocking=True)
    return {"pixel_values": pixel_values, "pixel_mask": pixel_mask, "labels": batch["labels"]}


def finish(training: Training) -> None:
    """Save the best checkpoint's weights, averaged if available, as the model, with a card."""
    options, best = training.options, training.best_step()
    checkpoint = load_checkpoint(checkpoint_folder(training.checkpoints, best))
    model = training.plain_model
    model.load_state_dict(checkpoint.tensors.get("ema", checkpoint.tensors["model"]))
    model.config.auxiliary_loss = False
    model.save_pretrained(options.output / "model")
    training.processor.save_pretrained(options.output / "model")
    write_card(
        options.output / "model",
        training.further.push_to or (options.output / "model").as_posix(),
        pipeline(
            "object-detection",
            model=model.detector if training.further.panoptic else model,
            image_processor=training.processor,
        ),
        training.val_data,
        options.data.name,
        training.history,
        training.losses.path,
        training.recorded_options(),
    )
    print(f"Saved the best model (step {best}) in {options.output / 'model'}.")
    if training.further.push_to is not None:
        folder = options.output / "model"
        push_to_hub(
            model,
            training.processor,
            training.further.push_to,
            card=(folder / "README.md").read_text(),
            files=sorted(folder.glob("*.png")),
        )


def report_health(training: Training) -> None:
    """Print the result of the health check; exit with an error if it failed."""
    metrics = training.history[-1]
    if metrics["AP50"] < 0.9:
        sys.exit(
            f"NOT healthy: after {training.step} steps AP50 is {metrics['AP50']:.2f} on the "
            "overfitted images; expected more than 0.9. Check the boxes and class names of the "
            "data with `hf-detr check`, or use more --epochs or another --lr."
        )
    print(
        f"Healthy: AP50 is {metrics['AP50']:.2f} on {training.options.overfit} overfitted images."
    )


def prepare(options: Options, further: FurtherOptions) -> Training:
    """Read data and model, and the checkpoint to resume from.

    Raises:
        ValueError, OSError, ImportError: if options, data or model don't allow the training.
    """
    check_options(options, further)
    accelerator = Accelerator(
        # Required for several processes on CPUs.
        cpu=not torch.accelerator.is_available(),
        mixed_precision=options.precision,
        log_with=None if further.tracker == "none" else further.tracker,
        project_dir=options.output,
        dynamo_backend="inductor" if further.compile else None,
    )
    checkpoints = options.output / "checkpoints"
    if not options.resume and any(checkpoints.glob("checkpoint-*")):
        raise ValueError(f"{checkpoints} contains a training; use --resume or another --output.")
    torch.manual_seed(options.seed)
    train_data, val_data = read_splits(options.data, further.panoptic, options.seed)
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
    return training


def main() -> None:
    """Read the options, train, and write the result."""
    options, further = HfArgumentParser(
        (Options, FurtherOptions), description=__doc__
    ).parse_args_into_dataclasses()
    try:
        training = prepare(options, further)
    except (ValueError, OSError, ImportError) as error:
        sys.exit(f"ERROR: {error}")
    try:
        training.run()
    except (NonFiniteLossError, OSError) as error:
        sys.exit(f"Training has stopped. {error}")
    accelerator = training.accelerator
    accelerator.end_training()
    if options.overfit:
        report_health(training)
    elif accelerator.is_main_process:
        finish(training)
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main()
