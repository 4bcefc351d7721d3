"""`hf-detr predict`: find objects in image files and draw them."""

import argparse
import glob
import json
import sys
from collections import Counter
from collections.abc import Mapping
from os.path import realpath  # unlike Path.resolve, it also takes links that lead in circles
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import PIL.ImageFile
from tqdm.auto import tqdm

from .command_options import add_dtype, add_model_options, add_threshold, make_parser, positive
from .drawing import draw_predictions
from .model_loading import load_model
from .prediction import PROGRESS_AFTER, stream_predictions

SEGMENTS = ".segments.png"  # the ending of segment maps
DESCRIPTION = "Find objects in images; write pictures of them, and one JSON file of the results."
STATUSES = """exit status:
  0  everything was done
  1  nothing was: the model can't be used, or no image can be read
  2  the arguments are wrong
  3  finished, but some of the images failed; they are named
  130  interrupted; predictions.json holds what was found until then

A folder's files that aren't images by their names are left aside and named, which is no failure;
a file that is given itself has to be an image. Folders in folders aren't looked into."""


def main(arguments: list[str] | None = None, prog: str | None = None) -> int:
    """Find objects in the images that the command line names; return the exit status."""
    parser = _parser(prog)
    parsed = parser.parse_args(arguments)
    try:
        files, skipped = find_images(parsed.images)
        writes_pictures = parsed.masks or not parsed.no_pictures
        if writes_pictures and _endangers(parsed.output, files):
            parser.error(
                f"--output {parsed.output} holds images that are read; give another folder"
            )
        for file in skipped:
            _say(f"skipped: {file} is no image by its name")
        if not files:
            raise ValueError(f"there are no images in {', '.join(parsed.images)}.")
        model, processor = load_model(
            parsed.model, parsed.device, parsed.masks or None, parsed.dtype
        )
        parsed.output.mkdir(parents=True, exist_ok=True)
        writer = _Writer(files, parsed, model.config.id2label)
        results = stream_predictions(
            model, processor, files, parsed.threshold, parsed.batch_size, writer.note_failure
        )
        try:
            with tqdm(total=len(files), unit="image", delay=PROGRESS_AFTER, disable=None) as bar:
                for index, result in results:
                    writer.write(index, result)
                    bar.update(len(writer.records) + len(writer.failures) - bar.n)
        finally:  # whatever ends it, what was found isn't lost
            report = writer.finish(skipped)
    except (ValueError, OSError) as error:
        _say(f"ERROR: {error}")
        return 1
    if parsed.json:
        print(json.dumps(report))
    if writer.failures:
        _say(f"{len(writer.failures)} of {len(files)} images failed.")
    return 0 if not writer.failures else 3 if writer.records else 1


def find_images(names: list[str]) -> tuple[list[Path], list[Path]]:
    """Files that arguments name, in their order, each once: images, and what is skipped.

    An argument is a file, a folder, whose images are taken in alphabetical order, or a pattern
    such as `photos/*.jpg`.
    """
    suffixes = _image_suffixes()
    images: dict[Path, None] = {}
    skipped: dict[Path, None] = {}
    for name in names:
        # A name that has brackets of its own is a name first.
        matches = [] if Path(name).exists() else sorted(glob.glob(name, recursive=True))
        for path in map(Path, matches or [name]):
            if not path.is_dir():
                images[path] = None
                continue
            for file in sorted(path.iterdir()):
                if not (file.is_file() or file.is_symlink() and not file.exists()):
                    continue  # a link to nothing is an image that fails
                (images if file.suffix.lower() in suffixes else skipped)[file] = None
    return list(images), [file for file in skipped if file not in images]


def _image_suffixes() -> set[str]:
    """Endings of files that PIL can decode, not those that it only writes or only knows."""

    def is_decoded(kind: str) -> bool:
        if kind not in PIL.Image.OPEN or kind == "MPEG":
            return False
        reader = PIL.Image.OPEN[kind][0]
        return not (isinstance(reader, type) and issubclass(reader, PIL.ImageFile.StubImageFile))

    kinds = PIL.Image.registered_extensions()
    return {suffix for suffix, kind in kinds.items() if is_decoded(kind)}


def _endangers(output: Path, files: list[Path]) -> bool:
    """Whether pictures would be written among the images that are read, or over one by a link."""
    targets = {
        realpath(output / f"{stem}{ending}")
        for stem in _distinct([file.stem for file in files])
        for ending in (".png", SEGMENTS)
    }
    is_among = realpath(output) in {realpath(file.parent) for file in files}
    return is_among or bool(targets & {realpath(file) for file in files})


