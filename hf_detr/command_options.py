"""Options that several commands have."""

import argparse
import os
from pathlib import Path
from typing import Any

from transformers import HfArgumentParser

from .published_checkpoints import embedded_model_folder

DTYPES = ("float32", "bfloat16", "float16")
DTYPE_HELP = (
    "of weights and maps, default as saved; bfloat16 takes about half the time on CPUs with units "
    "for it, and much longer on others"
)


def make_parser(prog: str | None, description: str, epilog: str) -> argparse.ArgumentParser:
    """A parser whose help keeps the lines of description and epilog as they are."""
    return argparse.ArgumentParser(
        prog=prog,
        description=description,
        epilog=epilog,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )


def add_model_options(parser: argparse.ArgumentParser, several: bool = False) -> None:
    """Add `--model` and `--device`, which `load_model` takes; with several models, a list."""
    folder = str(embedded_model_folder())
    parser.add_argument(
        "--model",
        nargs="+" if several else None,
        default=[folder] if several else folder,
        help="folder or name on the Hub; default: the small detector of ten kinds of garments "
        "that comes with hf_detr",
    )
    parser.add_argument("--device", help="such as cpu or cuda:1; default: a GPU if there is one")


def add_dtype(parser: argparse.ArgumentParser) -> None:
    """Add `--dtype`, as `load_model` takes it."""
    parser.add_argument("--dtype", choices=DTYPES, help=DTYPE_HELP)


def add_threshold(parser: argparse.ArgumentParser) -> None:
    """Add `--threshold`, as `predict` takes it."""
    parser.add_argument(
        "--threshold", type=_share, default=0.5, help="least score of an object, default 0.5"
    )


def positive(text: str) -> int:
    """A whole number from 1, as argparse's `type`."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is no whole number from 1")
    return int(text)


def _share(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = -1
    if not 0 <= value <= 1:  # NaN isn't either
        raise argparse.ArgumentTypeError(f"{text!r} is no number from 0 to 1")
    return value


def size_hw(text: str) -> tuple[int, int]:
    """(height, width) from `480x640`, as argparse's `type`."""
    height, _, width = text.partition("x")
    return positive(height), positive(width)


def parse_dataclasses(parser: HfArgumentParser, arguments: list[str] | None) -> list[Any]:
    """The parser's dataclasses; what it doesn't know ends the program with status 2."""
    *parsed, unknown = parser.parse_args_into_dataclasses(arguments, return_remaining_strings=True)
    if unknown:
        parser.error(f"unknown arguments: {' '.join(unknown)}")
    return parsed


def prepare_file(file: Path) -> None:
    """Make a file's folder, before the work whose result it will hold.

    Raises:
        OSError: if the file can't be written.
    """
    file.parent.mkdir(parents=True, exist_ok=True)
    if file.is_dir() or not os.access(file if file.exists() else file.parent, os.W_OK):
        raise OSError(f"{file} can't be written: it is a folder, or it mustn't be changed.")
