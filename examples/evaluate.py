"""Evaluate a detector on COCO-style data and print AP and AR, overall and per class.

    python examples/evaluate.py --model FOLDER --coco annotations.json --images FOLDER
    torchrun --nproc-per-node 4 examples/evaluate.py --model FOLDER --coco ... --images ...

The result doesn't depend on the batch size or on the number of processes.
"""

import argparse
import json
import os
import sys
from pathlib import Path

import torch
from transformers import (
    AutoImageProcessor,
    AutoModelForImageSegmentation,
    AutoModelForObjectDetection,
)

from hf_detr import evaluate, metrics_table, read_coco


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", required=True, help="folder or name on the Hub")
    parser.add_argument("--coco", type=Path, required=True, help="JSON with the annotations")
    parser.add_argument("--images", type=Path, required=True, help="folder of the images")
    parser.add_argument("--masks", action="store_true", help="of a segmentation model, masks too")
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--num-workers", type=int, default=0, help="processes that load images")
    parser.add_argument("--device", help="default: a GPU if there is one")
    parser.add_argument("--json", type=Path, help="also write the numbers to this file")
    return parser.parse_args()


def start_process() -> tuple[int, str]:
    """Join torchrun's other processes, if there are any: this one's rank, and its device."""
    rank, local_rank = int(os.environ.get("RANK", 0)), int(os.environ.get("LOCAL_RANK", 0))
    device = f"cuda:{local_rank}" if torch.cuda.is_available() else "cpu"
    if "RANK" in os.environ:
        if device != "cpu":
            torch.cuda.set_device(device)
        torch.distributed.init_process_group("gloo" if device == "cpu" else "nccl")
    return rank, device


def main() -> None:
    arguments = parse_arguments()
    for path in (arguments.coco, arguments.images):
        if not path.exists():
            sys.exit(f"{path} doesn't exist")
    rank, device = start_process()
    auto_class = AutoModelForImageSegmentation if arguments.masks else AutoModelForObjectDetection
    model = auto_class.from_pretrained(arguments.model).to(arguments.device or device)
    dataset = read_coco(arguments.coco, arguments.images, masks=arguments.masks)
    metrics = evaluate(
        model,
        AutoImageProcessor.from_pretrained(arguments.model),
        dataset,
        batch_size=arguments.batch_size,
        num_workers=arguments.num_workers,
        iou_types=("bbox", "segm") if arguments.masks else ("bbox",),
    )
    if rank == 0:
        print(metrics_table(metrics))
        if arguments.json is not None:
            arguments.json.parent.mkdir(parents=True, exist_ok=True)
            arguments.json.write_text(json.dumps(metrics, indent=2) + "\n")
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main()
