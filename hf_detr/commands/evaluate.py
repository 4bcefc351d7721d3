"""Measure AP and AR of a model on a data set, overall and per class.

With --masks, a segmentation model's masks are evaluated too; with --segments, the folder of COCO's
panoptic PNGs, also its panoptic quality. The results depend neither on the batch size nor on the
number of processes, which torchrun starts: `torchrun --nproc-per-node 4 -m hf_detr evaluate …`.
Without --split, it reads the first of the splits val, valid, validation and test.

--report writes a page for the browser: errors of each kind, confused classes, curves, thresholds,
and pictures of the worst images and of targets that may be wrong. --write writes the score
thresholds of the best F1 to the model's config.json and card, from where predict takes them.
"""

import argparse
import json
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..atomic_saving import atomic_file
from ..wording import some_of
from .options import (
    add_data_options,
    add_model_options,
    add_tile_options,
    check_tile_options,
    checked_data,
    positive,
    prepare_file,
)

if TYPE_CHECKING:
    from ..evaluation.coco_evaluator import Metrics

STDOUT = Path("-")
REPORT_LIBRARIES = ("matplotlib", "jinja2")
PANOPTIC_PARTS = ("pq", "sq", "rq", "pq_things", "pq_stuff")


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the command's options."""
    add_model_options(parser)
    add_data_options(parser)
    parser.add_argument("--batch-size", type=positive, default=8, help="default 8")
    help = "processes that load images, default 0"
    parser.add_argument("--num-workers", type=int, default=0, help=help)
    help = "detections that count per image and class, default COCO's 100; above 10. With --lvis "
    help += "those per image, default 300"
    parser.add_argument("--max-detections", type=positive, help=help)
    help = "JSON file of LVIS that --data was read from, for AP by LVIS' rules"
    parser.add_argument("--lvis", type=Path, metavar="FILE", help=help)
    add_tile_options(parser)
    parser.add_argument(
        "--json",
        type=Path,
        nargs="?",
        const=STDOUT,
        help="also write all numbers here; without a file, print them instead of the table",
    )
    help = "also write a page with errors, curves and pictures here, for example report.html"
    parser.add_argument("--report", type=Path, metavar="FILE", help=help)
    help = "write each class's threshold of the best F1 to config.json and the card of --model"
    parser.add_argument("--write", action="store_true", help=help)


def check(parsed: argparse.Namespace) -> None:
    """Check the arguments; `data` becomes those of the data set."""
    if parsed.max_detections is None:
        parsed.max_detections = 100 if parsed.lvis is None else 300
    if parsed.lvis is not None:
        if parsed.report is not None or parsed.write:
            raise ValueError("--report and --write follow COCO's rules; omit them, or --lvis.")
        if not parsed.lvis.is_file():
            raise FileNotFoundError(f"--lvis: {parsed.lvis} doesn't exist.")
    if parsed.max_detections <= 10:  # not later, as an error of the evaluator
        raise ValueError(f"--max-detections is {parsed.max_detections}; expected more than 10.")
    check_tile_options(parsed)
    parsed.data = checked_data(parsed, evaluation=True)
    if parsed.json not in (None, STDOUT):
        prepare_file(parsed.json)
    if parsed.report is not None:
        for library in REPORT_LIBRARIES:
            if find_spec(library) is None:
                raise ValueError(
                    f"--report needs {library}; pip install 'hf_detr[plots]' installs it."
                )
        prepare_file(parsed.report)
        if parsed.json == parsed.report:
            raise ValueError(f"--report and --json are both {parsed.report}; give two files.")
    if parsed.write and not Path(parsed.model or "", "config.json").is_file():
        raise ValueError("--write changes files of --model, which must be a folder of yours.")


def run(parsed: argparse.Namespace) -> int:
    """Evaluate the model; return the exit status."""
    with _joined_processes() as (rank, device):
        metrics, dataset = _compute_metrics(parsed, parsed.device or device)
    if rank == 0:
        _report({key: value for key, value in metrics.items() if key != "diagnosis"}, parsed.json)
        try:
            if parsed.write:
                _write_thresholds(parsed.model, metrics)
        finally:
            if parsed.report is not None:
                _write_page(parsed, metrics, dataset)
    return 0


@contextmanager
def _joined_processes() -> Iterator[tuple[int, str | None]]:
    """Join the other processes of torchrun, if any; give this one's rank and device."""
    import torch

    from ..distributed import device_of_process

    if "RANK" not in os.environ:
        yield 0, None
        return
    device = device_of_process() or "cpu"
    if device != "cpu":
        torch.cuda.set_device(device)
    # Only objects are gathered, not tensors of GPUs; nccl doesn't work if processes share a GPU.
    torch.distributed.init_process_group("gloo")
    try:
        yield torch.distributed.get_rank(), device
    finally:
        torch.distributed.destroy_process_group()


def _compute_metrics(parsed: argparse.Namespace, device: str | None) -> tuple["Metrics", Any]:
    """Return the metrics, with panoptic quality as `panoptic`, and the data set."""
    from ..data.coco_columns import read_json
    from ..evaluation.evaluate import evaluate, evaluate_panoptic
    from ..inference.model_loading import load_model

    dataset = parsed.data.read_validation()
    has_segments = dataset.segment_maps is not None
    needs_masks = dataset.masks or has_segments
    model, processor = load_model(parsed.model, device, needs_masks, parsed.dtype)
    given = model, processor, dataset, parsed.batch_size, parsed.num_workers
    iou_types = ("bbox", "segm") if dataset.masks else ("bbox",)
    more = {"tiles": parsed.tiles, "overlap": parsed.overlap}
    options = {"iou_types": iou_types, "max_detections": parsed.max_detections, **more}
    if parsed.lvis is not None:
        options["lvis"] = read_json(parsed.lvis)
    if parsed.report is not None or parsed.write:
        options["diagnose"] = True
    metrics = evaluate(*given, **options)
    if has_segments:
        metrics["panoptic"] = evaluate_panoptic(*given, **more)
    return metrics, dataset


def _write_page(parsed: argparse.Namespace, metrics: "Metrics", dataset: Any) -> None:
    from ..plots.report import write_report

    model = Path(parsed.model).name if parsed.model else "The garment detector of hf_detr"
    write_report(parsed.report, metrics, dataset, model, str(parsed.data.data))
    print(f"The report is {parsed.report}.", file=sys.stderr)


def _write_thresholds(folder: str, metrics: "Metrics") -> None:
    from ..checkpoints.threshold_files import write_class_thresholds

    thresholds = metrics["diagnosis"].class_thresholds
    if not thresholds:
        raise ValueError("--write: no object of the data is found, so there are no thresholds.")
    files = write_class_thresholds(folder, thresholds)
    where = " and ".join(map(str, files))
    print(f"The thresholds of {some_of(sorted(thresholds))} are in {where}.", file=sys.stderr)


def _report(metrics: "Metrics", file: Path | None) -> None:
    from ..evaluation.coco_evaluator import metrics_table

    # JSON has no NaN, for example of the quality without any segments.
    numbers = json.loads(json.dumps(metrics), parse_constant=lambda name: None)
    text = json.dumps(numbers, indent=2) + "\n"
    if file == STDOUT:
        print(text, end="")
        return
    print(metrics_table({key: value for key, value in metrics.items() if key != "panoptic"}))
    if "panoptic" in metrics:
        quality = metrics["panoptic"]
        print("\n" + "  ".join(f"{part} {100 * quality[part]:.1f}" for part in PANOPTIC_PARTS))
    if file is not None:
        with atomic_file(file) as unfinished:
            unfinished.write_text(text, encoding="utf-8")
