"""Options that several commands have, and checks of arguments; nothing here needs torch."""

import argparse
import os
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import MISSING, fields
from pathlib import Path
from typing import Any, get_args, get_origin, get_type_hints

from ..data.formats import DataArguments
from ..data.layouts import HUB_NAME
from ..data.tile_grid import OVERLAP, check_tiles

FORMER = ("--coco", "--voc", "--yolo", "--hub")


def add_model_options(parser: argparse.ArgumentParser, several: bool = False) -> None:
    """Add `--model` (with `several`, a list), `--device` and `--dtype`, for `load_model`."""
    parser.add_argument(
        "--model",
        type=model_name,
        nargs="+" if several else None,
        default=[None] if several else None,
        help="folder or name on the Hub; default: the small detector of ten kinds of garments that "
        "comes with hf_detr",
    )
    add_device_options(parser)


def add_device_options(parser: argparse.ArgumentParser) -> None:
    """Add `--device` and `--dtype`."""
    parser.add_argument("--device", help="such as cpu or cuda:1; default: a GPU if there is one")
    parser.add_argument(
        "--dtype",
        choices=("float32", "bfloat16", "float16"),
        help="of weights and feature maps, default as saved; bfloat16 takes about half the time on "
        "CPUs that support it, and much longer on others",
    )


def add_prediction_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of a model and of tiles, `--output`, `--threshold` and `--batch-size`."""
    add_model_options(parser)
    parser.add_argument(
        "--output", type=Path, default="outputs", help="folder for the results, default outputs"
    )
    help = "lowest score of an object; default: the model's class_thresholds, otherwise 0.5"
    parser.add_argument("--threshold", type=_score, help=help)
    parser.add_argument(
        "--batch-size",
        type=positive,
        default=8,
        help="images or tiles of equal size that run together, default 8; doesn't change the "
        "results",
    )
    add_tile_options(parser)


def add_tile_options(parser: argparse.ArgumentParser) -> None:
    """Add `--tiles` and `--overlap`, for `check_tile_options`."""
    parser.add_argument(
        "--tiles",
        type=positive,
        metavar="N",
        help="cut larger images into tiles of N x N pixels, and join their results; default: no",
    )
    parser.add_argument(
        "--overlap",
        type=float,
        metavar="X",
        help=f"share of a tile's side that it has in common with the next one, default {OVERLAP}",
    )


def check_tile_options(parsed: argparse.Namespace) -> None:
    """Check `--tiles` and `--overlap`, and fill in the default.

    Raises:
        ValueError: if one is too small or too large, or has no effect.
    """
    if parsed.overlap is not None and parsed.tiles is None:
        raise ValueError("--overlap has no effect without --tiles.")
    parsed.overlap = OVERLAP if parsed.overlap is None else parsed.overlap
    check_tiles(parsed.tiles, parsed.overlap)


def add_json_option(parser: argparse.ArgumentParser) -> None:
    """Add `--json`."""
    help = "print the results as JSON, and nothing else on stdout"
    parser.add_argument("--json", action="store_true", help=help)


def add_data_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of a data set, for `checked_data`."""
    add_field_options(parser, DataArguments)
    for name in FORMER:
        parser.add_argument(name, action=_FormerOption, nargs="?", help=argparse.SUPPRESS)


def add_field_options(
    parser: argparse.ArgumentParser,
    options: type,
    groups: Mapping[str, str] | None = None,
    names: Mapping[str, str] | None = None,
) -> None:
    """Add an option for each field of a dataclass, with the field's type, default and help.

    Args:
        parser: of the command.
        options: the dataclass.
        groups: for the first option of each group its title; None: `parser` is one.
        names: of options that aren't named as their field.
    """
    types = get_type_hints(options)
    group = parser
    for field in fields(options):
        if groups and field.name in groups:
            group = parser.add_argument_group(groups[field.name])
        kinds = get_args(types[field.name]) or (types[field.name],)
        kinds = [kind for kind in kinds if kind is not type(None)]
        given: dict[str, Any] = {"help": field.metadata["help"], "default": argparse.SUPPRESS}
        if kinds == [bool]:
            given["action"] = "store_true"
        elif get_origin(types[field.name]) is list:
            given |= {"nargs": "+", "type": kinds[0], "metavar": "NAME"}
        else:
            literals = [value for kind in kinds for value in get_args(kind)]
            literals = literals or [kind for kind in kinds if isinstance(kind, str)]
            metavar = {int: "N", float: "X", Path: "FILE"}.get(kinds[0], "NAME")
            parse = {"type": _parser_of(kinds), "metavar": metavar}
            given |= {"choices": literals} if literals else parse
        if field.default not in (None, MISSING, False, 0):
            given["help"] += f", default {field.default}"
        name = (names or {}).get(field.name, f"--{field.name.replace('_', '-')}")
        for other, new in (names or {}).items():
            given["help"] = given["help"].replace(f"--{other}", new)
        group.add_argument(name, dest=field.name, **given)


def given_fields(parsed: argparse.Namespace, options: type) -> dict[str, Any]:
    """Return the options of `add_field_options` that were given."""
    return {f.name: vars(parsed)[f.name] for f in fields(options) if f.name in parsed}


def _parser_of(kinds: Sequence[type]) -> Callable[[str], Any]:
    """Return argparse's `type` for a value of one of some types, tried in this order."""

    def parse(text: str) -> Any:
        for kind in kinds:
            with suppress(ValueError):
                return kind(text)
        raise argparse.ArgumentTypeError(f"{text!r} isn't {kinds[0].__name__}")

    return parse


class _FormerOption(argparse.Action):
    """An option that `--data` has replaced."""

    def __call__(
        self, parser: argparse.ArgumentParser, parsed: object, value: object, name: str | None
    ) -> None:
        """End with an error that names `--data`."""
        parser.error(f"{name} is now --data, which finds the format; use --data {value or ''}")


def checked_data(parsed: argparse.Namespace, **needed: bool) -> DataArguments:
    """Return the options of a data set; `needed` are the arguments of `DataArguments.check`.

    Raises:
        ValueError, FileNotFoundError: as in `DataArguments.check`.
    """
    data = DataArguments(**given_fields(parsed, DataArguments))
    data.check(**needed)
    return data


def positive(text: str) -> int:
    """Parse an integer of at least 1, as argparse's `type`."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} isn't an integer of at least 1")
    return int(text)


def _score(text: str) -> float:
    with suppress(ValueError):
        if 0 <= float(text) <= 1:
            return float(text)
    raise argparse.ArgumentTypeError(f"{text!r} isn't a number from 0 to 1")


def trainable_model(text: str) -> str:
    """Return a name as in `model_name`, or the file of an architecture, as argparse's `type`."""
    return text if text.endswith(".json") and Path(text).is_file() else model_name(text)


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


def prepare_file(file: Path) -> None:
    """Make a file's folder, before the work whose result it will contain.

    Raises:
        OSError: if the file can't be written.
    """
    file.parent.mkdir(parents=True, exist_ok=True)
    if file.is_dir() or not os.access(file if file.exists() else file.parent, os.W_OK):
        raise OSError(f"{file} can't be written: it is a folder, or you have no permission.")
