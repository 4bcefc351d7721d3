"""The command `hf-detr convert`: converts official checkpoints to Hub folders and back."""

import argparse
import json
import sys
from pathlib import Path

from safetensors import SafetensorError
from transformers import PreTrainedModel

from .official_checkpoints import convert_official_checkpoint, export_official_checkpoint


def main(
    arguments: list[str] | None = None, prog: str = "python -m hf_detr.checkpoint_conversion"
) -> int:
    """Run the command; return the exit status."""
    parsed = _parser(prog).parse_args(arguments)
    try:
        if parsed.to_official:
            export_official_checkpoint(parsed.source, parsed.target, overwrite=parsed.overwrite)
            print(f"Converted {parsed.source} to {parsed.target}.")
        else:
            model = convert_official_checkpoint(
                parsed.source,
                parsed.target,
                dilation=parsed.dilation,
                num_heads=parsed.num_heads,
                id2label=_read_labels(parsed.labels) if parsed.labels else None,
                overwrite=parsed.overwrite,
            )
            print(f"Converted {parsed.source} to {parsed.target}: {_describe(model)}.")
    except (ValueError, OSError, SafetensorError) as error:
        print(f"ERROR: {error}\nNothing was written.", file=sys.stderr)
        return 1
    return 0


def _parser(prog: str) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog=prog,
        description="Convert a .pth checkpoint of facebookresearch/detr, "
        "fundamentalvision/Deformable-DETR, Atten4Vis/ConditionalDETR, MMDetection (2 or 3) or "
        "detrex to a folder for the Hub, or such a folder to a checkpoint of the first three.",
        epilog="exit status: 0 on success; 1 on an error, when nothing was written; 2 for invalid "
        "arguments.",
    )
    parser.add_argument("source", type=Path, help="the .pth file; with --to-official, the folder")
    parser.add_argument("target", type=Path, help="the folder; with --to-official, the .pth file")
    parser.add_argument(
        "--to-official", action="store_true", help="convert a folder to an official checkpoint"
    )
    parser.add_argument(
        "--dilation",
        action=argparse.BooleanOptionalAction,
        help="whether the backbone is dilated (DC5); default: from the file or its name",
    )
    parser.add_argument(
        "--num-heads",
        type=int,
        help="number of attention heads; default: from the file or its name",
    )
    parser.add_argument(
        "--labels", type=Path, help="JSON file with class names: a list, or an object by label"
    )
    parser.add_argument("--overwrite", action="store_true", help="replace existing files")
    return parser


def _read_labels(file: Path) -> dict[int, str]:
    try:
        names = json.loads(file.read_text(encoding="utf-8"))
        items = names.items() if isinstance(names, dict) else enumerate(names)
        return {int(number): str(name) for number, name in items}
    except (ValueError, TypeError) as error:
        raise ValueError(
            f'{file} doesn\'t name classes ({error}); expected JSON, ["cat", "dog"] or '
            '{"0": "cat", "1": "dog"}.'
        ) from error


def _describe(model: PreTrainedModel) -> str:
    config = model.config
    dilated = "with" if config.dilation else "without"
    proposals = getattr(config, "two_stage", False)
    num_queries = config.two_stage_num_proposals if proposals else config.num_queries
    return (
        f"a {type(model).__name__}: {config.backbone} {dilated} dilation, "
        f"{config.encoder_attention_heads} heads, {num_queries} queries, {config.num_labels} "
        f"labels, {model.num_parameters() / 1e6:.1f} M parameters"
    )


if __name__ == "__main__":
    sys.exit(main())
