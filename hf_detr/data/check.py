"""Read a data set and report its errors, image by image, before training starts."""

import hashlib
import json
import os
from collections import Counter
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np
import PIL.Image
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
from .remote_files import is_remote
from .remote_images import have_failed
from .result_cache import cache_folder as folder_of_results
from .result_cache import cached
from .table_cache import MappedArray

VERSION = "7"  # of the checks; results cached by another version aren't used
LARGE = 20_000  # images; of more, only some are decoded by default, and looked at for changes
SAMPLE = 2_000  # images of a large data set
REMOTE_SAMPLE = 200  # images on other computers that are read by default
MOST = 1_000  # problems of each kind in a report; the others are counted
BLOCK = 10_000  # images whose checks are queued at once
NOTHING, HEADER, PIXELS = range(3)  # what is read of an image


@dataclass(frozen=True)
class CheckReport:
    """The result of `check_dataset`.

    Attributes:
        problems: the first problems of each kind, at most `MOST`.
        image_names: a name for each image with one of these problems.
        counts: number of all problems of each kind; by default that of `problems`.
        num_decoded: number of images that were decoded; of the others only the header was read.
        num_unread: number of remote images of which nothing was read.
    """

    num_images: int
    num_objects: int
    problems: tuple[Problem, ...]
    image_names: dict[int, str]
    counts: dict[str, int] = field(default_factory=dict)
    num_decoded: int = 0
    num_unread: int = 0

    def __post_init__(self) -> None:
        if not self.counts:
            self.counts.update(Counter(problem.kind for problem in self.problems))

    @property
    def may_train(self) -> bool:
        """Whether the data can be used for training."""
        return not any(problem.is_fatal for problem in self.problems)

    def text(self, most: int = 5) -> str:
        """Return the report as text, with at most `most` problems of each kind."""
        first = f"{self.num_images} images, {self.num_objects} objects"
        return "\n".join([first, *self.problem_lines(most), result_text(self.num_errors)])

    @property
    def num_errors(self) -> int:
        """Number of all problems that prevent training."""
        kinds = {problem.kind for problem in self.problems if problem.is_fatal}
        return sum(self.counts[kind] for kind in kinds)

    def problem_lines(self, most: int = 5) -> list[str]:
        """Return the lines of `text` with the problems."""
        lines: list[str] = []
        if self.num_unread:
            number = self.num_images - self.num_unread
            lines.append(
                f"read {number} images, a sample of the remote ones; not {self.num_unread} others"
            )
        elif self.num_decoded < self.num_images:
            lines.append(f"decoded {self.num_decoded} images, and read the headers of the others")
        kinds = dict.fromkeys((not p.is_fatal, p.kind) for p in self.problems)
        for is_harmless, kind in sorted(kinds):
            found = [p for p in self.problems if (not p.is_fatal, p.kind) == (is_harmless, kind)]
            number = self.counts[kind]
            lines.append(f"{'note' if is_harmless else 'ERROR'}: {kind}: {number}")
            for problem in found[:most]:
                name = "" if problem.image is None else f"{self.image_names[problem.image]}: "
                lines.append(f"    {name}{problem.text}")
            if number > len(found[:most]):
                lines.append(f"    ... and {number - len(found[:most])} more")
        return lines

    def to_json(self) -> str:
        """Return the report as JSON."""
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


def result_text(num_errors: int) -> str:
    """Say whether training may start."""
    if num_errors:
        return f"{num_errors} errors: fix them before training."
    return "Training may start."


def check_dataset(
    dataset: DetectionDataset,
    num_queries: int | None = None,
    decode: bool | None = None,
    use_cache: bool = True,
    images_digest: str | None = None,
) -> CheckReport:
    """Check annotations and images.

    The result is cached in `~/.cache/hf_detr/checks` until the annotations' content or the images'
    sizes or times change. Of more than 20,000 images, the names, a random sample of 2,000 files and
    the folders are looked at for changes; a file that is written over in its place can be missed.

    All processes of a training may call this at the same time: one checks, the others wait for its
    result. They mustn't wait in a barrier of the process group, whose time is limited.

    Args:
        dataset: the data set, or torch's `Subset` or `ConcatDataset`; masks are checked if it has
            masks.
        num_queries: of the model; None skips the check for too many objects.
        decode: decode the images as in training, which is the only way to find truncated ones and
            pixels that can't be used, such as floats; otherwise only their headers are read. None
            decodes all of at most 20,000 images, and of more a random sample of 2,000, of which
            alone the masks are checked. Of remote images, only a random sample of 200 is read,
            unless it is True.
        use_cache: use and cache results.
        images_digest: `digest_of_images` of the data set, if it is known already.
    """
    dataset = as_detection_dataset(dataset)
    if not use_cache:
        return _check(dataset, num_queries, decode)
    images_digest = images_digest or digest_of_images(dataset.images)

    def save(file: Path, report: CheckReport) -> None:
        if not have_failed(dataset.images, report.problems):
            report.save(file)

    return cached(
        cache_folder() / f"{_digest(dataset, num_queries, decode, images_digest)}.json",
        _load,
        lambda: _check(dataset, num_queries, decode),
        save,
        "the result of the check",
    )


def _load(file: Path) -> CheckReport | None:
    try:
        return CheckReport.load(file)
    except (ValueError, TypeError, KeyError, OSError):
        return None  # missing, written by another version, or damaged


