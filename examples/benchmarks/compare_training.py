"""Compare training with hf_detr and with transformers' Trainer: time, memory and AP.

    python examples/benchmarks/compare_training.py --data data/garments --minutes 8 \\
        --backbone_weights efficientnet-lite0.pth

Both train Deformable DETR from the same weights on the same augmented images, with the same batch
size, learning rates and number of workers, each with its package's image processor, collator, loss
and loop, in a process of its own. One evaluation measures both.
"""

import json
import resource
import subprocess
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import Any, Literal

import torch
import transformers
from torch import nn
from transformers import HfArgumentParser, Trainer, TrainerCallback, TrainingArguments
from transformers.hf_argparser import HfArg

from hf_detr import DataArguments, DetectionDataset
from hf_detr.evaluation.evaluate import evaluate
from hf_detr.training.model_setup import make_model
from hf_detr.training.options import TrainingOptions
from hf_detr.training.train import prepare
from hf_detr.training.trainer import Training

ENDLESS = 10**6  # epochs or steps; the clock stops both trainings


@dataclass
class ComparisonOptions:
    """Options of both trainings."""

    data: str = HfArg(help="as for hf-detr train")
    backbone_weights: Path | None = HfArg(default=None, help="file with the backbone's weights")
    model: str = HfArg(
        default=str(Path(__file__).parent / "comparison.json"),
        help="architecture without two_stage, which transformers can't train",
    )
    output: Path = HfArg(default=Path("comparison"), help="folder for weights and results")
    steps: int = HfArg(default=300, help="optimizer steps")
    minutes: float | None = HfArg(default=None, help="time of each training, instead of steps")
    batch_size: int = HfArg(default=8, help="images per step")
    lr: float = HfArg(default=2e-4, help="learning rate; backbone and offsets: a tenth")
    workers: int = HfArg(default=2, help="processes that load images")
    seed: int = HfArg(default=0, help="seed of weights, order and augmentation")
    threads: int = HfArg(default=1, help="threads of torch on the CPU")
    side: Literal["both", "ours", "theirs"] = HfArg(default="both", help="package to train with")


class Clock:
    """Says when a training ends, and keeps the time of its steps."""

    def __init__(self, options: ComparisonOptions) -> None:
        self.options, self.times = options, []

    def start(self) -> None:
        """Begin, when everything is loaded."""
        self.times = [time.perf_counter()]

    def tick(self) -> bool:
        """Count a step; return whether it is the last one."""
        self.times.append(time.perf_counter())
        if self.options.minutes is None:
            return self.steps == self.options.steps
        return self.times[-1] - self.times[0] > 60 * self.options.minutes

    @property
    def steps(self) -> int:
        """Number of steps so far."""
        return len(self.times) - 1

    def seconds(self) -> float:
        """Time from one step to the next, with all that is between them."""
        return median(end - start for start, end in zip(self.times, self.times[1:], strict=False))


class Follow(TrainerCallback):
    """Changes the augmentation in every epoch of a Trainer; starts and stops the clock."""

    def __init__(self, clock: Clock, data: DetectionDataset) -> None:
        self.clock, self.data = clock, data

    def on_train_begin(self, args: Any, state: Any, control: Any, **named: Any) -> None:
        """Start the clock."""
        self.clock.start()

    def on_epoch_begin(self, args: Any, state: Any, control: Any, **named: Any) -> None:
        """Set the epoch."""
        self.data.set_epoch(round(state.epoch))

    def on_step_end(self, args: Any, state: Any, control: Any, **named: Any) -> None:
        """Count a step."""
        control.should_training_stop = self.clock.tick()


def prepare_ours(options: ComparisonOptions) -> Training:
    """Prepare hf_detr's training, from weights that both sides start with."""
    start = options.output / "start"
    data = DataArguments(options.data)
    if options.side == "ours":  # the first side
        given = TrainingOptions(backbone_weights=options.backbone_weights)
        torch.manual_seed(options.seed)
        model, processor, _ = make_model(options.model, given, data.read_splits(options.seed)[0])
        model.save_pretrained(start)
        processor.save_pretrained(start)
    given = TrainingOptions(
        epochs=ENDLESS,
        batch_size=options.batch_size,
        micro_batch_size=options.batch_size,
        lr=options.lr,
        workers=options.workers,
        seed=options.seed,
        evaluate_every=ENDLESS,
    )
    return prepare(str(start), data, options.output / options.side, given)


def train_ours(training: Training, clock: Clock) -> nn.Module:
    """Train with hf_detr."""
    take_step = training.take_step

    def timed(*arguments: Any) -> float | None:
        loss = take_step(*arguments)
        if clock.tick():
            training.total_steps = training.step + 1
        return loss

    training.take_step = timed
    training.evaluate = lambda epoch: None  # at the end, as for the other side
    training.save = lambda: None
    clock.start()
    training.run()
    return training.plain_model


