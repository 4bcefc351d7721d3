"""Predictions as lines of JSON, one per image, written as they come, and continued after a kill.

A line is the result of an image or the reason of its failure: `index` (of the image in this file's
part), `file`, and `objects` or `error`. Images are in groups of consecutive ones, whose lines are
in any order; the groups are in order. A failed image that is tried again gets another line, where
the groups start again from an earlier one; the last line of an image counts. So nothing of a long
run has to be in memory. A second file, with the ending `.run.json`, has the options of the run, and
in the end a summary. Nothing here needs torch.
"""

import heapq
import json
import os
from collections import deque
from collections.abc import Iterator, Mapping
from itertools import groupby, pairwise
from operator import itemgetter
from pathlib import Path
from typing import Any, BinaryIO

from ..atomic_saving import atomic_file
from .image_inputs import is_tar

COMPLETE = "complete"  # the key of a complete run's summary, beside the options
index_of = itemgetter("index")


class PredictionLines:
    """A file of lines of JSON, which replaces an earlier one with the first line.

    Args:
        file: the file.
        group_size: number of consecutive images whose lines can be in any order.
        options: what the results depend on, in JSON types.
        resume: whether to continue an earlier file. Its last line is dropped if it is torn.
        retry: whether failed images of the earlier file are tried again.
        made_of_lines: a file made of an earlier run's lines, removed with the first change.

    Raises:
        ValueError: if the earlier file was written with other options or isn't of predictions.
    """

    def __init__(
        self,
        file: Path,
        group_size: int,
        options: Mapping[str, Any],
        resume: bool = False,
        retry: bool = False,
        made_of_lines: Path | None = None,
    ) -> None:
        self.file, self.group_size, self.options = file, group_size, options
        self.retry, self.made_of_lines = retry, made_of_lines
        self._opened: BinaryIO | None = None
        self._has_begun = False
        self._note_nothing()
        if resume and file.exists():
            self._check_options()
            self._read_all()
            if retry and self.num_failures:
                self._drop_tar_at_end()
            self._opened = file.open("r+b")
            if self._opened.seek(0, os.SEEK_END) > self._end:  # else the file's time stays
                self._opened.truncate(self._end)
                self._opened.seek(0, os.SEEK_END)

    @classmethod
    def of_complete_run(cls, file: Path) -> "PredictionLines":
        """Open the file of a run that has ended, to read it; errors are those of `complete_run`."""
        options, summary = complete_run(file)
        lines = cls(file, summary["group_size"], options)
        lines._read_all()
        return lines

    @property
    def start(self) -> int:
        """Index of the first image of the first group that isn't complete."""
        return (self._group + (len(self._done) == self.group_size)) * self.group_size

    def has(self, index: int, name: str | None) -> bool:
        """Return whether the line of an image at `start` or after it is there already.

        With `retry`, that of a failed image isn't.

        Raises:
            ValueError: if it is there with another name; None is that of no image.
        """
        before, has_failed = self._done.get(index, (name, True))
        _check_name(self.file, index, before, name)
        return index in self._done and not (self.retry and has_failed)

    def add(self, record: Mapping[str, Any]) -> None:
        """Write the line of an image."""
        self._begin()
        self._opened.write(line := line_of(record))
        self._opened.flush()
        self._note(record, line)

    def torn_tars(self) -> dict[str, int]:
        """Return the number of images of each tar that couldn't be read to its end."""
        failed = (record["file"] for record in self.records() if "error" in record)
        tars = dict.fromkeys(filter(is_tar, failed), 0) if self.num_failures else {}
        for record in self.records() if tars else ():
            for tar in tars:
                tars[tar] += record["file"].startswith(f"{tar}/")
        return tars

    def complete(self, **summary: Any) -> None:
        """Note that all images have lines, with a summary in JSON types for `complete_run`."""
        self._begin()  # an empty file, if there are no images
        write_options(self.file, self.options, {"group_size": self.group_size, **summary})

    def failed(self, names: Iterator[str]) -> Iterator[int]:
        """Check that the lines before `start` are of these images, of which no more are consumed.

        Yields:
            With `retry`, the indices of failed images.

        Raises:
            ValueError: if the images have changed.
        """
        start = self.start
        for record in self.records():
            if record["index"] >= start:
                return
            _check_name(self.file, record["index"], record["file"], next(names, None))
            if self.retry and "error" in record:
                yield record["index"]

    def records(self) -> Iterator[dict[str, Any]]:
        """Iterate over the lines that are there now, in the order of the images.

        Of the lines of one image it is the last one.
        """
        if not self._end:
            return  # an earlier run's file, which isn't replaced yet
        ends = [*self._starts, self._end]
        # Equal ones come in the order of the file, in `sorted` and in `merge`.
        parts = heapq.merge(*(self._sorted(*part) for part in pairwise(ends)), key=index_of)
        for _, lines in groupby(parts, key=index_of):
            *_, record = lines
            yield record

    def close(self) -> None:
        """Close the file; later lines can't be added."""
        if self._opened is not None:
            self._opened.close()

    def _sorted(self, start: int, end: int) -> Iterator[dict[str, Any]]:
        """Yield the lines of a part of the file, whose groups are in order."""

        def records() -> Iterator[dict[str, Any]]:
            while lines.tell() < end:
                yield json.loads(lines.readline())

        with self.file.open("rb") as lines:
            lines.seek(start)
            for _, group in groupby(records(), lambda record: record["index"] // self.group_size):
                yield from sorted(group, key=index_of)

    def _begin(self) -> None:
        """Note, before the first change, that the run isn't complete."""
        if not self._has_begun:
            self._has_begun = True
            if self.made_of_lines is not None:
                self.made_of_lines.unlink(missing_ok=True)
            write_options(self.file, self.options)
            self._opened = self._opened or self.file.open("wb")

    def _check_options(self) -> None:
        try:
            before = json.loads(options_file(self.file).read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise ValueError(
                f"{self.file} can't be continued, because the options of its run are unknown: "
                f"{error}. Run without --resume, which replaces it."
            ) from error
        before.pop(COMPLETE, None)
        now = json.loads(json.dumps(self.options))
        changed = [name for name in {**before, **now} if before.get(name) != now.get(name)]
        if changed:
            name = changed[0]
            raise ValueError(
                f"{self.file} was written with other options: {', '.join(changed)}. {name} was "
                f"{before.get(name)} and is {now.get(name)} now. Give the options of before, or "
                "another --output; without --resume the file is replaced."
            )

    def _note_nothing(self) -> None:
        self._end = 0  # bytes of all lines
        self._starts = [0]  # bytes of the file where groups start from an earlier one
        self._group = self._last_group = 0  # the highest one, and the one of the last line
        self._done: dict[int, tuple[str, bool]] = {}  # in the highest: index, name, has failed
        self.num_results = self.num_failures = 0

    def _drop_tar_at_end(self) -> None:
        """Drop the last image's line if it is a tar's failure, which more images can replace."""
        [last] = deque(self.records(), maxlen=1)
        if "error" not in last or not is_tar(last["file"]):
            return
        write_options(self.file, self.options)  # the run isn't complete any more
        with self.file.open("rb") as lines, atomic_file(self.file) as unfinished:
            kept = (one for one in lines if (_parsed(one) or last)["index"] != last["index"])
            with unfinished.open("wb") as rest:
                rest.writelines(kept)
        self._note_nothing()
        self._read_all()

    def _read_all(self) -> None:
        """Find where to continue."""
        with self.file.open("rb") as lines:
            for number, line in enumerate(lines):
                record = _parsed(line)
                if record is None:
                    if lines.read(1):
                        raise ValueError(
                            f"line {number + 1} of {self.file} isn't a result; run without "
                            "--resume, which replaces the file."
                        )
                    break
                self._note(record, line)

    def _note(self, record: Mapping[str, Any], line: bytes) -> None:
        """Count the next line."""
        index, has_failed = record["index"], "error" in record
        group = index // self.group_size
        if group < self._last_group:
            self._starts.append(self._end)
        if group > self._group:
            self._group = group
            self._done.clear()
        self._last_group = group
        self._end += len(line)
        # Only failed images get another line.
        if group < self._group or index in self._done:
            self.num_failures -= 1
        if group == self._group:
            self._done[index] = record["file"], has_failed
        self.num_failures += has_failed
        self.num_results += not has_failed


def write_options(
    file: Path, options: Mapping[str, Any], summary: Mapping[str, Any] | None = None
) -> None:
    """Write the options of a run, and the summary of a complete one, beside its lines."""
    values = {**options, COMPLETE: summary} if summary else options
    with atomic_file(options_file(file)) as unfinished:
        unfinished.write_text(json.dumps(values, indent=1) + "\n", encoding="utf-8")


def complete_run(file: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the options of the run that wrote a file of lines, and its summary.

    Raises:
        ValueError: if it hasn't ended.
    """
    try:
        options = json.loads(options_file(file).read_text(encoding="utf-8"))
        return options, options.pop(COMPLETE)
    except (OSError, ValueError, KeyError) as error:
        raise ValueError(
            f"{file} isn't complete: its process is still running, or was stopped. Run the same "
            "command with --resume."
        ) from error


def line_of(record: Mapping[str, Any]) -> bytes:
    """Return the line of a record."""
    return json.dumps(record).encode() + b"\n"


def options_file(file: Path) -> Path:
    """Return the file of a run's options, beside its lines."""
    return file.with_suffix(".run.json")


def _parsed(line: bytes) -> dict[str, Any] | None:
    """Return the record of a complete line, None for others."""
    try:
        record = json.loads(line)
    except ValueError:
        return None
    is_record = isinstance(record, dict) and type(record.get("index")) is int and "file" in record
    return record if is_record and line.endswith(b"\n") else None


def _check_name(file: Path, index: int, before: str, now: str | None) -> None:
    if before != now:
        raise ValueError(
            f"the images have changed: {file} has image {index} as {before}, which is "
            f"{'missing' if now is None else now} now. Restore them, or run without --resume."
        )


def describe(result: Mapping[str, Any], id2label: Mapping[int, str]) -> dict[str, Any]:
    """Turn an image's result of `predict` into JSON types, the best object first."""

    def name(label: int) -> str:
        return str(id2label.get(label, label))

    columns = (result[key].tolist() for key in ("scores", "labels", "boxes"))
    objects = [
        {
            "label": name(label),
            "label_id": label,
            "score": round(score, 4),
            "box": [round(edge, 2) for edge in box],
        }
        for score, label, box in zip(*columns, strict=True)
    ]
    if "track_ids" in result:
        for found, track in zip(objects, result["track_ids"].tolist(), strict=True):
            found["track_id"] = track if track >= 0 else None
    objects.sort(key=lambda found: found["score"], reverse=True)
    if "segments_info" not in result:
        return {"objects": objects}
    segments = [{**one, "label": name(one["label_id"])} for one in result["segments_info"]]
    return {"objects": objects, "segments": segments}
