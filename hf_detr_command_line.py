"""The console command `hf-detr`: the list of commands, and how one is run.

Importing a module of hf_detr runs `hf_detr/__init__.py` first, which imports torch and transformers
and takes seconds. Help and wrong arguments don't wait for that: this module is outside of the
package, and loads a command without running `__init__.py` until its arguments are checked.

A command is a module that doesn't import torch at its top. Its docstring is the description in its
help, and it has these functions:

- `add_options(parser)`.
- `check(parsed)`, if parsed arguments can be wrong; a ValueError or an OSError becomes status 2.
- `run(parsed)` imports what it needs, does the work and returns the exit status. A ValueError, an
  OSError or an ImportError becomes one line on stderr and status 1.
"""

import argparse
import importlib
import importlib.util
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from importlib import metadata
from types import ModuleType

PACKAGE = "hf_detr"
# What each module of hf_detr.commands does
COMMANDS = {
    "train": "train or fine-tune a detector on your own data",
    "predict": "find objects in images and draw them",
    "video": "find objects in the frames of a video",
    "evaluate": "AP, AR and panoptic quality on a data set",
    "verify": "compare a published checkpoint's AP on COCO with its authors'",
    "check": "find errors in a data set before training",
    "convert": "official checkpoints to Hub folders, and back",
    "export": "write a model as an ONNX, OpenVINO or torch.export file",
    "demo": "serve a page for the browser to try models",
    "bench": "measure how fast models are on this machine",
    "doctor": "show versions, devices, compiled operator, caches",
}
STATUSES = """exit status:
  0  done
  1  not done, or what was checked has errors; stderr says why
  2  the arguments are wrong, or a file that they name is missing
  3  predict: finished, but some images failed
  130  interrupted; results that were finished before stay"""


def main(arguments: list[str] | None = None) -> int:
    """Run the command that the command line names; return the exit status."""
    arguments = sys.argv[1:] if arguments is None else arguments
    with suppress(AttributeError):  # where it isn't a terminal, file or pipe
        sys.stdout.reconfigure(errors="backslashreplace")  # names of files can be any bytes
    name = _parser().parse_args(arguments[:1]).command
    try:
        with _package_without_init():
            command = importlib.import_module(f"{PACKAGE}.commands.{name}")
            parsed = _parse(command, f"hf-detr {name}", arguments[1:])
        status = command.run(parsed)
        sys.stdout.flush()
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
    except (ValueError, OSError, ImportError) as error:
        print(f"ERROR: {error}", file=sys.stderr)
        _flush_or_close_stdout()
        return 1
    return status


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="hf-detr",
        description=(
            "DETR, Conditional and Deformable DETR, DINO and Table Transformer on the command line."
        ),
        epilog=f"`hf-detr COMMAND --help` shows a command's options.\n\n{STATUSES}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"{PACKAGE} {_version()}")
    commands = parser.add_subparsers(metavar="COMMAND", dest="command", required=True)
    for name, what in COMMANDS.items():
        commands.add_parser(name, help=what, add_help=False)
    return parser


def _parse(command: ModuleType, prog: str, arguments: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog=prog,
        description=command.__doc__,
        epilog=STATUSES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    command.add_options(parser)
    parsed = parser.parse_args([_with_hyphens(argument) for argument in arguments])
    try:
        if hasattr(command, "check"):
            command.check(parsed)
    except (ValueError, OSError) as error:
        parser.exit(2, f"{prog}: error: {error}\n")
    return parsed


def _with_hyphens(argument: str) -> str:
    """Return an argument with an option's `_` as `-`, because transformers' scripts have those."""
    if not argument.startswith("--"):
        return argument
    name, equals, value = argument.partition("=")
    return name.replace("_", "-") + equals + value


def _version() -> str:
    try:
        return metadata.version(PACKAGE)
    except metadata.PackageNotFoundError:
        return "(not installed)"


@contextmanager
def _package_without_init() -> Iterator[None]:
    """Let modules of hf_detr be imported without its `__init__.py`, which is run at the end."""
    if PACKAGE in sys.modules:
        yield
        return
    spec = importlib.util.find_spec(PACKAGE)
    package = sys.modules[PACKAGE] = importlib.util.module_from_spec(spec)
    try:
        yield
        spec.loader.exec_module(package)
    except BaseException:  # argparse's SystemExit too: don't leave a package without its names
        for module in [name for name in sys.modules if name.split(".")[0] == PACKAGE]:
            del sys.modules[module]
        raise


def _flush_or_close_stdout() -> None:
    """Python itself would flush a broken pipe again at exit, and print a second error."""
    try:
        sys.stdout.flush()
    except OSError:
        with suppress(OSError, AttributeError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
