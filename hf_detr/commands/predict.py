"""Find objects in images; write images with the objects drawn, and a JSON file.

predictions.jsonl gets a line of JSON as soon as an image is done, which stays if the process is
killed; predictions.json has all results in the end. In a folder, files whose names aren't those of
images are skipped and named on stderr; that isn't a failure. Files that are given by name must be
images. Subfolders aren't read.
"""

import argparse
import glob
import json
import os
import sys
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from http.client import HTTPException
from itertools import chain, count
from os.path import realpath  # unlike Path.resolve, it accepts circular links
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any
from urllib.parse import unquote, urlsplit

import PIL.Image
from tqdm.auto import tqdm

from ..atomic_saving import atomic_file
from ..data.file_names import image_endings
from .options import add_json_option, add_prediction_options

ENDINGS = PICTURE, SEGMENTS = ".png", ".segments.png"  # of drawn images and segment maps
Source = Path | str  # a file or an address


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the command's options."""
    parser.add_argument(
        "images",
        nargs="+",
        metavar="IMAGES",
        help="image files, folders, patterns like '*.jpg' or http addresses",
    )
    add_prediction_options(parser)
    parser.add_argument(
        "--masks",
        action="store_true",
        help="also write each image's segment map, a 16-bit PNG with 0 for no segment; needs a "
        "segmentation model",
    )
    parser.add_argument("--no-pictures", action="store_true", help="write predictions only")
    add_json_option(parser)


def check(parsed: argparse.Namespace) -> None:
    """Check the arguments; `files` are the images, `skipped` other files."""
    parsed.files, parsed.skipped = find_images(parsed.images)
    writes_images = parsed.masks or not parsed.no_pictures
    if writes_images and _endangers(parsed.output, parsed.files):
        raise ValueError(f"--output {parsed.output} contains input images; give another folder")


def run(parsed: argparse.Namespace) -> int:
    """Find objects in the images; return the exit status."""
    from ..inference.model_loading import load_model
    from ..inference.prediction import PROGRESS_AFTER, stream_predictions

    for file in parsed.skipped:
        _say(f"skipped: {file} doesn't have the name of an image")
    model, processor = load_model(parsed.model, parsed.device, parsed.masks or None, parsed.dtype)
    parsed.output.mkdir(parents=True, exist_ok=True)
    writer, total = _Writer(parsed, model.name_or_path, model.config.id2label), len(parsed.files)
    try:
        with (
            TemporaryDirectory() as downloads,
            json_lines(parsed.output / "predictions.jsonl") as write_line,
            tqdm(total=total, unit="image", delay=PROGRESS_AFTER, disable=None) as bar,
        ):
            images = writer.open_all(Path(downloads))
            for index, result in stream_predictions(
                model, processor, images, parsed.threshold, parsed.batch_size, writer.note_failure
            ):
                if record := writer.write(index, result):
                    write_line(record)
                bar.update(len(writer.records) + len(writer.failures) - bar.n)
    finally:  # also after an error or an interrupt
        report = writer.finish()
    if parsed.json:
        print(json.dumps(report))
    if writer.failures:
        _say(f"{len(writer.failures)} of {total} images failed.")
    return 0 if not writer.failures else 3 if writer.records else 1


def find_images(names: list[str]) -> tuple[list[Source], list[Path]]:
    """Return the images that arguments name, in order and each once, and the skipped files.

    An argument is a file, a folder, whose images come in alphabetical order, a pattern such as
    `photos/*.jpg`, or an http address.

    Raises:
        FileNotFoundError: if an argument names nothing.
        ValueError: if there are no images.
    """
    endings = image_endings()
    images: dict[Source, None] = {}
    skipped: dict[Path, None] = {}
    for name in names:
        if urlsplit(name).scheme.lower() in ("http", "https"):
            images[name] = None
            continue
        # An existing name with brackets isn't a pattern.
        matches = [] if Path(name).exists() else sorted(glob.glob(name, recursive=True))
        if not matches and not os.path.lexists(name):
            raise FileNotFoundError(
                f"{name} doesn't exist; expected an image, folder, pattern or http address."
            )
        for path in map(Path, matches or [name]):
            if not path.is_dir():
                images[path] = None
                continue
            for file in sorted(path.iterdir()):
                if not (file.is_file() or file.is_symlink() and not file.exists()):
                    continue  # a broken link is an image that fails
                (images if file.suffix.lower() in endings else skipped)[file] = None
    if not images:
        raise ValueError(f"there are no images in {', '.join(names)}.")
    return list(images), [file for file in skipped if file not in images]


def _endangers(output: Path, sources: list[Source]) -> bool:
    """Return whether results would be written to an input folder, or over an input by a link."""
    targets = {realpath(output / (name + end)) for name in _distinct(sources) for end in ENDINGS}
    files = [source for source in sources if isinstance(source, Path)]
    is_among = realpath(output) in {realpath(file.parent) for file in files}
    return is_among or bool(targets & {realpath(file) for file in files})


