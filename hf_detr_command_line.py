"""The console command `hf-detr`: its table of contents.

A module beside the package: importing anything of the package imports torch and transformers,
which takes seconds, and a list of commands or a misspelt one shouldn't wait for that.
"""

import argparse
import importlib
import os
import sys
from contextlib import suppress

# Module with `main(arguments, prog)`, which returns the exit status, and what it does
COMMANDS = {
    "predict": ("hf_detr.prediction_command", "find objects in images and draw them"),
    "video": ("hf_detr.video_command", "find objects in the frames of a film"),
    "evaluate": ("hf_detr.evaluation_command", "AP, AR and panoptic quality on a data set"),
    "check": ("hf_detr.data_check", "name what is wrong with a data set before training does"),
    "convert": ("hf_detr.checkpoint_conversion", "checkpoints of the papers' code, and back"),
    "export": ("hf_detr.model_export", "a model as ONNX or torch.export file, checked"),
    "bench": ("hf_detr.latency", "how fast models are on this machine"),
    "doctor": ("hf_detr.doctor", "versions, devices, compiled operator, caches"),
}
EPILOG = """`hf-detr COMMAND --help` tells a command's options.

exit status:
  0  done
  1  not done, or what was checked has errors; stderr says why
  2  the arguments are wrong
  3  predict: finished, but some images failed
  130  interrupted; what was finished until then stays"""


def main(arguments: list[str] | None = None) -> int:
    """Run the command that the command line names; return the exit status."""
    arguments = sys.argv[1:] if arguments is None else arguments
    with suppress(AttributeError):  # where it is no terminal, file or pipe
        sys.stdout.reconfigure(errors="backslashreplace")  # names of files can be any bytes
    parser = argparse.ArgumentParser(
        prog="hf-detr",
        description="DETR, Conditional DETR and Deformable DETR on the command line.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = parser.add_subparsers(metavar="COMMAND", dest="command", required=True)
    for name, (_, what) in COMMANDS.items():
        commands.add_parser(name, help=what, add_help=False)
    command = parser.parse_args(arguments[:1]).command
    try:
        module = importlib.import_module(COMMANDS[command][0])
        status = module.main(arguments[1:], prog=f"hf-detr {command}")
        sys.stdout.flush()
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
    except OSError as error:  # the reader of a pipe that went away, a full disk
        print(f"ERROR: {error}", file=sys.stderr)
        _give_up_stdout()
        return 1
    return status


def _give_up_stdout() -> None:
    """Python would try once more when it ends, and say so."""
    with suppress(OSError, AttributeError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
