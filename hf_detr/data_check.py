"""Read a data set and name what is wrong with it, image by image, before training does.

    python -m hf_detr.data_check --coco annotations.json --images folder --num-queries 100

The exit status is 0 if training may start, 1 if not, and 2 if the arguments are wrong.
"""

import hashlib
import json
import os
import sys
import warnings
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from functools import partial
from itertools import chain
from pathlib import Path

from tqdm.auto import tqdm
from transformers import HfArgumentParser

from .annotation_table import Problem
from .command_options import parse_dataclasses, prepare_file
from .data_formats import DataArguments
from .data_problems import (
    box_problems,
    class_problems,
    count_problems,
    duplicate_problems,
    image_problems,
    repeated_image_problems,
)
from .detection_data import DetectionDataset
from .image_source import ImageSource
from .whole_saving import atomic_file

VERSION = "2"  # of the checks; another one makes cached results void


@dataclass(frozen=True)
class CheckReport:
    """What `check_dataset` found. `image_names` has a name for each image with a problem."""

    num_images: int
    num_objects: int
    problems: tuple[Problem, ...]
    image_names: dict[int, str]

    @property
    def may_train(self) -> bool:
        """Whether no problem forbids training."""
        return not any(problem.is_fatal for problem in self.problems)

    def text(self, most: int = 5) -> str:
        """The report in words, with at most so many problems of each kind."""
        lines = [f"{self.num_images} images, {self.num_objects} objects"]
        kinds = dict.fromkeys((not p.is_fatal, p.kind) for p in self.problems)
        for is_harmless, kind in sorted(kinds):
            found = [p for p in self.problems if (not p.is_fatal, p.kind) == (is_harmless, kind)]
            lines.append(f"{'note' if is_harmless else 'ERROR'}: {kind}: {len(found)}")
            lines += [f"    {self._line(problem)}" for problem in found[:most]]
            if len(found) > most:
                lines.append(f"    ... and {len(found) - most} more")
        fatal = sum(problem.is_fatal for problem in self.problems)
        lines.append(
            "Training may start." if not fatal else f"{fatal} errors forbid training: mend them."
        )
        return "\n".join(lines)

    def _line(self, problem: Problem) -> str:
        name = "" if problem.image is None else f"{self.image_names[problem.image]}: "
        return name + problem.text

    def to_json(self) -> str:
        """All problems as JSON."""
        return json.dumps(asdict(self), indent=1)

    def save(self, file: str | os.PathLike[str]) -> None:
        """Write what `load` reads."""
        with atomic_file(file) as unfinished:
            unfinished.write_text(self.to_json())

    @classmethod
    def load(cls, file: str | os.PathLike[str]) -> "CheckReport":
        """Read what `save` has written."""
        content = json.loads(Path(file).read_text())
        content["problems"] = tuple(Problem(**problem) for problem in content["problems"])
        content["image_names"] = {int(key): name for key, name in content["image_names"].items()}
        return cls(**content)


def check_dataset(
    dataset: DetectionDataset,
    num_queries: int | None = None,
    decode: bool = True,
    use_cache: bool = True,
) -> CheckReport:
    """Check annotations and images.

    The result is kept in `~/.cache/hf_detr/checks` until annotations or images change, by the
    annotations' content and the images' sizes and times.

    Args:
        dataset: what to check; masks are checked if it gives masks.
        num_queries: of the model; None leaves out the check for too many objects.
        decode: read the images wholly, which alone finds those that break off; otherwise their
            headers.
        use_cache: use and keep results.
    """
    file = cache_folder() / f"{_digest(dataset, num_queries, decode)}.json" if use_cache else None
    if file and file.is_file():
        try:
            return CheckReport.load(file)
        except (ValueError, TypeError, KeyError, OSError):
            pass  # written by a version or a program that broke off: check again
    table = dataset.table
    # What the reader found about image files is found again below.
    from_reader = [p for p in table.problems if p.kind != "image file"]
    problems = [
        *from_reader,
        *class_problems(table),
        *count_problems(table, num_queries),
        *box_problems(table),
        *duplicate_problems(table),
        *repeated_image_problems(dataset),
        *_all_image_problems(dataset, decode),
    ]
    images = sorted({problem.image for problem in problems if problem.image is not None})
    names = {image: dataset.images.name(image) for image in images}
    report = CheckReport(len(table), len(table.class_labels), tuple(problems), names)
    if file:
        _keep(report, file)
    return report


