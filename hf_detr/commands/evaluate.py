"""`hf-detr evaluate`: AP and AR of a model on a data set, overall and per class.

With --masks, a segmentation model's masks are evaluated too; with --segments, the folder of COCO's
panoptic PNGs, also its panoptic quality. The results depend neither on the batch size nor on the
number of processes, which torchrun starts: `torchrun --nproc-per-node 4 -m hf_detr evaluate …`.
The exit status is 0 if all is done, 1 if model or data can't be used, 2 if the arguments are wrong.
"""

import json
import math
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from transformers import HfArgumentParser

from ..atomic_saving import atomic_file
from ..data.formats import DataArguments
from .options import (
    DTYPE_HELP,
    DTYPES,
    MODEL_HELP,
    argument_errors,
    model_name,
    parse_dataclasses,
    prepare_file,
)

if TYPE_CHECKING:
    from ..evaluation.coco_evaluator import Metrics

STDOUT = Path("-")
PANOPTIC_PARTS = ("pq", "sq", "rq", "pq_things", "pq_stuff")


@dataclass
class EvaluationArguments:
    """What to evaluate, and how."""

    model: str | None = field(default=None, metadata={"help": MODEL_HELP})
    batch_size: int = 8
    num_workers: int = field(default=0, metadata={"help": "Processes that load images."})
    device: str | None = field(default=None, metadata={"help": "Default: a GPU if there is one."})
    dtype: str | None = field(default=None, metadata={"choices": DTYPES, "help": DTYPE_HELP})
    json: Path | None = field(
        default=None,
        metadata={
            "help": "Also write all numbers here; without a file, print them instead of the table.",
            "nargs": "?",
            "const": STDOUT,
        },
    )


def parse(
    arguments: list[str], prog: str | None = None
) -> tuple[EvaluationArguments, DataArguments]:
    """Parse and check the arguments."""
    parser = HfArgumentParser((EvaluationArguments, DataArguments), prog=prog, description=__doc__)
    parsed, data = parse_dataclasses(parser, arguments)
    with argument_errors(parser):
        if parsed.model is not None:
            model_name(parsed.model)
        data.check()
        if parsed.json not in (None, STDOUT):
            prepare_file(parsed.json)
    return parsed, data


def run(parsed: tuple[EvaluationArguments, DataArguments]) -> int:
    """Evaluate the model; return the exit status."""
    arguments, data = parsed
    with _joined_processes() as (rank, device):
        metrics = _compute_metrics(arguments, data, arguments.device or device)
    if rank == 0:
        _report(metrics, arguments.json)
    return 0


@contextmanager
def _joined_processes() -> Iterator[tuple[int, str | None]]:
    """Join the other processes of torchrun, if any; give this one's rank and device."""
    import torch

    if "RANK" not in os.environ:
        yield 0, None
        return
    device = f"cuda:{os.environ.get('LOCAL_RANK', 0)}" if torch.cuda.is_available() else "cpu"
    if device != "cpu":
        torch.cuda.set_device(device)
    torch.distributed.init_process_group("gloo" if device == "cpu" else "nccl")
    try:
        yield torch.distributed.get_rank(), device
    finally:
        torch.distributed.destroy_process_group()


def _compute_metrics(
    arguments: EvaluationArguments, data: DataArguments, device: str | None
) -> "Metrics":
    """Return AP and AR of boxes, of masks if they are read, and panoptic quality as `panoptic`."""
    from ..evaluation.evaluate import evaluate, evaluate_panoptic
    from ..inference.model_loading import load_model

    dataset = data.read()
    needs_masks = dataset.masks or data.segments is not None
    model, processor = load_model(arguments.model, device, needs_masks, arguments.dtype)
    options: dict[str, Any] = {
        "batch_size": arguments.batch_size,
        "num_workers": arguments.num_workers,
    }
    iou_types = ("bbox", "segm") if dataset.masks else ("bbox",)
    metrics = evaluate(model, processor, dataset, iou_types=iou_types, **options)
    if data.segments is not None:
        metrics["panoptic"] = evaluate_panoptic(model, processor, dataset, **options)
    return metrics


def _report(metrics: "Metrics", file: Path | None) -> None:
    from ..evaluation.coco_evaluator import metrics_table

    text = json.dumps(_null_for_nan(metrics), indent=2) + "\n"
    if file == STDOUT:
        print(text, end="")
        return
    print(metrics_table({key: value for key, value in metrics.items() if key != "panoptic"}))
    if "panoptic" in metrics:
        quality = metrics["panoptic"]
        print("\n" + "  ".join(f"{part} {100 * quality[part]:.1f}" for part in PANOPTIC_PARTS))
    if file is not None:
        with atomic_file(file) as unfinished:
            unfinished.write_text(text)


def _null_for_nan(value: Any) -> Any:
    """Replace NaN, for example the quality without any segments, because JSON doesn't have it."""
    if isinstance(value, dict):
        return {key: _null_for_nan(one) for key, one in value.items()}
    return None if isinstance(value, float) and math.isnan(value) else value