def train_theirs(options: ComparisonOptions, training: Training, clock: Clock) -> nn.Module:
    """Train with transformers' Trainer, model and image processor, on the images of the other."""
    start = options.output / "start"
    model = transformers.DeformableDetrForObjectDetection.from_pretrained(
        start, auxiliary_loss=True
    )
    processor = transformers.DeformableDetrImageProcessor.from_pretrained(start)

    def collate(samples: list[tuple[torch.Tensor, dict[str, torch.Tensor]]]) -> Any:
        images, targets = zip(*samples, strict=True)
        annotations = [annotation(target) for target in targets]
        # The augmentation has resized the images.
        return processor(images, annotations, do_resize=False, return_tensors="pt")

    optimizer = make_optimizer(model, training.plain_model, options.lr)
    Trainer(
        model,
        TrainingArguments(
            str(options.output / "theirs"),
            max_steps=ENDLESS,
            per_device_train_batch_size=options.batch_size,
            lr_scheduler_type="constant",
            save_strategy="no",
            max_grad_norm=0.1,
            dataloader_num_workers=options.workers,
            seed=options.seed,
            remove_unused_columns=False,
            report_to="none",
        ),
        data_collator=collate,
        train_dataset=training.train_data,
        optimizers=(optimizer, None),
        callbacks=[Follow(clock, training.train_data)],
    ).train()
    return model


def annotation(target: dict[str, torch.Tensor]) -> dict[str, Any]:
    """Return an example's objects as transformers' image processors take them."""
    corners = target["boxes"].as_subclass(torch.Tensor)
    boxes = torch.cat([corners[:, :2], corners[:, 2:] - corners[:, :2]], dim=1)
    columns = boxes, target["class_labels"], target["area"], target["iscrowd"]
    names = "bbox", "category_id", "area", "iscrowd"
    rows = zip(*(column.tolist() for column in columns), strict=True)
    objects = [dict(zip(names, row, strict=True)) for row in rows]
    return {"image_id": target["image_id"].item(), "annotations": objects}


def make_optimizer(model: nn.Module, ours: nn.Module, lr: float) -> torch.optim.Optimizer:
    """Make the papers' parameter groups, of the parameters that hf_detr trains."""

    def in_timm(name: str) -> str:
        return name.split("backbone.")[-1].removeprefix("conv_encoder.")

    trained = {name: one for name, one in ours.named_parameters() if one.requires_grad}
    in_backbone = {in_timm(name) for name in trained if "backbone." in name}
    fast, slow = [], []
    for name, parameter in model.named_parameters():
        if "backbone." in name:
            parameter.requires_grad_(in_timm(name) in in_backbone)
        is_slow = any(part in name for part in ("backbone", "sampling_offsets", "reference_points"))
        if parameter.requires_grad:
            (slow if is_slow else fast).append(parameter)
    numbers = [sum(map(torch.numel, some)) for some in (trained.values(), [*fast, *slow])]
    if numbers[0] != numbers[1]:
        sys.exit(f"hf_detr trains {numbers[0]} numbers and transformers {numbers[1]}")
    groups = [{"params": fast, "lr": lr}, {"params": slow, "lr": lr / 10}]
    return torch.optim.AdamW(groups, weight_decay=1e-4)


def train(options: ComparisonOptions) -> dict[str, float]:
    """Train with one package; return its time, peak memory and AP."""
    torch.set_num_threads(options.threads)
    training = prepare_ours(options)
    clock = Clock(options)
    if options.side == "ours":
        model = train_ours(training, clock)
    else:
        model = train_theirs(options, training, clock)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    metrics = evaluate(model, training.processor, training.val_data)
    return {
        "steps": clock.steps,
        "seconds per step": clock.seconds(),
        "peak memory, MiB": peak,
        "AP": metrics["AP"],
        "AP50": metrics["AP50"],
    }


def main() -> None:
    """Train with both packages in separate processes and print the results."""
    (options,) = HfArgumentParser(
        ComparisonOptions, description=__doc__
    ).parse_args_into_dataclasses()
    options.output.mkdir(parents=True, exist_ok=True)
    if options.side != "both":
        result = train(options)
        (options.output / f"{options.side}.json").write_text(json.dumps(result, indent=1))
        return
    results = {}
    for side in ("ours", "theirs"):
        values = {**asdict(options), "side": side}
        given = [t for name, v in values.items() if v is not None for t in (f"--{name}", str(v))]
        subprocess.run([sys.executable, __file__, *given], check=True)
        results[side] = json.loads((options.output / f"{side}.json").read_text())
    after = f"{options.minutes} minutes" if options.minutes else f"{options.steps} steps"
    print(f"After {after} with steps of {options.batch_size} images:\n")
    print("| | hf_detr | transformers' Trainer |\n|---|---|---|")
    for name, value in results["ours"].items():
        print(f"| {name} | {value:.4g} | {results['theirs'][name]:.4g} |")


if __name__ == "__main__":
    main()
