"""Train a detector from data to a model with its card: `hf_detr.train`."""

import copy
import os
import sys
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from torch import nn
from transformers import PreTrainedModel, pipeline

from ..checkpoints.model_card import CARD_NAME, needs_hf_detr
from ..checkpoints.publishing import push_to_hub
from ..data.dataset import DetectionDataset
from ..data.formats import DataArguments
from ..data.split_check import check_splits
from ..data.streamed import StreamedDataset
from ..data.tiles import KEPT_BYTES, tile_dataset
from ..distributed import process_index
from ..evaluation.coco_evaluator import metrics_table
from ..inference.model_loading import TRAINED, embedded_model_folder
from ..models.object_detector import ObjectDetector
from ..models.segmentation import Segmenter
from ..models.variants import VARIANTS
from ..wording import some_of
from .batch_size import find_micro_batch_size
from .card import name_of_data, write_card
from .lora import merge_lora
from .model_setup import is_new, make_model, make_transform, prepare_model
from .options import AUTO, TrainingOptions, check_output
from .trainer import Training

HEALTHY = 0.9  # AP50 on overfitted images
FEW_STEPS = {True: 5000, False: 200}  # of a new and of a trained model


@dataclass(frozen=True)
class TrainingResult:
    """What a training gives.

    Attributes:
        folder: the model with its card, for `from_pretrained`; None after a health check.
        metrics: those of the best evaluation, with its `epoch` and `step`.
        history: the metrics of all evaluations.
    """

    folder: Path | None
    metrics: dict[str, Any]
    history: list[dict[str, Any]]


def train(
    model: str | os.PathLike[str] | PreTrainedModel | None,
    data: Any,
    output: str | os.PathLike[str] = "trained",
    *,
    processor: Any = None,
    data_name: str | None = None,
    **options: Any,
) -> TrainingResult:
    """Train a detector, alone or in each process of `accelerate launch` or `torchrun`.

    The output folder has the best `model` with its card, `losses.csv`, and `checkpoints`, from
    which an interrupted training resumes exactly. The first process writes it, after the others
    have returned.

    Args:
        model: folder or Hub name of a trained model; a model type such as "deformable_detr", or a
            `.json` file of an architecture, for a new one; or a model. None: the small detector
            that comes with hf_detr.
        data: data for training and validation, as for `read_splits`: a folder, a file, a name on
            the Hub, a data set, or a pair of data sets; or `DataArguments` with further options.
            A transform that was set on training data is used instead of the papers' augmentation.
        output: folder for the results.
        processor: of a model that is given as an object.
        data_name: name of the data in the card; default: that of the folder.
        options: those of `TrainingOptions`, and of `DataArguments`, such as `val_fraction`.

    Returns:
        Where the model is, and its metrics.

    Raises:
        ValueError, TypeError: if options, data or model don't allow the training, or a health check
            fails.
        NonFiniteLossError: if the loss isn't finite, without `skip_nonfinite`.
    """
    names = {one.name for one in fields(DataArguments)} & set(options)
    of_data = {name: options.pop(name) for name in names}
    if not isinstance(data, DataArguments):
        data = DataArguments(data)
    arguments = replace(data, **of_data) if of_data else data  # a copy lists folders again
    training = prepare(model, arguments, Path(output), TrainingOptions(**options), processor)
    training.run()
    training.accelerator.end_training()
    best, folder = training.best(), None
    if training.options.overfit:
        _report_health(training)
    else:
        folder = Path(output) / TRAINED
        if training.accelerator.is_main_process:
            best = _finish(training, folder, data_name or name_of_data(arguments.data))
    return TrainingResult(folder, best, training.history)


