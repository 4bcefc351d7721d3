"""Evaluate a detector and print AP and AR, overall and per class.

    python examples/evaluate.py --model FOLDER --coco annotations.json --images FOLDER
    torchrun --nproc-per-node 4 examples/evaluate.py --model FOLDER --coco FILE --images FOLDER

With --masks, a segmentation model's masks are compared too; with --segments, the folder of COCO's
panoptic PNGs, its panoptic quality as well. The result depends neither on the batch size nor on
the number of processes.
"""

import json
import os
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from transformers import (
    AutoImageProcessor,
    AutoModelForImageSegmentation,
    AutoModelForObjectDetection,
    HfArgumentParser,
)

from hf_detr import DataArguments, evaluate, evaluate_panoptic, metrics_table


@dataclass
class EvaluationArguments:
    """What to evaluate, and how."""

    model: str = field(metadata={"help": "Folder or name on the Hub."})
    batch_size: int = 8
    num_workers: int = field(default=0, metadata={"help": "Processes that load images."})
    device: str | None = field(default=None, metadata={"help": "Default: a GPU if there is one."})
    json: Path | None = field(default=None, metadata={"help": "Also write all numbers here."})


def start_process() -> tuple[int, str]:
    """Join torchrun's other processes, if there are any: this one's rank, and its device."""
    rank, local_rank = int(os.environ.get("RANK", 0)), int(os.environ.get("LOCAL_RANK", 0))
    device = f"cuda:{local_rank}" if torch.cuda.is_available() else "cpu"
    if "RANK" in os.environ:
        if device != "cpu":
            torch.cuda.set_device(device)
        torch.distributed.init_process_group("gloo" if device == "cpu" else "nccl")
    return rank, device


def compute_metrics(arguments: EvaluationArguments, data: DataArguments, device: str) -> dict:
    """AP and AR of boxes, of masks if they are read, and panoptic quality as `panoptic`."""
    dataset = data.read()
    auto_class = AutoModelForImageSegmentation if dataset.masks else AutoModelForObjectDetection
    model = auto_class.from_pretrained(arguments.model).to(arguments.device or device)
    processor = AutoImageProcessor.from_pretrained(arguments.model)
    options: dict[str, Any] = {
        "batch_size": arguments.batch_size,
        "num_workers": arguments.num_workers,
    }
    iou_types = ("bbox", "segm") if dataset.masks else ("bbox",)
    metrics = evaluate(model, processor, dataset, iou_types=iou_types, **options)
    if data.segments is not None:
        metrics["panoptic"] = evaluate_panoptic(model, processor, dataset, **options)
    return metrics


def main() -> None:
    arguments, data = HfArgumentParser(
        (EvaluationArguments, DataArguments), description=__doc__.splitlines()[0]
    ).parse_args_into_dataclasses()
    rank, device = start_process()
    try:
        metrics = compute_metrics(arguments, data, device)
    except (ValueError, OSError) as error:
        sys.exit(f"{error}")
    if rank == 0:
        panoptic = metrics.get("panoptic")
        print(metrics_table({k: v for k, v in metrics.items() if k != "panoptic"}))
        if panoptic is not None:
            parts = ("pq", "sq", "rq", "pq_things", "pq_stuff")
            print("\n" + "  ".join(f"{part} {100 * panoptic[part]:.1f}" for part in parts))
        if arguments.json is not None:
            arguments.json.parent.mkdir(parents=True, exist_ok=True)
            arguments.json.write_text(json.dumps(metrics, indent=2) + "\n")
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main()
