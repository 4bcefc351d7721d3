"""Check of several splits: each alone, their classes, and that no image is in two of them."""

import hashlib
import json
import os
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
from tqdm.auto import tqdm

from ..atomic_saving import atomic_file
from .annotation_table import Problem
from .check import LARGE, CheckReport, check_dataset, digest_of_images, result_text
from .dataset import DetectionDataset
from .image_source import READING_ERRORS, ImageSource
from .remote_files import is_remote
from .result_cache import cache_folder, cached
from .similar_names import similar_names
from .splits import check_same_classes
from .streamed import StreamedDataset
from .summary import DataSummary, summarize, summary_text

VERSION = "1"  # of the comparison; results cached by another version aren't used
SHARED = "image in two splits (AP will be too high)"
SIMILAR = "similar class names (one may be misspelled)"


@dataclass(frozen=True)
class SplitsReport:
    """The result of `check_splits`: for each split's name a summary and a report.

    `problems` are those between splits.
    """

    summaries: dict[str, DataSummary]
    reports: dict[str, CheckReport]
    problems: tuple[Problem, ...]

    @property
    def may_train(self) -> bool:
        """Whether the data can be used for training."""
        return self.num_errors == 0

    @property
    def num_errors(self) -> int:
        """Number of all problems that prevent training."""
        between = sum(problem.is_fatal for problem in self.problems)
        return between + sum(report.num_errors for report in self.reports.values())

    def text(self, most: int = 5) -> str:
        """Return the summary, and at most `most` problems of each kind."""
        lines = [summary_text(self.summaries)]
        between = CheckReport(0, 0, self.problems, {})
        for name, report in [*self.reports.items(), (" and ".join(self.reports), between)]:
            if report.problems:
                lines += ["", f"{name}:", *report.problem_lines(most)]
        return "\n".join([*lines, "", result_text(self.num_errors)])

    def to_json(self) -> str:
        """Return the summaries and all problems as JSON."""
        splits = {
            name: {"summary": asdict(self.summaries[name]), **asdict(report)}
            for name, report in self.reports.items()
        }
        problems = [asdict(problem) for problem in self.problems]
        return json.dumps({"splits": splits, "problems": problems}, indent=1)

    def save(self, file: str | os.PathLike[str]) -> None:
        """Write `to_json` to a file."""
        with atomic_file(file) as unfinished:
            unfinished.write_text(self.to_json(), encoding="utf-8")


def check_splits(
    splits: Mapping[str, DetectionDataset | StreamedDataset],
    num_queries: int | None = None,
    decode: bool | None = None,
    use_cache: bool = True,
) -> SplitsReport:
    """Check each split as `check_dataset` does, and what they have in common.

    Args:
        splits: name -> data set; of a stream, the first rows are checked.
        num_queries, decode, use_cache: as in `check_dataset`; images in two splits are cached in
            `~/.cache/hf_detr/split_checks`. If not all images are decoded, only those that are
            files are compared between splits, and remote images by their addresses.
    """
    splits = {
        name: data.sample() if isinstance(data, StreamedDataset) else data
        for name, data in splits.items()
    }
    digests = dict.fromkeys(splits)
    if use_cache:
        digests = {name: digest_of_images(data.images) for name, data in splits.items()}
    summaries = {name: summarize(data.table) for name, data in splits.items()}
    return SplitsReport(
        summaries,
        {
            name: check_dataset(data, num_queries, decode, use_cache, digests[name])
            for name, data in splits.items()
        },
        (
            *_class_problems(splits),
            *_similar_names(summaries.values()),
            *_cached_image_problems(splits, decode, digests),
        ),
    )


def _class_problems(splits: Mapping[str, DetectionDataset]) -> Iterator[Problem]:
    """Find classes that differ between splits."""
    for one, other in combinations(splits.values(), 2):
        try:
            check_same_classes(one.id2label, other.id2label)
        except ValueError as error:
            yield Problem("classes of splits", None, str(error).rstrip("."), True)


def _similar_names(summaries: Iterable[DataSummary]) -> Iterator[Problem]:
    """Find classes that are probably one, by their objects in all splits."""
    counts: Counter[str] = Counter()
    for summary in summaries:
        counts.update(summary.classes)
    for rare, frequent in similar_names(counts):
        text = f"{rare!r} ({counts[rare]} objects) and {frequent!r} ({counts[frequent]})"
        yield Problem(SIMILAR, None, text, False)


