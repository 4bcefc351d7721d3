"""Read a data set and report its errors, image by image, before training starts."""

import hashlib
import json
import os
import warnings
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from functools import partial
from itertools import chain
from pathlib import Path

from tqdm.auto import tqdm

from ..atomic_saving import atomic_file
from .annotation_table import Problem
from .dataset import DetectionDataset, as_detection_dataset
from .image_source import ImageSource
from .problems import (
    box_problems,
    class_problems,
    count_problems,
    duplicate_problems,
    image_problems,
    repeated_image_problems,
)

VERSION = "3"  # of the checks; results cached by another version aren't used


@dataclass(frozen=True)
class CheckReport:
    """The result of `check_dataset`; `image_names` has a name for each image with a problem."""

    num_images: int
    num_objects: int
    problems: tuple[Problem, ...]
    image_names: dict[int, str]

    @property
    def may_train(self) -> bool:
        """Whether the data can be used for training."""
        return not any(problem.is_fatal for problem in self.problems)

    def text(self, most: int = 5) -> str:
        """Return the report as text, with at most `most` problems of each kind."""
        first = f"{self.num_images} images, {self.num_objects} objects"
        return "\n".join([first, *self.problem_lines(most), result_text(self.problems)])

    def problem_lines(self, most: int = 5) -> list[str]:
        """Return the lines of `text` with the problems."""
        lines: list[str] = []
        kinds = dict.fromkeys((not p.is_fatal, p.kind) for p in self.problems)
        for is_harmless, kind in sorted(kinds):
            found = [p for p in self.problems if (not p.is_fatal, p.kind) == (is_harmless, kind)]
            lines.append(f"{'note' if is_harmless else 'ERROR'}: {kind}: {len(found)}")
            for problem in found[:most]:
                name = "" if problem.image is None else f"{self.image_names[problem.image]}: "
                lines.append(f"    {name}{problem.text}")
            if len(found) > most:
                lines.append(f"    ... and {len(found) - most} more")
        return lines

    def to_json(self) -> str:
        """Return all problems as JSON."""
        return json.dumps(asdict(self), indent=1)

    def save(self, file: str | os.PathLike[str]) -> None:
        """Write the report to a file, for `load`."""
        with atomic_file(file) as unfinished:
            unfinished.write_text(self.to_json(), encoding="utf-8")

    @classmethod
    def load(cls, file: str | os.PathLike[str]) -> "CheckReport":
        """Read a report that `save` wrote."""
        content = json.loads(Path(file).read_text(encoding="utf-8"))
        content["problems"] = tuple(Problem(**problem) for problem in content["problems"])
        content["image_names"] = {int(key): name for key, name in content["image_names"].items()}
        return cls(**content)


def result_text(problems: Iterable[Problem]) -> str:
    """Say whether training may start."""
    fatal = sum(problem.is_fatal for problem in problems)
    return "Training may start." if not fatal else f"{fatal} errors: fix them before training."


def check_dataset(
    dataset: DetectionDataset,
    num_queries: int | None = None,
    decode: bool = True,
    use_cache: bool = True,
) -> CheckReport:
    """Check annotations and images.

    The result is cached in `~/.cache/hf_detr/checks` until the annotations' content or the images'
    sizes or times change.

    Args:
        dataset: the data set, or torch's `Subset` or `ConcatDataset`; masks are checked if it has
            masks.
        num_queries: of the model; None skips the check for too many objects.
        decode: decode the images as in training, which is the only way to find truncated ones and
            pixels that can't be used, such as floats; otherwise only their headers are read.
        use_cache: use and cache results.
    """
    dataset = as_detection_dataset(dataset)
    file = cache_folder() / f"{_digest(dataset, num_queries, decode)}.json" if use_cache else None
    if file and file.is_file():
        try:
            return CheckReport.load(file)
        except (ValueError, TypeError, KeyError, OSError):
            pass  # written by another version, or damaged: check again
    table = dataset.table
    # Problems of image files are checked again below.
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
        try:
            report.save(file)
        except OSError as error:
            warnings.warn(f"the result of the check can't be cached: {error}.", stacklevel=2)
    return report


def _all_image_problems(dataset: DetectionDataset, decode: bool) -> Iterable[Problem]:
    check = partial(image_problems, dataset, decode=decode)
    images = range(len(dataset))
    # Threads suffice: decoding releases the GIL.
    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        found = pool.map(check, images)
        bar = tqdm(found, total=len(images), desc="checking", unit="image", disable=None)
        return list(chain.from_iterable(bar))


def cache_folder() -> Path:
    """Return the folder of cached results, `hf_detr/checks` in the user's cache folder."""
    cache = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(cache).expanduser() / "hf_detr" / "checks"


def _digest(dataset: DetectionDataset, num_queries: int | None, decode: bool) -> str:
    """Return a hash of everything that the checks read."""
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
    except (OSError, ValueError):  # ValueError for names that no file can have
        return f"{source.name(image)} is missing"