def _all_image_problems(dataset: DetectionDataset, decode: bool) -> Iterable[Problem]:
    check = partial(image_problems, dataset, decode=decode)
    images = range(len(dataset))
    # Threads do: decoding leaves Python's lock to the others.
    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        found = pool.map(check, images)
        bar = tqdm(found, total=len(images), desc="checking", unit="image", disable=None)
        return list(chain.from_iterable(bar))


def cache_folder() -> Path:
    """Where results are kept: `hf_detr/checks` in the user's cache folder."""
    cache = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(cache).expanduser() / "hf_detr" / "checks"


def _keep(report: CheckReport, file: Path) -> None:
    try:
        report.save(file)
    except OSError as error:
        warnings.warn(f"the check's result can't be kept: {error}.", stacklevel=3)


def _digest(dataset: DetectionDataset, num_queries: int | None, decode: bool) -> str:
    """Changes when anything does that the checks read."""
    digest = hashlib.sha256(repr((VERSION, num_queries, decode, dataset.masks)).encode())
    table = dataset.table
    digest.update(repr((table.category_ids, table.id2label, table.problems)).encode())
    for array in (
        *(table.image_ids, table.image_hw, table.offsets, table.ids, table.class_labels),
        *(table.boxes_xywh, table.areas, table.is_crowd),
    ):
        digest.update(array.tobytes())
    if dataset.masks and table.segmentations is not None:
        digest.update(table.segmentations.data.tobytes())
    for source in (dataset.images, dataset.segment_maps):
        for image in range(len(source) if source else 0):
            digest.update(f"{_stamp(source, image)}\n".encode(errors="surrogatepass"))
    return digest.hexdigest()


def _stamp(source: ImageSource, image: int) -> str:
    try:
        return f"{source.name(image)} {source.stamp(image)}"
    except (OSError, ValueError):  # the latter for names that no file can have
        return f"{source.name(image)} is missing"


@dataclass
class CheckArguments:
    """How to check, and where to write."""

    num_queries: int | None = field(
        default=None, metadata={"help": "Name images with more objects than the model has queries."}
    )
    headers_only: bool = field(
        default=False, metadata={"help": "Don't decode the images; misses files that break off."}
    )
    no_cache: bool = field(default=False, metadata={"help": "Check anew, and keep nothing."})
    most: int = field(default=5, metadata={"help": "Problems to print of each kind."})
    report: Path | None = field(
        default=None, metadata={"help": "JSON file to write all problems to."}
    )
    json: bool = field(
        default=False,
        metadata={"help": "Print all problems as JSON instead, and nothing else on stdout."},
    )


def main(arguments: list[str] | None = None, prog: str | None = None) -> int:
    """Check the data set that the command line names; return the exit status."""
    parser = HfArgumentParser((DataArguments, CheckArguments), prog=prog, description=__doc__)
    data, how = parse_dataclasses(parser, arguments)
    try:
        data.check()
        if how.num_queries is not None and how.num_queries < 1:
            raise ValueError(f"num_queries is {how.num_queries}; give 1 or more.")
        if how.report:
            prepare_file(how.report)
    except (ValueError, OSError) as error:
        parser.error(str(error))  # exits with 2
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the report says the same
            dataset = data.read()
    except (ValueError, OSError) as error:
        print(f"ERROR: {error}\nThe data can't be read: mend them.", file=sys.stderr)
        return 1
    report = check_dataset(dataset, how.num_queries, not how.headers_only, not how.no_cache)
    print(report.to_json() if how.json else report.text(how.most))
    if how.report:
        report.save(how.report)
    return 0 if report.may_train else 1


if __name__ == "__main__":
    sys.exit(main())
