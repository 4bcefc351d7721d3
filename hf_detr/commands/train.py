"""Train a detector on your own data, on one device or many.

hf-detr train --data data/mine --model facebook/detr-resnet-50 --small-data
accelerate launch --num_processes 4 -m hf_detr train --data ...
torchrun --nproc-per-node 4 -m hf_detr train --data ...
hf-detr train --data data/mine --overfit 8         # health check
hf-detr train --data data/mine ... --resume        # after a crash

Options that aren't given have the values of the model's paper. The output folder gets the best
`model` with its card, `losses.csv`, and `checkpoints` to resume from.
"""

import argparse
from pathlib import Path

from ..training.options import GROUPS, TrainingOptions, check_output
from .options import (
    add_data_options,
    add_field_options,
    checked_data,
    given_fields,
    trainable_model,
)


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the command's options."""
    add_data_options(parser.add_argument_group("data"))
    add = parser.add_argument
    add(
        "--model",
        type=trainable_model,
        help="folder or Hub name of a trained model; for a new one a model type (detr, "
        "conditional_detr, deformable_detr, dino_detr or table-transformer) or a .json file with "
        "another architecture; default: the small detector that comes with hf_detr",
    )
    add("--output", type=Path, default="trained", help="folder for all results, default trained")
    add_field_options(parser, TrainingOptions, GROUPS)


def check(parsed: argparse.Namespace) -> None:
    """Check the arguments; `data` and `options` become those of the data set and the training."""
    parsed.options = given_fields(parsed, TrainingOptions)
    options = TrainingOptions(**parsed.options)
    options.check()
    parsed.data = checked_data(parsed, training=True, panoptic=options.panoptic)
    check_output(Path(parsed.output), options.resume)


def run(parsed: argparse.Namespace) -> int:
    """Train; return the exit status."""
    import sys

    from ..training.health import NonFiniteLossError
    from ..training.train import train

    try:
        train(parsed.model, parsed.data, parsed.output, **parsed.options)
    except NonFiniteLossError as error:
        print(f"Training has stopped. {error}", file=sys.stderr)
        return 1
    return 0