@contextmanager
def json_lines(file: Path) -> Iterator[Callable[[Mapping[str, Any]], None]]:
    """Give a function that writes a record as a line of JSON; lines stay if the process is killed.

    The file is made, or replaces an earlier one, with the first record.
    """
    lines = None

    def write(record: Mapping[str, Any]) -> None:
        nonlocal lines
        lines = lines or file.open("w", encoding="utf-8")
        lines.write(json.dumps(record) + "\n")
        lines.flush()

    try:
        yield write
    finally:
        if lines is not None:
            lines.close()


class _Writer:
    """Writes the results of each file at once, so that nothing large stays in memory."""

    def __init__(
        self, parsed: argparse.Namespace, model_name: str, id2label: Mapping[int, str]
    ) -> None:
        self.parsed, self.model_name, self.id2label = parsed, model_name, id2label
        self.sources, self.names = parsed.files, _distinct(parsed.files)
        self.records: dict[int, dict[str, Any]] = {}
        self.failures: dict[int, str] = {}
        self.opened: list[tuple[int, Path]] = []  # index of the source, and the file to read

    def open_all(self, folder: Path) -> Iterator[Path]:
        """Yield the files of all sources; those of addresses are downloaded to a folder."""
        for index, source in enumerate(self.sources):
            try:
                is_file = isinstance(source, Path)
                file = source if is_file else _download(source, folder / str(index))
            except (OSError, ValueError, HTTPException) as error:
                self._fail(index, f"{source} can't be downloaded: {error}")
                continue
            self.opened.append((index, file))
            yield file

    def note_failure(self, number: int, error: Exception) -> None:
        """Record and print that an opened file failed."""
        index, file = self.opened[number]
        self._fail(index, str(error).replace(str(file), str(self.sources[index])))

    def _fail(self, index: int, problem: str) -> None:
        self.failures[index] = problem
        _say(f"failed: {problem}")

    def write(self, number: int, result: dict[str, Any]) -> dict[str, Any] | None:
        """Draw the objects in an opened file; return their record, or None if that failed."""
        index, file = self.opened[number]
        record = {"file": str(self.sources[index]), **describe(result, self.id2label)}
        try:
            record |= self._write_images(self.names[index], file, result)
        except (ValueError, OSError) as error:
            self.note_failure(number, error)
            return None
        finally:
            if not isinstance(self.sources[index], Path):
                file.unlink()  # many downloads could fill the disk
        self.records[index] = record
        counts = Counter(found["label"] for found in record["objects"])
        found = ", ".join(f"{count} {name}" for name, count in counts.items()) or "nothing"
        _say(f"{self.sources[index]}: {found}", to_stdout=not self.parsed.json)
        return record

    def _write_images(self, name: str, file: Path, result: dict[str, Any]) -> dict[str, str]:
        """Write the requested images of one file; return their paths."""
        stem, written = self.parsed.output / name, {}
        if not self.parsed.no_pictures:
            written["picture"] = f"{stem}{PICTURE}"
            from ..inference.drawing import draw_predictions

            image = draw_predictions(file, result, self.id2label)
            image.save(written["picture"], compress_level=1)
        if self.parsed.masks:
            written["segment_map"] = f"{stem}{SEGMENTS}"
            ids = result["segmentation"].numpy().clip(min=0)  # -1 is an image without segments
            PIL.Image.fromarray(ids.astype("uint16")).save(written["segment_map"])
        return written

    def finish(self) -> dict[str, Any]:
        """Write the results of all files, in their order, to one JSON file, if there are any."""
        report = {
            "model": self.model_name,
            "threshold": self.parsed.threshold,
            "images": [self.records[index] for index in sorted(self.records)],
            "failed": [
                {"file": str(self.sources[index]), "error": error}
                for index, error in sorted(self.failures.items())
            ],
            "skipped": [str(file) for file in self.parsed.skipped],
        }
        if self.records:  # otherwise keep the results of an earlier run
            target = self.parsed.output / "predictions.json"
            with atomic_file(target) as unfinished:
                unfinished.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
            _say(f"The results are in {target}.", to_stdout=not self.parsed.json)
        return report


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


def _download(address: str, file: Path) -> Path:
    from ..image_processing.image_reading import download

    file.write_bytes(download(address))
    return file


def _distinct(files: list[Source]) -> list[str]:
    """Return the files' stems, with numbers added where results of an earlier one have the name."""
    taken: set[str] = set()
    names, numbers = [], defaultdict(lambda: count(2))  # not yet used for each stem
    for file in files:
        path = file if isinstance(file, Path) else Path(unquote(urlsplit(file).path))
        stem = path.stem or "image"
        for name in chain([stem], (f"{stem}-{number}" for number in numbers[stem])):
            results = {(name + ending).lower() for ending in ENDINGS}  # some systems ignore case
            if not results & taken:
                break
        taken |= results
        names.append(name)
    return names


def _say(text: str, to_stdout: bool = False) -> None:
    """Print above the progress bar."""
    tqdm.write(text, file=sys.stdout if to_stdout else sys.stderr)