class _Writer:
    """Writes what was found in each file as it comes, so that nothing large is kept."""

    def __init__(
        self, files: list[Path], parsed: argparse.Namespace, id2label: Mapping[int, str]
    ) -> None:
        self.files, self.parsed, self.id2label = files, parsed, id2label
        self.stems = _distinct([file.stem for file in files])
        self.records: dict[int, dict[str, Any]] = {}
        self.failures: dict[int, str] = {}

    def note_failure(self, index: int, error: Exception) -> None:
        """Remember and tell that a file can't be read."""
        self.failures[index] = str(error)
        _say(f"failed: {error}")

    def write(self, index: int, result: dict[str, Any]) -> None:
        """Draw and record what was found in one file."""
        file = self.files[index]
        record = {"file": str(file), **describe(result, self.id2label)}
        try:
            record |= self._write_pictures(index, result)
        except (ValueError, OSError) as error:
            self.note_failure(index, error)
            return
        self.records[index] = record
        counts = Counter(found["label"] for found in record["objects"])
        found = ", ".join(f"{count} {name}" for name, count in counts.items()) or "nothing"
        _say(f"{file}: {found}", to_stdout=not self.parsed.json)

    def _write_pictures(self, index: int, result: dict[str, Any]) -> dict[str, str]:
        """Write what was asked for of one file, and tell where."""
        stem, written = self.parsed.output / self.stems[index], {}
        if not self.parsed.no_pictures:
            written["picture"] = f"{stem}.png"
            picture = draw_predictions(self.files[index], result, self.id2label)
            picture.save(written["picture"], compress_level=1)
        if self.parsed.masks:
            written["segment_map"] = f"{stem}{SEGMENTS}"
            ids = result["segmentation"].numpy().clip(min=0)  # -1 is an image without segments
            PIL.Image.fromarray(ids.astype(np.uint16)).save(written["segment_map"])
        return written

    def finish(self, skipped: list[Path]) -> dict[str, Any]:
        """Write everything that was found, in the files' order, into one JSON file, if any was."""
        report = {
            "model": self.parsed.model,
            "threshold": self.parsed.threshold,
            "images": [self.records[index] for index in sorted(self.records)],
            "failed": [
                {"file": str(self.files[index]), "error": error}
                for index, error in sorted(self.failures.items())
            ],
            "skipped": [str(file) for file in skipped],
        }
        if self.records:  # otherwise those of an earlier run are worth more
            target = self.parsed.output / "predictions.json"
            target.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
            _say(f"The results are in {target}.", to_stdout=not self.parsed.json)
        return report


def describe(result: Mapping[str, Any], id2label: Mapping[int, str]) -> dict[str, Any]:
    """What `predict` returned for an image, as JSON takes it, the best object first."""

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
        for score, label, box in sorted(
            zip(*columns, strict=True), key=lambda found: found[0], reverse=True
        )
    ]
    if "segments_info" not in result:
        return {"objects": objects}
    segments = [{**one, "label": name(one["label_id"])} for one in result["segments_info"]]
    return {"objects": objects, "segments": segments}


def _distinct(stems: list[str]) -> list[str]:
    """The same names, in which later ones are numbered where one of their files would be taken."""
    taken: set[str] = set()
    distinct = []

    def files_of(name: str) -> set[str]:
        # Without regard to case, as some file systems have none.
        return {f"{name}.png".lower(), f"{name}{SEGMENTS}".lower()}

    for stem in stems:
        number, name = 1, stem
        while files_of(name) & taken:
            number += 1
            name = f"{stem}-{number}"
        taken |= files_of(name)
        distinct.append(name)
    return distinct


def _say(text: str, to_stdout: bool = False) -> None:
    """Print above a progress bar."""
    tqdm.write(text, file=sys.stdout if to_stdout else sys.stderr)


def _parser(prog: str | None) -> argparse.ArgumentParser:
    parser = make_parser(prog, DESCRIPTION, STATUSES)
    parser.add_argument(
        "images", nargs="+", metavar="IMAGES", help="image files, folders or patterns like '*.jpg'"
    )
    add_model_options(parser)
    add_dtype(parser)
    parser.add_argument(
        "--output",
        type=Path,
        default=Path("outputs"),
        help="folder for the pictures and predictions.json, default outputs",
    )
    add_threshold(parser)
    parser.add_argument(
        "--batch-size",
        type=positive,
        default=8,
        help="images of equal size that run together, default 8; doesn't change the results",
    )
    parser.add_argument(
        "--masks",
        action="store_true",
        help="also write each image's map of segments, a PNG of 16 bits, 0 where there is none; "
        "needs a segmentation model, whose segments are drawn in any case",
    )
    parser.add_argument("--no-pictures", action="store_true", help="write predictions.json alone")
    parser.add_argument(
        "--json", action="store_true", help="print the results as JSON, and nothing else on stdout"
    )
    return parser