def prepare(
    model: Any,
    data: DataArguments,
    output: Path,
    options: TrainingOptions,
    processor: Any = None,
) -> Training:
    """Read data and model, and the checkpoint to resume from.

    Arguments and errors are those of `train`.
    """
    options.check()
    check_output(output, options.resume)
    accelerator = make_accelerator(options, output)
    torch.manual_seed(options.seed)
    train_data, val_data = data.read_splits(options.seed, options.panoptic)
    whole = train_data
    if options.tiles is not None:
        if isinstance(train_data, StreamedDataset) or isinstance(val_data, StreamedDataset):
            raise ValueError("A stream can't be cut into --tiles; omit one of them.")
        cut = options.tiles, options.overlap
        train_data, _ = tile_dataset(train_data, *cut, kept_bytes=KEPT_BYTES)
    if options.overfit:
        whole = train_data = val_data = train_data.first(options.overfit)
    is_trained = model is None or not is_new(str(model))
    name, model, processor, new_classes = _find_model(model, processor, options, train_data)
    prepare_model(model, processor, options)
    recipe = VARIANTS[model.config.model_type].recipe
    options = options.filled(
        recipe,
        len(train_data),
        width=model.config.d_model,
        is_trained=is_trained,
        has_new_classes=bool(new_classes),
    )
    _check_data(whole, val_data, model, options)
    if train_data.transform is None:
        train_data = copy.copy(train_data)  # which may have been given
        train_data.set_transform(make_transform(options, processor))
    elif unused := options.augmentation():
        raise ValueError(
            f"The data have a transform of their own; omit it or {' and '.join(unused)}."
        )
    if options.micro_batch_size == AUTO:
        found = find_micro_batch_size(accelerator, model, processor, train_data, options.batch_size)
        options = replace(options, micro_batch_size=found)
    # TensorBoard takes neither lists nor None.
    config = {
        key: value if isinstance(value, int | float | str) else str(value)
        for key, value in options.recorded().items()
    }
    accelerator.init_trackers("hf_detr", config)
    source = {"model": name}
    if isinstance(train_data, StreamedDataset):  # whose rows the processes divide
        source["processes"] = accelerator.num_processes
    training = Training(
        accelerator, model, processor, train_data, val_data, options, output, source
    )
    if options.resume:
        training.resume()
    training.log.say(*_describe(training, is_trained, new_classes))
    return training


def _find_model(
    model: Any, processor: Any, options: TrainingOptions, data: DetectionDataset
) -> tuple[str, PreTrainedModel, Any, list[str]]:
    """The name of the model, itself, its processor, and classes that are new to it."""
    if isinstance(model, nn.Module):
        _check_given(model, processor, data, options)
        name = getattr(model, "name_or_path", "") or type(model).__name__
        return name, model, processor, []
    if model is not None and not isinstance(model, str | os.PathLike):
        raise TypeError(f"The model is a {type(model).__name__}; expected a name or a model.")
    source = str(embedded_model_folder() if model is None else model)
    name = "embedded" if model is None else source
    return name, *make_model(source, options, data)


def make_accelerator(options: TrainingOptions, output: Path) -> Accelerator:
    """Make the accelerator of a training, also of a second one in the same process."""
    output.mkdir(parents=True, exist_ok=True)
    # Accelerate keeps the precision and compilation of an earlier training in the same process.
    AcceleratorState._reset_state()
    return Accelerator(
        # Required for several processes on CPUs.
        cpu=not torch.accelerator.is_available(),
        mixed_precision=options.precision,
        log_with=options.tracker or None,
        project_dir=output,
        dynamo_backend="inductor" if options.compile else None,
    )


def _check_given(
    model: nn.Module, processor: Any, data: DetectionDataset, options: TrainingOptions
) -> None:
    """Check that a model that is given as an object can be trained with the data and options."""
    expected = Segmenter if options.panoptic else ObjectDetector
    if not isinstance(model, expected):
        raise TypeError(
            f"The model is a {type(model).__name__} of {type(model).__module__}; expected a "
            f"detector of hf_detr{' with a mask head' if options.panoptic else ''}."
        )
    if options.backbone_weights is not None:
        raise ValueError("--backbone-weights is for a new model by its type, not for an object.")
    if processor is None:
        raise TypeError("The model is an object; give its image processor too, as processor=.")
    if model.config.id2label != data.id2label:
        raise ValueError(
            f"The model's classes are {model.config.id2label}, those of the data {data.id2label}. "
            "Change them with model.resize_classes(data.id2label), or give the model's name."
        )


