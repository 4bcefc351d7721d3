"""Describe a data set and report its errors, image by image, before training starts.

hf-detr check --data FOLDER --num-queries 100

The training and the validation data are both checked, and that no image is in both; --split checks
one split only.
"""

import argparse
import warnings
from pathlib import Path

from .options import add_data_options, checked_data, positive, prepare_file


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the command's options."""
    add_data_options(parser)
    add = parser.add_argument
    help = "report images with more objects than this number"
    add("--num-queries", type=positive, help=help)
    help = "don't decode the images; misses truncated files"
    add("--headers-only", action="store_true", help=help)
    help = (
        "decode all images; by default, of more than 20,000 a random sample of 2,000 is decoded, "
    )
    help += "and of remote ones 200"
    add("--decode-all", action="store_true", help=help)
    help = "neither use nor cache results"
    add("--no-cache", action="store_true", help=help)
    add("--most", type=int, default=5, help="number of problems to print of each kind, default 5")
    add("--report", type=Path, help="JSON file to write the summary and all problems to")
    help = "print the summary and all problems as JSON instead, and nothing else on stdout"
    add("--json", action="store_true", help=help)


def check(parsed: argparse.Namespace) -> None:
    """Check the arguments; `data` becomes those of the data set."""
    parsed.data = checked_data(parsed)
    if parsed.report:
        prepare_file(parsed.report)


def run(parsed: argparse.Namespace) -> int:
    """Check the data set and print the report; return the exit status."""
    from ..data.split_check import check_splits

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the report says the same
        splits = parsed.data.read_all()
    decode = False if parsed.headers_only else True if parsed.decode_all else None
    report = check_splits(splits, parsed.num_queries, decode, not parsed.no_cache)
    print(report.to_json() if parsed.json else report.text(parsed.most))
    # A file or a chosen split may be the validation data, and a stream can't be divided.
    is_part = parsed.data.images or parsed.data.split or parsed.data.stream
    if report.may_train and len(splits) == 1 and not (is_part or parsed.json):
        print("There is only one split: give `hf-detr train` --val-fraction 0.2, or add another.")
    if parsed.report:
        report.save(parsed.report)
    return 0 if report.may_train else 1
