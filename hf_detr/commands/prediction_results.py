"""What `hf-detr predict` writes from lines in the end, those of one process or of several."""

import argparse
import heapq
import os
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from operator import itemgetter
from pathlib import Path
from typing import Any

from tqdm.auto import tqdm

from ..atomic_saving import atomic_file
from ..inference.prediction_formats import (
    FORMATS,
    IMAGE_FOLDERS,
    MAIN_FILES,
    write_format,
    write_report,
)
from ..inference.prediction_lines import PredictionLines
from ..inference.prediction_shards import (
    check_whole,
    find_shards,
    merge_shards,
    read_shards,
    shard_file,
)

MERGED_FORMATS = [name for name in FORMATS if name not in IMAGE_FOLDERS]  # of any run
UNCERTAIN = "--uncertain"
UNCERTAIN_LIST = "uncertain.txt"  # made of predictions.jsonl
SAID = 10  # uncertain images that are printed
NO_IMAGES = "there are no images in what was given."


def status_of(lines: PredictionLines) -> int:
    """Return the exit status of one process with these results."""
    return (3 if lines.num_results else 1) if lines.num_failures else 0


def write_results(
    parsed: argparse.Namespace,
    lines: PredictionLines,
    names: Mapping[int, str],
    header: Mapping[str, Any],
    skipped: Callable[[], Iterable[Path] | None] = lambda: None,
    parts: Sequence[Path] = (),
) -> None:
    """Write the format that the options ask for from the lines, if there are any results.

    Args:
        parsed, lines: options and lines.
        names, header: see `write_format`.
        skipped: gives its `skipped`.
        parts: files that the lines were merged from.
    """
    if parsed.json:
        write_report(sys.stdout, header, lines.records, skipped())
    if lines.num_results:  # else keep an earlier run's
        target = lines.file
        if parsed.format != "jsonl":
            given = parsed.format, parsed.output, lines.records, names, header, skipped()
            target, dropped = write_format(*given)
            if dropped:
                say(f"{dropped} objects without area within their image aren't in the data set.")
        say(f"The results are in {target}.", not parsed.json)
        if parsed.uncertain:
            _write_uncertain(parsed, lines)
    if lines.num_failures:
        done = lines.num_results + lines.num_failures
        say(f"{lines.num_failures} of {done} images failed; --retry-failed tries them again.")
    _name_older_files(parsed.output, parts or [lines.file])


def _name_older_files(folder: Path, lines: Sequence[Path]) -> None:
    """Say which files of other formats are older than the lines, and so of an earlier run."""
    written = max((file.stat().st_mtime_ns for file in lines if file.exists()), default=0)
    files = [name for name in MAIN_FILES if (folder / name).exists()]
    older = [name for name in files if (folder / name).stat().st_mtime_ns < written]
    if older:
        say(f"{folder} also has {', '.join(older)} of an earlier run, without these results.")


def _write_uncertain(parsed: argparse.Namespace, lines: PredictionLines) -> None:
    """Write the names of the most uncertain images, and print the first of them."""
    records = (record for record in lines.records() if "error" not in record)
    chosen = heapq.nlargest(parsed.uncertain, records, key=itemgetter("uncertainty"))
    file = parsed.output / UNCERTAIN_LIST
    names = "".join(f"{record['file']}\n" for record in chosen)
    with atomic_file(file) as unfinished:
        unfinished.write_bytes(os.fsencode(names))  # as they are, which can be any bytes
    say(f"The {len(chosen)} most uncertain images are in {file}.", not parsed.json)
    for record in chosen[:SAID]:
        say(f"{record['uncertainty']:9.4f}  {record['file']}", not parsed.json)


def merge_if_last(parsed: argparse.Namespace) -> None:
    """Merge the results of all processes, if this one was the last that wrote to the folder.

    No process waits: others of other machines can end hours later. Of two that end together both
    merge, with the same result. What is merged can be an earlier run's of processes that haven't
    written anything yet; they merge again.
    """
    found = _complete_shards(parsed)
    try:
        if found:
            _merge(parsed, *found)
    except ValueError:
        if _complete_shards(parsed):
            raise
        # Another process has just begun to replace its lines.


def _complete_shards(parsed: argparse.Namespace) -> tuple[list[PredictionLines], dict] | None:
    """Open the lines of all processes; None if some still run, or write to another folder."""
    number = parsed.num_processes
    try:
        return read_shards([shard_file(parsed.output, one, number) for one in range(number)])
    except (ValueError, OSError):
        return None


def merge_results(parsed: argparse.Namespace) -> int:
    """Merge what several processes have written; return the exit status.

    Raises:
        ValueError: if results are missing or not complete, or don't have what `--format` needs,
            or if those of one process would be replaced.
    """
    files = find_shards(parsed.output)
    check_whole(parsed.output)
    return status_of(_merge(parsed, *read_shards(files)))


def _merge(
    parsed: argparse.Namespace, shards: Sequence[PredictionLines], summary: Mapping[str, Any]
) -> PredictionLines:
    options = shards[0].options
    if parsed.format is None:
        parsed.format = options["--format"] if options["--format"] in IMAGE_FOLDERS else "jsonl"
    if parsed.format in IMAGE_FOLDERS and parsed.format != options["--format"]:
        raise ValueError(
            f"The processes ran without --format {parsed.format}, and haven't kept the images of "
            f"such a data set; merge with --format {' or '.join(MERGED_FORMATS)}."
        )
    if parsed.uncertain and UNCERTAIN not in options:
        raise ValueError("The processes ran without --uncertain; merge without it.")
    if not any(lines.num_results + lines.num_failures for lines in shards):
        raise ValueError(NO_IMAGES)
    (parsed.output / UNCERTAIN_LIST).unlink(missing_ok=True)
    lines = merge_shards(parsed.output, shards, summary)
    names = {int(label): name for label, name in summary["names"].items()}
    header = {"model": summary["model"], "threshold": options["--threshold"]}
    write_results(parsed, lines, names, header, parts=[one.file for one in shards])
    return lines


def say(text: str, to_stdout: bool = False) -> None:
    """Print above the progress bar."""
    tqdm.write(text, file=sys.stdout if to_stdout else sys.stderr)
