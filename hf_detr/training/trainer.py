"""The training loop, on one device or many.

What is random in a step depends on the seed and its index, so a resumed training gives the result
of an uninterrupted one. The number of processes doesn't change it, except with a stream, whose rows
they divide, and by rounding, dropout and denoising, drawn for each process and micro-batch.
"""

import copy
import math
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator, DistributedType
from torch import Tensor
from transformers import PreTrainedModel

from ..data.batches import PackedBatch, PackingCollator
from ..data.dataset import DetectionDataset
from ..losses.loss_terms import LossNormalizers
from ..losses.matcher import NonFinitePredictionError
from ..models.configuration import without_auxiliary_loss
from .checkpoint import load_best_checkpoint, load_newest_checkpoint, save_checkpoint
from .health import (
    NonFiniteLossError,
    TrainingHealth,
    describe_nonfinite_gradients,
    find_nonfinite_loss,
)
from .log import TrainingLog
from .model_ema import ModelEma
from .options import TrainingOptions
from .plan import MicroBatch, learning_rate_factor, plan_epoch
from .resuming import check_same_options
from .sample_loader import load_steps
from .state import TrainingState, copy_whole_model, gather_training_state, restore_training_state
from .validation import rank, validate


class Training:
    """The state of a training and its loop.

    Args:
        accelerator: of Accelerate.
        model: as it is on all processes.
        processor: the model's image processor.
        train_data: with its transform.
        val_data: for the evaluations.
        options: without missing values.
        output: folder for losses and checkpoints.
        source: what else the result depends on, such as the model's name; it must be the same when
            the training is resumed.
    """

    def __init__(
        self,
        accelerator: Accelerator,
        model: PreTrainedModel,
        processor: Any,
        train_data: DetectionDataset,
        val_data: DetectionDataset,
        options: TrainingOptions,
        output: Path,
        source: dict[str, Any],
    ) -> None:
        self.accelerator, self.options, self.source = accelerator, options, source
        self.processor, self.train_data, self.val_data = processor, train_data, val_data
        optimizer = torch.optim.AdamW(
            model.parameter_groups(options.lr, options.slow_factor, options.class_factor),
            weight_decay=options.weight_decay,
        )
        self.health = TrainingHealth(
            model.criterion.weights,
            model.criterion.classification,
            model.config.id2label,
            options.max_grad_norm,
        )
        self.base_lrs = [group["lr"] for group in optimizer.param_groups]
        self.is_sharded = accelerator.distributed_type == DistributedType.FSDP
        self.plain_model = copy.deepcopy(model) if self.is_sharded else model
        self.model, self.optimizer = accelerator.prepare(model, optimizer)
        self.ema = ModelEma(self.model, options.ema) if options.ema else None
        self.steps_per_epoch = math.ceil(len(train_data) / options.batch_size)
        self.total_steps = self.steps_per_epoch * options.epochs
        share = options.warmup_steps
        self.warmup_steps = round(share * self.total_steps) if share < 1 else int(share)
        self.step = 0  # number of finished optimizer steps
        self.history: list[dict[str, Any]] = []  # metrics of all evaluations
        self.log = TrainingLog(accelerator, output / "losses.csv")
        self.checkpoints = output / "checkpoints"

    # -- the loop --

    def run(self) -> None:
        """Train to the end.

        Raises:
            NonFiniteLossError: if the loss or gradient isn't finite, without `skip_nonfinite`.
        """
        self.log.begin(self.step, self.total_steps)
        self.model.train()
        steps = load_steps(
            self.train_data,
            self.rest_of_plan,
            PackingCollator(self.processor),
            self.options.workers,
            self.accelerator.device.type == "cuda",
            done=(self.step % self.steps_per_epoch, self.options.batch_size),
        )
        try:
            while self.step < self.total_steps and not self.has_stalled():
                epoch, parts, batches = next(steps)
                loss = self.take_step(parts, batches)
                self.step += 1
                self.log.add_step(self.step, loss, self.optimizer.param_groups[0]["lr"])
                if self.step % self.steps_per_epoch == 0:
                    self.end_epoch(epoch)
                elif self.step % self.options.save_every == 0:
                    self.save()
        finally:
            self.log.end()
        if self.step < self.total_steps:
            self.log.say(
                f"Stopped after {self.step} of {self.total_steps} steps: {self.options.metric} "
                f"wasn't better in {self.options.patience} evaluations."
            )

    def end_epoch(self, epoch: int) -> None:
        """Evaluate, and save afterwards, so that no evaluation is missed."""
        is_last = self.step >= self.total_steps
        if is_last or (epoch + 1) % self.options.evaluate_every == 0:
            self.evaluate(epoch)
            self.log.say(*self.health.report(), indent=" " * 4)
        self.save()

    def rest_of_plan(self) -> Iterator[tuple[int, list[MicroBatch]]]:
        """Yield the epoch and the micro-batches of each remaining step."""
        done = self.step
        while done < self.total_steps:
            epoch, step = divmod(done, self.steps_per_epoch)
            sizes = len(self.train_data), self.options.batch_size, self.options.micro_batch_size
            plan = plan_epoch(
                *sizes,
                epoch=epoch,
                seed=self.options.seed,
                num_processes=self.accelerator.num_processes,
                process_index=self.accelerator.process_index,
            )
            for parts in plan[step:]:
                yield epoch, parts
            done += len(plan) - step

    def take_step(self, parts: list[MicroBatch], batches: list[PackedBatch]) -> float | None:
        """Do an optimizer step and return its loss, or None if it was skipped.

        Raises:
            NonFiniteLossError: if the loss or gradient isn't finite; weights are unchanged.
        """
        self.seed_step()
        for group, lr in zip(self.optimizer.param_groups, self.base_lrs, strict=True):
            group["lr"] = lr * self.lr_factor()
        counted = [batch for part, batch in zip(parts, batches, strict=True) if part.counts]
        labels = [one for batch in counted for one in batch.labels(keys=("class_labels",))]
        normalizers = self.accelerator.unwrap_model(self.model).count_loss_normalizers(labels)
        total = torch.zeros((), device=self.accelerator.device)
        try:
            for i, (part, batch) in enumerate(zip(parts, batches, strict=True)):
                is_last = i == len(parts) - 1
                with nullcontext() if is_last else self.accelerator.no_sync(self.model):
                    loss = self.loss(batch, normalizers, part.counts)
                    self.accelerator.backward(loss)
                total += loss.detach()
            self.clip_gradients()
        except NonFiniteLossError as error:
            self.optimizer.zero_grad()
            if not self.options.skip_nonfinite:
                raise
            self.health.add_skipped_step()
            self.log.say(f"step {self.step} is skipped: {error}")
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
            self.step, self.total_steps, self.options.schedule, self.warmup_steps
        )

    def loss(self, packed: PackedBatch, normalizers: LossNormalizers, counts: bool) -> Tensor:
        """A batch's part of the step's loss; if it isn't finite in one process, all raise."""
        batch = packed.unpack(self.processor, self.accelerator.device)
        outputs, images = None, []
        try:
            outputs = self.model(**batch, loss_normalizers=normalizers)
        except NonFinitePredictionError as error:
            images = error.images
        problem = find_nonfinite_loss(batch, outputs, images)
        if problem is not None:
            raise NonFiniteLossError(f"{problem} {self.where()}")
        if counts:
            self.health.add_batch(outputs, batch["labels"])
        return outputs.loss * counts

    def clip_gradients(self) -> None:
        """Clip gradients; raise if they aren't finite."""
        norm = self.accelerator.clip_grad_norm_(self.model.parameters(), self.options.max_grad_norm)
        # In float16, gradients may overflow; the scaler skips such steps itself.
        if self.accelerator.scaler is None and not norm.isfinite():
            raise NonFiniteLossError(f"{describe_nonfinite_gradients(self.model)} {self.where()}")
        self.health.add_step(norm)

    def where(self) -> str:
        """Describe the current step for messages."""
        lrs = [group["lr"] for group in self.optimizer.param_groups]
        return (
            f"This is step {self.step} of {self.total_steps} with learning rates {lrs}. Weights "
            "are unchanged and nothing is saved. --skip-nonfinite skips such steps."
        )

    # -- evaluation and checkpoints --

    def evaluate(self, epoch: int) -> None:
        """Evaluate, with averaged weights if available, and log metrics."""
        given = self.plain_model, self.processor, self.val_data
        with nullcontext() if self.ema is None else self.ema.applied():
            if self.is_sharded:  # a sharded model would communicate in every batch
                copy_whole_model(self.model, self.plain_model.to(self.accelerator.device))
            metrics = validate(*given, self.options)
        if metrics[self.options.metric] < 0 and not self.history:
            self.log.say(
                f"The validation data have no objects for {self.options.metric}, so the last "
                "weights are kept instead of the best; use other data or another --metric."
            )
        self.history.append({"epoch": epoch + 1, "step": self.step, **metrics})
        self.log.add_evaluation(self.history[-1])

    def best(self) -> dict[str, Any] | None:
        """The best evaluation; None before the first one."""
        return next(iter(rank(self.history, self.options.metric)), None)

    def load_best(self) -> tuple[dict[str, Any], TrainingState]:
        """The best evaluation whose checkpoint is complete, and its tensors."""
        ranking = {entry["step"]: entry for entry in rank(self.history, self.options.metric)}
        checkpoint = load_best_checkpoint(self.checkpoints, list(ranking))
        return ranking[checkpoint.step], checkpoint.tensors

    def has_stalled(self) -> bool:
        """Whether the last evaluations, as many as `patience`, weren't better than before."""
        patience, best = self.options.patience, self.best()
        return bool(patience and best) and self.history.index(best) < len(self.history) - patience

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
            with without_auxiliary_loss(self.plain_model.config):
                self.plain_model.config.save_pretrained(folder)
            self.processor.save_pretrained(folder)

        best = self.best()
        save_checkpoint(
            self.checkpoints,
            self.step,
            tensors,
            state,
            protect=[best["step"]] if best else (),
            write_more=write_more,
        )

    def resume(self) -> None:
        """Resume from the newest complete checkpoint, if there is one.

        Raises:
            ValueError: if options or data that affect the result differ.
        """
        checkpoint = load_newest_checkpoint(self.checkpoints)
        if checkpoint is None:
            self.log.say(
                f"No checkpoint in {self.checkpoints}; training starts from the beginning."
            )
            return
        check_same_options(checkpoint.state["options"], self.recorded_options())
        try:
            restore_training_state(
                checkpoint.tensors, self.model, self.optimizer.optimizer, self.ema
            )
        except RuntimeError as error:  # other names or shapes
            raise ValueError(f"{checkpoint.folder} doesn't fit this model: {error}") from error
        if self.accelerator.scaler is not None:
            self.accelerator.scaler.load_state_dict(checkpoint.state["scaler"])
        self.step, self.history = checkpoint.step, checkpoint.state["history"]
        self.log.say(f"Resuming from {checkpoint.folder}.")

    def recorded_options(self) -> dict[str, Any]:
        """Options and data that affect the result, as in JSON."""
        sizes = {"images": len(self.train_data), "val_images": len(self.val_data)}
        classes = list(self.train_data.id2label.values())
        return {**self.options.recorded(), **self.source, **sizes, "classes": classes}
