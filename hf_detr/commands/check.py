"""`hf-detr check`: read a data set and report its errors, image by image, before training starts.

    hf-detr check --coco annotations.json --images folder --num-queries 100

The exit status is 0 if training may start, 1 if not, and 2 if the arguments are wrong.
"""

import sys
import warnings
from dataclasses import dataclass, field
from pathlib import Path

from transformers import HfArgumentParser

from ..data.formats import DataArguments
from .options import argument_errors, parse_dataclasses, prepare_file


@dataclass
class CheckArguments:
    """How to check, and where to write the report."""

    num_queries: int | None = field(
        default=None,
        metadata={"help": "Report images with more objects than this number."},
    )
    headers_only: bool = field(
        default=False, metadata={"help": "Don't decode the images; misses truncated files."}
    )
    no_cache: bool = field(default=False, metadata={"help": "Neither use nor cache results."})
    most: int = field(default=5, metadata={"help": "Number of problems to print of each kind."})
    report: Path | None = field(
        default=None, metadata={"help": "JSON file to write all problems to."}
    )
    json: bool = field(
        default=False,
        metadata={"help": "Print all problems as JSON instead, and nothing else on stdout."},
    )


def parse(arguments: list[str], prog: str | None = None) -> tuple[DataArguments, CheckArguments]:
    """Parse and check the arguments."""
    parser = HfArgumentParser((DataArguments, CheckArguments), prog=prog, description=__doc__)
    data, how = parse_dataclasses(parser, arguments)
    with argument_errors(parser):
        data.check()
        if how.num_queries is not None and how.num_queries < 1:
            raise ValueError(f"num_queries is {how.num_queries}; expected 1 or more.")
        if how.report:
            prepare_file(how.report)
    return data, how


def run(parsed: tuple[DataArguments, CheckArguments]) -> int:
    """Check the data set and print the report; return the exit status."""
    from ..data.check import check_dataset

    data, how = parsed
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the report says the same
            dataset = data.read()
    except (ValueError, OSError) as error:
        print(f"ERROR: {error}\nThe data can't be read; fix it first.", file=sys.stderr)
        return 1
    report = check_dataset(dataset, how.num_queries, not how.headers_only, not how.no_cache)
    print(report.to_json() if how.json else report.text(how.most))
    if how.report:
        report.save(how.report)
    return 0 if report.may_train else 1