def _cached_image_problems(
    splits: Mapping[str, DetectionDataset], decode: bool | None, digests: Mapping[str, str | None]
) -> list[Problem]:
    """Find images in two splits, or take them from the cache if there are digests of all images.

    One process of a training compares the images; the others wait for its result, see `cached`.
    """

    def compare() -> list[Problem]:
        return list(shared_image_problems(splits, _reads_contents(splits, decode)))

    if len(splits) < 2 or None in digests.values():
        return compare()
    key = hashlib.sha256(repr((VERSION, decode, digests)).encode(errors="surrogatepass"))

    def save(file: Path, problems: list[Problem]) -> None:
        with atomic_file(file) as unfinished:
            content = [asdict(problem) for problem in problems]
            unfinished.write_text(json.dumps(content), encoding="utf-8")

    return cached(
        cache_folder("split_checks") / f"{key.hexdigest()}.json",
        _load,
        compare,
        save,
        "the comparison of the splits",
    )


def _reads_contents(splits: Mapping[str, DetectionDataset], decode: bool | None) -> bool:
    """Return whether the content of images that aren't files is compared too.

    By default it isn't that of many or remote images; their names are all looked at.
    """
    if decode is not None or max(map(len, splits.values())) > LARGE:
        return decode is True
    return not any(_has_remote(data.images) for data in splits.values())


def _load(file: Path) -> list[Problem] | None:
    try:
        return [Problem(**one) for one in json.loads(file.read_text(encoding="utf-8"))]
    except (ValueError, TypeError, OSError):
        return None  # missing or damaged


def shared_image_problems(
    splits: Mapping[str, DetectionDataset], contents: bool = True
) -> Iterator[Problem]:
    """Find images in two splits.

    Args:
        splits: name -> data set.
        contents: compare the content of images that aren't files too, which reads all of them;
            otherwise the addresses of remote images.
    """
    for (one, first), (other, second) in combinations(splits.items(), 2):
        for index, twin, text in _shared_images(first.images, second.images, contents):
            names = f"{first.images.name(index)} ({one}) and {second.images.name(twin)} ({other})"
            # Not an error: some published data have the same images in both on purpose.
            yield Problem(SHARED, None, f"{names} {text}", False)


def _shared_images(
    one: ImageSource, other: ImageSource, contents: bool
) -> Iterator[tuple[int, int, str]]:
    """Yield the indices of images in both sources, and why they are the same."""
    files = [_files(source, with_remote=not contents) for source in (one, other)]
    known = {stat[:2]: index for index, stat in files[0].items()}
    by_size = defaultdict(list)
    for index, stat in files[0].items():
        by_size[stat[2]].append(index)
    digests: dict[int, str] = {}
    for index, stat in files[1].items():
        if stat[:2] in known:
            yield known[stat[:2]], index, "are the same file"
        elif candidates := by_size.get(stat[2]):
            digests |= {i: _digest(one, i) for i in candidates if i not in digests}
            digest = _digest(other, index)
            twin = next((i for i in candidates if digest and digests[i] == digest), None)
            if twin is not None:
                yield twin, index, "have the same content"
    if contents:
        sources = zip((one, other), files, strict=True)
        rest = [[i for i in range(len(images)) if i not in known] for images, known in sources]
        yield from _same_contents(one, other, *rest)


def _same_contents(
    one: ImageSource, other: ImageSource, ones: list[int], others: list[int]
) -> Iterator[tuple[int, int, str]]:
    if not ones or not others:
        return
    bar = tqdm(ones, desc="comparing splits", unit="image", disable=None)
    known = {digest: index for index in bar if (digest := _digest(one, index))}
    for index in tqdm(others, desc="comparing splits", unit="image", disable=None):
        if (digest := _digest(other, index)) in known:
            yield known[digest], index, "have the same content"


def _has_remote(source: ImageSource) -> bool:
    return any(is_remote(source.name(index)) for index in range(len(source)))


def _files(source: ImageSource, with_remote: bool) -> dict[int, tuple[Any, Any, Any]]:
    """Return the device, the number on it and the size of each image that is a file.

    Those of an image at an address are its address.
    """
    found: dict[int, tuple[Any, Any, Any]] = {}
    for index in range(len(source)):
        name = source.name(index)
        if with_remote and is_remote(name):
            found[index] = (name,) * 3
            continue
        try:
            stat = os.stat(name)
        except (OSError, ValueError):
            continue  # missing files are reported elsewhere
        found[index] = stat.st_dev, stat.st_ino, stat.st_size
    return found


def _digest(source: ImageSource, index: int) -> str:
    """Return a hash of an image's file or else of its pixels; "" if it can't be read."""
    try:
        with source.open(index) as image:
            file = getattr(image, "fp", None)
            if file is None:
                content = np.ascontiguousarray(image).tobytes()
            else:
                file.seek(0)
                content = file.read()
    except READING_ERRORS:
        return ""  # reported elsewhere
    return hashlib.sha256(content).hexdigest()
