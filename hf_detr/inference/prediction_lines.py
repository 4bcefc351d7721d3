"""Predictions as lines of JSON, one per image, written as they come, and continued after a kill.

A line is the result of an image or the reason of its failure: `index` (of the image in this file's
part), `file`, and `objects` or `error`. Lines are in the order in which images were done, within
groups of consecutive images; the groups are in order. So nothing of a long run has to be in memory.
A second file, with the ending `.run.json`, has the options of the run. Nothing here needs torch.
"""

import json
import os
from collections.abc import Iterator, Mapping
from itertools import islice
from pathlib import Path
from typing import Any

from ..atomic_saving import atomic_file


class PredictionLines:
    """A file of lines of JSON, which replaces an earlier one with the first line.

    Args:
        file: the file.
        group_size: number of consecutive images whose lines can be in any order.
        options: what the results depend on, in JSON types.
        resume: whether to continue an earlier file. Its last line is dropped if it is torn.

    Raises:
        ValueError: if the earlier file was written with other options or isn't of predictions.
    """

    def __init__(
        self, file: Path, group_size: int, options: Mapping[str, Any], resume: bool = False
    ) -> None:
        self.file, self.group_size, self.options = file, group_size, options
        self._opened = None
        self._done: dict[int, str] = {}  # in the group that wasn't complete: index, name
        self.start = 0  # index of that group's first image
        self.num_results = self.num_failures = 0
        if resume and file.exists():
            self._check_options()
            self._find_end()

    def has(self, index: int, name: str) -> bool:
        """Return whether the line of an image of the group at `start` is there already.

        Raises:
            ValueError: if it is there with another name.
        """
        if index in self._done:
            _check_name(self.file, index, self._done[index], name)
        return index in self._done

    def add(self, record: Mapping[str, Any]) -> None:
        """Write the line of an image."""
        if self._opened is None:
            with atomic_file(_options_file(self.file)) as unfinished:
                unfinished.write_text(json.dumps(self.options, indent=1) + "\n", encoding="utf-8")
            self._opened = self.file.open("wb")
        self._opened.write(json.dumps(record).encode() + b"\n")
        self._opened.flush()
        self._count(record)

    def check_names(self, names: Iterator[str]) -> None:
        """Check that the lines before `start` are of these images, whose names are consumed.

        Raises:
            ValueError: if not.
        """
        for record in islice(self.records(), self.start):
            _check_name(self.file, record["index"], record["file"], next(names, None))

    def records(self) -> Iterator[dict[str, Any]]:
        """Iterate over the lines in the order of the images."""
        if not self.file.exists():
            return
        group: list[dict[str, Any]] = []
        with self.file.open("rb") as lines:
            for line in lines:
                group.append(json.loads(line))
                if len(group) == self.group_size:
                    yield from sorted(group, key=lambda record: record["index"])
                    group.clear()
        yield from sorted(group, key=lambda record: record["index"])

    def close(self) -> None:
        """Close the file; later lines can't be added."""
        if self._opened is not None:
            self._opened.close()

    def _check_options(self) -> None:
        try:
            before = json.loads(_options_file(self.file).read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise ValueError(
                f"{self.file} can't be continued, because the options of its run are unknown: "
                f"{error}. Run without --resume, which replaces it."
            ) from error
        now = json.loads(json.dumps(self.options))
        changed = [name for name in {**before, **now} if before.get(name) != now.get(name)]
        if changed:
            name = changed[0]
            raise ValueError(
                f"{self.file} was written with other options: {', '.join(changed)}. {name} was "
                f"{before.get(name)} and is {now.get(name)} now. Give the options of before, or "
                "another --output; without --resume the file is replaced."
            )

    def _find_end(self) -> None:
        """Find where to continue, cut off a torn line, and open the file for further ones."""
        end = 0
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
                self._count(record)
                self._done[record["index"]] = record["file"]
                end += len(line)
                if len(self._done) == self.group_size:
                    self._done.clear()
                    self.start += self.group_size
        self._opened = self.file.open("r+b")
        self._opened.truncate(end)
        self._opened.seek(0, os.SEEK_END)

    def _count(self, record: Mapping[str, Any]) -> None:
        self.num_failures += "error" in record
        self.num_results += "error" not in record


def _options_file(file: Path) -> Path:
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
    objects.sort(key=lambda found: found["score"], reverse=True)
    if "segments_info" not in result:
        return {"objects": objects}
    segments = [{**one, "label": name(one["label_id"])} for one in result["segments_info"]]
    return {"objects": objects, "segments": segments}
