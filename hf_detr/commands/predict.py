"""Find objects in images; write images with the objects drawn, and a JSON file.

In a folder, files whose names aren't those of images are skipped and named on stderr; that isn't a
failure. Files that are given by name must be images. Subfolders aren't read.
"""

import argparse
import glob
import json
import os
import sys
from collections import Counter
from collections.abc import Mapping
from itertools import chain, count
from os.path import realpath  # unlike Path.resolve, it accepts circular links
from pathlib import Path
from typing import Any

import PIL.Image
import PIL.ImageFile
from tqdm.auto import tqdm

from ..atomic_saving import atomic_file
from .options import add_json_option, add_prediction_options

ENDINGS = PICTURE, SEGMENTS = ".png", ".segments.png"  # of drawn images and segment maps


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the command's options."""
    parser.add_argument(
        "images", nargs="+", metavar="IMAGES", help="image files, folders or patterns like '*.jpg'"
    )
    add_prediction_options(parser)
    parser.add_argument(
        "--masks",
        action="store_true",
        help="also write each image's segment map, a 16-bit PNG with 0 for no segment; needs a "
        "segmentation model",
    )
    parser.add_argument("--no-pictures", action="store_true", help="write predictions.json only")
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
    writer = _Writer(parsed, model.name_or_path, model.config.id2label)
    results = stream_predictions(
        model, processor, parsed.files, parsed.threshold, parsed.batch_size, writer.note_failure
    )
    total = len(parsed.files)
    try:
        with tqdm(total=total, unit="image", delay=PROGRESS_AFTER, disable=None) as bar:
            for index, result in results:
                writer.write(index, result)
                bar.update(len(writer.records) + len(writer.failures) - bar.n)
    finally:  # also after an error or an interrupt
        report = writer.finish()
    if parsed.json:
        print(json.dumps(report))
    if writer.failures:
        _say(f"{len(writer.failures)} of {total} images failed.")
    return 0 if not writer.failures else 3 if writer.records else 1


def find_images(names: list[str]) -> tuple[list[Path], list[Path]]:
    """Return the image files that arguments name, in order and each once, and the skipped files.

    An argument is a file, a folder, whose images come in alphabetical order, or a pattern such as
    `photos/*.jpg`.

    Raises:
        FileNotFoundError: if an argument names nothing.
        ValueError: if there are no images.
    """
    suffixes = _image_suffixes()
    images: dict[Path, None] = {}
    skipped: dict[Path, None] = {}
    for name in names:
        # An existing name with brackets isn't a pattern.
        matches = [] if Path(name).exists() else sorted(glob.glob(name, recursive=True))
        if not matches and not os.path.lexists(name):
            raise FileNotFoundError(f"{name} doesn't exist; expected an image, folder or pattern.")
        for path in map(Path, matches or [name]):
            if not path.is_dir():
                images[path] = None
                continue
            for file in sorted(path.iterdir()):
                if not (file.is_file() or file.is_symlink() and not file.exists()):
                    continue  # a broken link is an image that fails
                (images if file.suffix.lower() in suffixes else skipped)[file] = None
    if not images:
        raise ValueError(f"there are no images in {', '.join(names)}.")
    return list(images), [file for file in skipped if file not in images]


def _image_suffixes() -> set[str]:
    """Return the endings of files that PIL can decode, not of those that it can only write."""
    suffixes = PIL.Image.registered_extensions()  # fills PIL.Image.OPEN

    def is_decoded(kind: str) -> bool:
        reader = PIL.Image.OPEN.get(kind, [PIL.ImageFile.StubImageFile])[0]
        return not (isinstance(reader, type) and issubclass(reader, PIL.ImageFile.StubImageFile))

    return {suffix for suffix, kind in suffixes.items() if is_decoded(kind) and kind != "MPEG"}


def _endangers(output: Path, files: list[Path]) -> bool:
    """Return whether results would be written to an input folder, or over an input by a link."""
    targets = {realpath(output / (name + end)) for name in _distinct(files) for end in ENDINGS}
    is_among = realpath(output) in {realpath(file.parent) for file in files}
    return is_among or bool(targets & {realpath(file) for file in files})


class _Writer:
    """Writes the results of each file at once, so that nothing large stays in memory."""

    def __init__(
        self, parsed: argparse.Namespace, model_name: str, id2label: Mapping[int, str]
    ) -> None:
        self.parsed, self.model_name, self.id2label = parsed, model_name, id2label
        self.files, self.names = parsed.files, _distinct(parsed.files)
        self.records: dict[int, dict[str, Any]] = {}
        self.failures: dict[int, str] = {}

    def note_failure(self, index: int, error: Exception) -> None:
        """Record and print that a file failed."""
        self.failures[index] = str(error)
        _say(f"failed: {error}")

    def write(self, index: int, result: dict[str, Any]) -> None:
        """Draw and record the objects in one file."""
        file = self.files[index]
        record = {"file": str(file), **describe(result, self.id2label)}
        try:
            record |= self._write_images(index, result)
        except (ValueError, OSError) as error:
            self.note_failure(index, error)
            return
        self.records[index] = record
        counts = Counter(found["label"] for found in record["objects"])
        found = ", ".join(f"{count} {name}" for name, count in counts.items()) or "nothing"
        _say(f"{file}: {found}", to_stdout=not self.parsed.json)

    def _write_images(self, index: int, result: dict[str, Any]) -> dict[str, str]:
        """Write the requested images of one file; return their paths."""
        stem, written = self.parsed.output / self.names[index], {}
        if not self.parsed.no_pictures:
            written["picture"] = f"{stem}{PICTURE}"
            from ..inference.drawing import draw_predictions

            image = draw_predictions(self.files[index], result, self.id2label)
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
                {"file": str(self.files[index]), "error": error}
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


def _distinct(files: list[Path]) -> list[str]:
    """Return the files' stems, with numbers added where results of an earlier one have the name."""
    taken: set[str] = set()
    names = []
    for file in files:
        candidates = chain([file.stem], (f"{file.stem}-{number}" for number in count(2)))
        for name in candidates:
            results = {(name + ending).lower() for ending in ENDINGS}  # some systems ignore case
            if not results & taken:
                break
        taken |= results
        names.append(name)
    return names


def _say(text: str, to_stdout: bool = False) -> None:
    """Print above the progress bar."""
    tqdm.write(text, file=sys.stdout if to_stdout else sys.stderr)
