"""Predictions of several processes: a file of lines for each, and one that they become.

Each line of a process has the `position` of its image's file, address, tar or row among those of
all processes. Merged lines are in this order, and as those of one process. Nothing here needs
torch.
"""

import heapq
import re
from collections.abc import Mapping, Sequence
from operator import itemgetter
from pathlib import Path
from typing import Any

from ..atomic_saving import atomic_file
from .prediction_lines import (
    PredictionLines,
    complete_run,
    line_of,
    options_file,
    write_options,
)

WHOLE = "predictions.jsonl"
MERGED = "merged"  # the key of the number of processes, in the summary of merged lines
SHARD = re.compile(r"predictions-\d{5,}-of-(\d{5,})\.jsonl")


def part_name(process: int, num_processes: int) -> str:
    """Return a process' part of names, such as `00001-of-00004` for the first of four."""
    return f"{process + 1:05}-of-{num_processes:05}"


def shard_file(folder: Path, process: int, num_processes: int) -> Path:
    """Return the file of a process' lines."""
    if num_processes == 1:
        return folder / WHOLE
    return folder / f"predictions-{part_name(process, num_processes)}.jsonl"


def find_shards(folder: Path) -> list[Path]:
    """Find the files of all processes of a run.

    Raises:
        ValueError: if there are none, or files of several runs, or if some are missing.
    """
    names = map(SHARD.fullmatch, (path.name for path in folder.glob("predictions-*.jsonl")))
    numbers = sorted({int(name[1]) for name in names if name})
    if not numbers:
        raise ValueError(
            f"{folder} has no results of several processes, such as "
            f"{shard_file(folder, 0, 2).name}."
        )
    if len(numbers) > 1:
        raise ValueError(
            f"{folder} has results of runs with {' and '.join(map(str, numbers))} processes; "
            "remove the files of all but one."
        )
    files = [shard_file(folder, process, numbers[0]) for process in range(numbers[0])]
    missing = [file.name for file in files if not file.exists()]
    if missing:
        raise ValueError(
            f"{folder} has results of {len(files) - len(missing)} of {len(files)} processes; "
            f"{missing[0]} is missing. Copy it there, or run the same command with --resume."
        )
    return files


def read_shards(files: Sequence[Path]) -> tuple[list[PredictionLines], dict[str, Any]]:
    """Open the lines of all processes; return also the summary of the first one.

    Raises:
        ValueError: if a process hasn't ended, or they had different options.
    """
    runs = [complete_run(file) for file in files]  # all, before any lines are read
    first, summary = runs[0]
    for file, (options, _) in zip(files, runs, strict=True):
        if options != first:
            changed = [k for k in {**first, **options} if first.get(k) != options.get(k)]
            raise ValueError(
                f"{files[0]} and {file} were written with different options: {', '.join(changed)}. "
                "Run all processes with the same ones."
            )
    return [PredictionLines.of_complete_run(file) for file in files], summary


def check_whole(folder: Path) -> None:
    """Check that there is no file of a run of one process, which merged lines would replace.

    Raises:
        ValueError: if there is.
    """
    file = folder / WHOLE
    if not file.exists() or not options_file(file).exists():  # of a merge that was killed
        return
    try:
        is_merged = MERGED in complete_run(file)[1]
    except ValueError:
        is_merged = False
    if not is_merged:
        raise ValueError(
            f"{file} is of a run of one process, and merging would replace it; an earlier version "
            "may also have merged it, without a mark. Move it and "
            f"{options_file(file).name} to another folder, or remove them, and merge again."
        )


def merge_shards(
    folder: Path, shards: Sequence[PredictionLines], summary: Mapping[str, Any]
) -> PredictionLines:
    """Write the lines of all processes to one file, in the order of the images; open it."""
    records = heapq.merge(*(lines.records() for lines in shards), key=itemgetter("position"))
    file = folder / WHOLE
    with atomic_file(file) as unfinished, unfinished.open("wb") as lines:
        lines.writelines(line_of(_renumbered(record, i)) for i, record in enumerate(records))
    write_options(file, shards[0].options, {**summary, MERGED: len(shards)})
    return PredictionLines.of_complete_run(file)


def _renumbered(record: dict[str, Any], index: int) -> dict[str, Any]:
    renumbered = {**record, "index": index}
    del renumbered["position"]
    if "error" in record:
        old, new = f"image {record['index']} ", f"image {index} "
        renumbered["error"] = record["error"].replace(old, new, 1)
    return renumbered
