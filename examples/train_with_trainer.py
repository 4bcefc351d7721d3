"""Fine-tune a detector with transformers' `Trainer`, in one file.

    pip install 'hf_detr[train]'
    python examples/train_with_trainer.py --data FOLDER --model facebook/detr-resnet-50 \\
        --output_dir trained --num_train_epochs 20 --per_device_train_batch_size 4

`--data` is as for `hf-detr train`; all arguments of `TrainingArguments` are supported. The file
adds a collator, COCO's metrics, the papers' parameter groups, and a loss that is normalized by the
number of objects in all accumulated batches. `hf-detr train` has exact resume and more.
"""

from dataclasses import dataclass
from typing import Any

import torch
from transformers import (
    AutoImageProcessor,
    AutoModelForObjectDetection,
    HfArgumentParser,
    Trainer,
    TrainerCallback,
    TrainingArguments,
)
from transformers.hf_argparser import HfArg

import hf_detr


@dataclass
class ModelArguments:
    """The model to fine-tune."""

    model: str = HfArg(default=str(hf_detr.embedded_model_folder()), help="Folder or Hub name.")
    image_size: int = HfArg(default=480, help="Shortest edge of the images in pixels.")


class DetectionTrainer(Trainer):
    """A Trainer whose accumulated loss equals that of one large batch."""

    normalizers: Any

    def get_batch_samples(self, *arguments: Any, **named: Any) -> tuple[list[dict], None]:
        """Return the batches of the next optimizer step and count their objects."""
        batches, _ = super().get_batch_samples(*arguments, **named)
        labels = [label for batch in batches for label in batch["labels"]]
        model = self.accelerator.unwrap_model(self.model)
        self.normalizers = model.count_loss_normalizers(labels)
        return batches, None

    def compute_loss(self, model: Any, inputs: dict, *arguments: Any, **named: Any) -> Any:
        """Loss of a batch; in training, as a part of the step's."""
        if not model.training:
            return super().compute_loss(model, inputs, *arguments, **named)
        inputs = {**inputs, "loss_normalizers": self.normalizers}
        loss = super().compute_loss(model, inputs, *arguments, **named)
        # The Trainer divides by this number to average batches.
        return loss * self.current_gradient_accumulation_steps


class NewAugmentation(TrainerCallback):
    """Changes the augmentation in every epoch."""

    def __init__(self, data: hf_detr.DetectionDataset) -> None:
        self.data = data

    def on_epoch_begin(self, args: Any, state: Any, control: Any, **named: Any) -> None:
        """Set the epoch, which isn't an integer if training is resumed within one."""
        self.data.set_epoch(int(state.epoch + 1e-6))


def main() -> None:
    """Read the options, train, evaluate and save."""
    parser = HfArgumentParser((hf_detr.DataArguments, ModelArguments, TrainingArguments))
    parser.set_defaults(
        learning_rate=5e-5,
        weight_decay=1e-4,
        max_grad_norm=0.1,
        eval_strategy="epoch",
        remove_unused_columns=False,
        report_to="none",
    )
    data, options, arguments = parser.parse_args_into_dataclasses()
    torch.manual_seed(arguments.seed)
    train_data, val_data = data.read_splits(arguments.seed)
    size = {"shortest_edge": options.image_size, "longest_edge": 2 * options.image_size}
    edges = [round(options.image_size * scale) for scale in (0.75, 0.875, 1)]
    train_data.set_transform(hf_detr.make_training_transform(edges, size["longest_edge"]))
    val_data.set_transform(hf_detr.make_evaluation_transform(*size.values()))
    processor = AutoImageProcessor.from_pretrained(options.model, size=size)
    # The auxiliary loss trains every decoder layer, as in the papers.
    model = AutoModelForObjectDetection.from_pretrained(
        options.model, auxiliary_loss=True, dtype=torch.float32
    )
    model.resize_classes(train_data.id2label)  # those of known names keep their weights
    groups = model.parameter_groups(arguments.learning_rate, class_factor=10)
    optimizer = torch.optim.AdamW(groups, weight_decay=arguments.weight_decay)
    trainer = DetectionTrainer(
        model,
        arguments,
        data_collator=hf_detr.DetectionCollator(processor),
        train_dataset=train_data,
        eval_dataset=val_data,
        processing_class=processor,
        optimizers=(optimizer, None),
        compute_metrics=hf_detr.make_compute_metrics(processor, val_data.ground_truth()),
        preprocess_logits_for_metrics=hf_detr.keep_detections,
        callbacks=[NewAugmentation(train_data)],
    )
    trainer.train(resume_from_checkpoint=arguments.resume_from_checkpoint)
    model.config.auxiliary_loss = False  # only training needs it
    trainer.save_model()


if __name__ == "__main__":
    main()
