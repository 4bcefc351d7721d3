"""Convert official checkpoints to folders for the Hub, and back.

A checkpoint is a .pth of facebookresearch/detr, fundamentalvision/Deformable-DETR,
Atten4Vis/ConditionalDETR, microsoft/table-transformer, IDEA-Research/DINO, MMDetection (2 or 3),
Sense-X/Co-DETR or detrex; folders are converted to a .pth of the first five. If a conversion fails,
nothing is written.
"""

import argparse
import json
from pathlib import Path
from typing import TYPE_CHECKING

from .options import positive

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the command's options."""
    parser.add_argument("source", type=Path, help="the .pth; with --to-official, the folder")
    parser.add_argument("target", type=Path, help="the folder; with --to-official, the .pth")
    parser.add_argument("--to-official", action="store_true", help="convert back")
    parser.add_argument(
        "--dilation",
        action=argparse.BooleanOptionalAction,
        help="whether the backbone is dilated (DC5), if neither the file nor its name says so",
    )
    parser.add_argument("--num-heads", type=positive, help="number of attention heads, likewise")
    parser.add_argument(
        "--labels", type=Path, help="JSON file with the class names: a list, or by number"
    )
    parser.add_argument("--overwrite", action="store_true", help="replace existing files")


def check(parsed: argparse.Namespace) -> None:
    """Check that the source exists; `labels` becomes a dictionary or None."""
    if not parsed.source.exists():
        expected = "a model's folder" if parsed.to_official else "a .pth file"
        raise FileNotFoundError(f"{parsed.source} doesn't exist; expected {expected}.")
    parsed.labels = _read_labels(parsed.labels) if parsed.labels else None


def run(parsed: argparse.Namespace) -> int:
    """Convert the checkpoint; return the exit status."""
    from ..checkpoints.official_checkpoints import (
        convert_official_checkpoint,
        export_official_checkpoint,
    )

    if parsed.to_official:
        export_official_checkpoint(parsed.source, parsed.target, overwrite=parsed.overwrite)
        print(f"{parsed.target} contains the model in {parsed.source}.")
        return 0
    model = convert_official_checkpoint(
        parsed.source,
        parsed.target,
        dilation=parsed.dilation,
        num_heads=parsed.num_heads,
        id2label=parsed.labels,
        overwrite=parsed.overwrite,
    )
    print(f"{parsed.target} contains {_describe(model)}.")
    return 0


def _read_labels(file: Path) -> dict[int, str]:
    try:
        names = json.loads(file.read_text(encoding="utf-8"))
        items = names.items() if isinstance(names, dict) else enumerate(names)
        return {int(number): str(name) for number, name in items}
    except (ValueError, TypeError) as error:
        raise ValueError(
            f'{file} doesn\'t contain class names ({error}); expected JSON, ["cat", "dog"] or '
            '{"0": "cat", "1": "dog"}.'
        ) from error


def _describe(model: "PreTrainedModel") -> str:
    config = model.config
    dilated = "with" if config.dilation else "without"
    return (
        f"a {type(model).__name__}: {config.backbone} {dilated} dilation, "
        f"{config.encoder_attention_heads} heads, {config.queries_per_image} queries, "
        f"{config.num_labels} labels, {model.num_parameters() / 1e6:.1f} M parameters"
    )
