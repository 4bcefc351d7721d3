"""Train with transformers' `Trainer`; `train_detection.py` has more features.

    python examples/training/train_with_trainer.py --data data/garments --model deformable_detr \\
        --output_dir trained --num_train_epochs 50 --per_device_train_batch_size 2

All arguments of `TrainingArguments` are supported. The script adds a collator, COCO's metrics, the
papers' parameter groups, and a loss that is normalized by the number of objects in all accumulated
batches.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn
from training_options import FurtherOptions, Options, check_options
from training_setup import make_model, make_transform
from transformers import (
    HfArgumentParser,
    Trainer,
    TrainerCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
)
from transformers.hf_argparser import HfArg

from hf_detr.data.augmentation import make_evaluation_transform
from hf_detr.data.batches import DetectionCollator
from hf_detr.data.dataset import DetectionDataset
from hf_detr.data.formats import DataArguments
from hf_detr.evaluation.trainer_metrics import keep_detections, make_compute_metrics
from hf_detr.losses.loss_terms import LossNormalizers


@dataclass
class DetectionOptions:
    """Options in addition to the Trainer's."""

    model: str = HfArg(
        help="detr, conditional_detr or deformable_detr; a .json file with another architecture; "
        "or folder or Hub name of a trained model"
    )
    backbone_weights: Path | None = HfArg(
        default=None, help=".safetensors or .pth file with the weights of a new model's backbone"
    )


class DetectionTrainer(Trainer):
    """A Trainer whose accumulated loss equals that of one large batch."""

    normalizers: LossNormalizers

    def get_batch_samples(self, *arguments: Any, **named: Any) -> tuple[list[dict], None]:
        """Return the batches of the next optimizer step and count their objects."""
        batches, _ = super().get_batch_samples(*arguments, **named)
        labels = [label for batch in batches for label in batch["labels"]]
        model = self.accelerator.unwrap_model(self.model)
        self.normalizers = model.count_loss_normalizers(labels)
        return batches, None

    def compute_loss(self, model: nn.Module, inputs: dict, *arguments: Any, **named: Any) -> Any:
        """Loss of a batch; in training, as a part of the step's."""
        if not model.training:
            return super().compute_loss(model, inputs, *arguments, **named)
        inputs = {**inputs, "loss_normalizers": self.normalizers}
        loss = super().compute_loss(model, inputs, *arguments, **named)
        # The Trainer divides by this number to average batches.
        return loss * self.current_gradient_accumulation_steps


class NewAugmentation(TrainerCallback):
    """Changes the augmentation in every epoch."""

    def __init__(self, data: DetectionDataset) -> None:
        self.data = data

    def on_epoch_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **named: Any
    ) -> None:
        """Set the epoch of the data set."""
        # The epoch is not an integer if training is resumed within an epoch.
        self.data.set_epoch(int(state.epoch + 1e-6))


def main() -> None:
    """Read the options, train, evaluate and save."""
    parser = HfArgumentParser(
        (DetectionOptions, DataArguments, TrainingArguments), description=__doc__
    )
    parser.set_defaults(
        learning_rate=1e-4,
        weight_decay=1e-4,
        max_grad_norm=0.1,
        lr_scheduler_type="constant",
        eval_strategy="epoch",
        remove_unused_columns=False,
        report_to="none",
    )
    options, data, arguments = parser.parse_args_into_dataclasses()
    torch.manual_seed(arguments.seed)
    ours = Options(data=data.data, model=options.model)
    further = FurtherOptions(backbone_weights=options.backbone_weights)
    try:
        check_options(ours, further)
        train_data, val_data = data.read_splits(seed=arguments.seed)
        model, processor = make_model(ours, further, train_data)
    except (ValueError, OSError) as error:
        parser.error(str(error))
    train_data.set_transform(make_transform(ours, further, processor))
    size = dict(processor.size)
    val_data.set_transform(
        make_evaluation_transform(size["shortest_edge"], size.get("longest_edge"))
    )
    optimizer = torch.optim.AdamW(
        model.parameter_groups(arguments.learning_rate), weight_decay=arguments.weight_decay
    )
    trainer = DetectionTrainer(
        model,
        arguments,
        data_collator=DetectionCollator(processor),
        train_dataset=train_data,
        eval_dataset=val_data,
        processing_class=processor,
        optimizers=(optimizer, None),
        compute_metrics=make_compute_metrics(processor, val_data.ground_truth()),
        preprocess_logits_for_metrics=keep_detections,
        callbacks=[NewAugmentation(train_data)],
    )
    trainer.train(resume_from_checkpoint=arguments.resume_from_checkpoint)
    model.config.auxiliary_loss = False
    trainer.save_model()


if __name__ == "__main__":
    main()