def _check(dataset: DetectionDataset, num_queries: int | None, decode: bool | None) -> CheckReport:
    table = dataset.table
    reading = _what_is_read(dataset, decode)
    checks = (
        # Problems of image files are checked again below.
        [problem for problem in table.problems if problem.kind != "image file"],
        class_problems(table),
        count_problems(table, num_queries),
        box_problems(table),
        duplicate_problems(table),
        repeated_image_problems(dataset),
        _all_image_problems(dataset, reading, with_masks=decode is False),
    )
    counts: Counter[str] = Counter()
    problems = []
    for found in checks:
        for problem in found:
            counts[problem.kind] += 1
            if counts[problem.kind] <= MOST:
                problems.append(problem)
    images = sorted({problem.image for problem in problems if problem.image is not None})
    names = {image: dataset.images.name(image) for image in images}
    numbers = len(table), len(table.class_labels)
    num_read = (int((reading == what).sum()) for what in (PIXELS, NOTHING))
    return CheckReport(*numbers, tuple(problems), names, dict(counts), *num_read)


def _what_is_read(dataset: DetectionDataset, decode: bool | None) -> np.ndarray:
    """Return what is read of each image, (I,)."""
    number = len(dataset)
    reading = np.full(number, HEADER if decode is False else PIXELS)
    if decode is None and number > LARGE:
        reading[:] = HEADER
        reading[_sample(number)] = PIXELS
    if decode is not True:
        remote = [image for image in range(number) if is_remote(dataset.images.name(image))]
        if len(remote) > REMOTE_SAMPLE:
            reading[remote] = NOTHING
            sample = np.random.default_rng(0).choice(remote, REMOTE_SAMPLE, replace=False)
            reading[sample] = HEADER if decode is False else PIXELS
    return reading


def _sample(number: int) -> list[int]:
    """Return random indices, always the same ones."""
    if number <= LARGE:
        return list(range(number))
    return sorted(np.random.default_rng(0).choice(number, SAMPLE, replace=False).tolist())


def _all_image_problems(
    dataset: DetectionDataset, reading: np.ndarray, with_masks: bool
) -> Iterator[Problem]:
    """Check images; masks are checked with the pixels, or `with_masks` with the headers too."""

    def check(image: int) -> Iterable[Problem]:
        if reading[image] == NOTHING:
            return ()
        is_decoded = bool(reading[image] == PIXELS)
        return image_problems(dataset, image, is_decoded, with_masks or is_decoded)

    # Threads suffice: decoding releases the GIL.
    with (
        ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool,
        tqdm(total=len(dataset), desc="checking", unit="image", disable=None) as bar,
    ):
        for start in range(0, len(dataset), BLOCK):
            for found in pool.map(check, range(start, min(start + BLOCK, len(dataset)))):
                yield from found
                bar.update()


def cache_folder() -> Path:
    """Return the folder of cached results."""
    return folder_of_results("checks")


def _digest(
    dataset: DetectionDataset, num_queries: int | None, decode: bool | None, images_digest: str
) -> str:
    """Return a hash of everything that the checks read."""
    limit = PIL.Image.MAX_IMAGE_PIXELS
    given = VERSION, num_queries, decode, dataset.masks, images_digest, limit
    digest = hashlib.sha256(repr(given).encode())
    table = dataset.table
    digest.update(repr((table.category_ids, table.id2label, table.problems)).encode())
    arrays = [
        *(table.image_ids, table.image_hw, table.offsets, table.ids, table.class_labels),
        *(table.boxes_xywh, table.areas, table.is_crowd),
    ]
    if dataset.masks and table.segmentations is not None:
        arrays.append(table.segmentations.data)
    for array in arrays:
        if isinstance(array, MappedArray) and array.place is not None:
            digest.update(
                repr(array.place[1:]).encode()
            )  # has a hash of the annotation file's times
        else:
            digest.update(np.ascontiguousarray(array).reshape(-1).view(np.uint8))
    if dataset.segment_maps is not None:
        digest.update(digest_of_images(dataset.segment_maps).encode())
    return digest.hexdigest()


def digest_of_images(source: ImageSource) -> str:
    """Return a hash that changes with the names, sizes or times of images, see `check_dataset`."""
    digest = hashlib.sha256()
    for image in _sample(len(source)):
        digest.update(f"{_stamp(source, image)}\n".encode(errors="surrogatepass"))
    if len(source) > LARGE:
        for text in _names_and_folder_times(source):
            digest.update(f"{text}\n".encode(errors="surrogatepass"))
    return digest.hexdigest()


def _stamp(source: ImageSource, image: int) -> str:
    try:
        return f"{source.name(image)} {source.stamp(image)}"
    except (OSError, ValueError):  # ValueError for names that no file can have
        return f"{source.name(image)} is missing"


def _names_and_folder_times(source: ImageSource) -> Iterator[str]:
    """Yield the names of all images, and when files were last added to or removed from folders."""
    folders = set()
    for image in range(len(source)):
        name = source.name(image)
        folders.add(os.path.dirname(name))
        yield name
    for folder in sorted(folders):
        try:
            yield str(os.stat(folder).st_mtime_ns)
        except (OSError, ValueError):
            yield "missing"  # such as of a source without folders