def _check_data(
    train_data: DetectionDataset,
    val_data: DetectionDataset,
    model: PreTrainedModel,
    options: TrainingOptions,
) -> None:
    """Print what the data are and their errors; raise if there are any.

    No process waits for another here: checking much data takes longer than a barrier lasts.
    """
    # Whole images can have more objects than a model of their tiles needs.
    num_queries = None if options.tiles else model.detection_transformer.num_queries
    splits = {"train": train_data}
    if not options.overfit:
        splits["val"] = val_data
    report = check_splits(splits, num_queries)
    if process_index() == 0:
        print(report.text(), file=sys.stderr)
    if not report.may_train:
        raise ValueError("The data have errors; fix the problems marked ERROR above.")


def _describe(training: Training, is_trained: bool, new_classes: list[str]) -> list[str]:
    """Say which classes are new, how many steps there will be, and whether they are few."""
    options, images = training.options, len(training.train_data)
    lines = [
        f"{training.total_steps} steps: {options.epochs} epochs of {training.steps_per_epoch}, "
        f"with {images} images in batches of {options.batch_size}, evaluated on "
        f"{len(training.val_data)} images."
    ]
    if new_classes:
        lines.insert(0, f"Classes that are new to the model: {some_of(new_classes, 10)}.")
    if options.tiles:
        most = training.train_data.table.most_objects()
        number = training.plain_model.detection_transformer.num_queries
        if most > number:
            lines.append(
                f"Tiles have up to {most} objects, but the model only {number} queries; give "
                f"--num-queries {most} or more."
            )
    few = FEW_STEPS[not is_trained]
    if training.total_steps < few and not options.overfit:
        kind = "fine-tuning" if is_trained else "a new model"
        lines.append(
            f"These are few steps: {kind} usually needs at least {few}. More --epochs or a smaller "
            "--batch-size give more."
        )
    return lines


def _finish(training: Training, folder: Path, data_name: str) -> dict[str, Any]:
    """Save the best weights, averaged if available, with a card; return their metrics."""
    options, model = training.options, training.plain_model
    best, tensors = training.load_best()
    model.load_state_dict(tensors.get("ema", tensors["model"]))
    if options.lora:
        merge_lora(model)
    model.config.auxiliary_loss = False
    model.save_pretrained(folder)
    training.processor.save_pretrained(folder)
    write_card(
        folder,
        options.push_to or folder.as_posix(),
        pipeline(
            "object-detection",
            model=model.detector if options.panoptic else model,
            image_processor=training.processor,
        ),
        training.val_data,
        data_name,
        training.history,
        best,
        training.log.losses.path,
        training.recorded_options(),
    )
    training.log.say(metrics_table({n: v for n, v in best.items() if n not in ("epoch", "step")}))
    reason = f" Load it with hf_detr: {text}" if (text := needs_hf_detr(model)) else ""
    print(f"Saved the best model (step {best['step']}) in {folder}.{reason}")
    if options.push_to is not None:
        card = (folder / CARD_NAME).read_text(encoding="utf-8")
        images = sorted(folder.glob("*.png"))
        push_to_hub(model, training.processor, options.push_to, card=card, files=images)
    return best


def _report_health(training: Training) -> None:
    """Print the result of the health check; raise if it failed."""
    metrics = training.history[-1]
    if metrics["AP50"] < HEALTHY:
        raise ValueError(
            f"NOT healthy: after {training.step} steps AP50 is {metrics['AP50']:.2f} on the "
            f"overfitted images; expected more than {HEALTHY}. Check the boxes and class names of "
            "the data with `hf-detr check`, or use more --epochs or another --lr."
        )
    if training.accelerator.is_main_process:
        number = len(training.train_data)
        print(f"Healthy: AP50 is {metrics['AP50']:.2f} on {number} overfitted images.")
