"""Options that several commands have, and checks of arguments; nothing here needs torch."""

import argparse
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from transformers import HfArgumentParser

DTYPES = ("float32", "bfloat16", "float16")
DTYPE_HELP = (
    "of weights and feature maps, default as saved; bfloat16 takes about half the time on CPUs "
    "that support it, and much longer on others"
)
MODEL_HELP = (
    "folder or name on the Hub; default: the small detector of ten kinds of garments that comes "
    "with hf_detr"
)
HUB_NAME = re.compile(r"\w[\w.-]*(/\w[\w.-]*)?")


def make_parser(prog: str | None, description: str, epilog: str) -> argparse.ArgumentParser:
    """Make a parser whose help keeps the line breaks of description and epilog."""
    return argparse.ArgumentParser(
        prog=prog,
        description=description,
        epilog=epilog,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )


def add_model_options(parser: argparse.ArgumentParser, several: bool = False) -> None:
    """Add `--model` (with `several`, a list), `--device` and `--dtype`, for `load_model`."""
    parser.add_argument(
        "--model",
        type=model_name,
        nargs="+" if several else None,
        default=[None] if several else None,
        help=MODEL_HELP,
    )
    parser.add_argument("--device", help="such as cpu or cuda:1; default: a GPU if there is one")
    parser.add_argument("--dtype", choices=DTYPES, help=DTYPE_HELP)


def add_threshold(parser: argparse.ArgumentParser) -> None:
    """Add `--threshold`, as `predict` takes it."""
    parser.add_argument(
        "--threshold", type=_score, default=0.5, help="lowest score of an object, default 0.5"
    )


def positive(text: str) -> int:
    """Parse an integer of at least 1, as argparse's `type`."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} isn't an integer of at least 1")
    return int(text)


def _score(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = -1
    if not 0 <= value <= 1:  # false for NaN too
        raise argparse.ArgumentTypeError(f"{text!r} isn't a number from 0 to 1")
    return value


def model_name(text: str) -> str:
    """Return the name of a folder or a possible name on the Hub, as argparse's `type`."""
    path = Path(text)
    if path.is_dir() or (HUB_NAME.fullmatch(text) and not path.exists()):
        return text
    problem = "is a file" if path.exists() else "doesn't exist"
    raise argparse.ArgumentTypeError(
        f"{text} {problem}; expected a folder or a name on the Hub like facebook/detr-resnet-50"
    )


def size_hw(text: str) -> tuple[int, int]:
    """Parse (height, width) from `480x640`, as argparse's `type`."""
    height, _, width = text.partition("x")
    return positive(height), positive(width)


def parse_dataclasses(parser: "HfArgumentParser", arguments: list[str] | None) -> list[Any]:
    """Return the parser's dataclasses; unknown arguments end the program with status 2."""
    *parsed, unknown = parser.parse_args_into_dataclasses(arguments, return_remaining_strings=True)
    if unknown:
        parser.error(f"unknown arguments: {' '.join(unknown)}")
    return parsed


@contextmanager
def argument_errors(parser: argparse.ArgumentParser) -> Iterator[None]:
    """Make a ValueError or an OSError one line on stderr and status 2."""
    try:
        yield
    except (ValueError, OSError, argparse.ArgumentTypeError) as error:
        parser.exit(2, f"{parser.prog}: error: {error}\n")


def prepare_file(file: Path) -> None:
    """Make a file's folder, before the work whose result it will contain.

    Raises:
        OSError: if the file can't be written.
    """
    file.parent.mkdir(parents=True, exist_ok=True)
    if file.is_dir() or not os.access(file if file.exists() else file.parent, os.W_OK):
        raise OSError(f"{file} can't be written: it is a folder, or you have no permission.")
