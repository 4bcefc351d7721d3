"""A run of `hf-detr predict`: from its images to the files of results, in constant memory."""

import argparse
import errno
import os
import re
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from itertools import chain, count, groupby
from pathlib import Path, PurePosixPath
from typing import Any

import PIL.Image
import torch
from tqdm.auto import tqdm

from ..data.image_source import READING_ERRORS
from ..image_processing.image_processor import DetectionImageProcessor
from ..image_processing.postprocess import above_threshold
from ..inference.drawing import draw_predictions
from ..inference.image_inputs import InputImage, images_as_before
from ..inference.model_loading import model_revision
from ..inference.prediction import PROGRESS_AFTER, stream_with_sizes
from ..inference.prediction_formats import IMAGE_FOLDERS
from ..inference.prediction_lines import PredictionLines, describe
from ..inference.prediction_shards import part_name, shard_file
from ..inference.score_thresholds import threshold_of_labels
from ..inference.uncertainty import LOWEST_SCORE, uncertainty
from ..models.pretrained_model import DetectionPreTrainedModel
from .picture_files import keep_image, opened, save_picture
from .prediction_results import NO_IMAGES, UNCERTAIN, UNCERTAIN_LIST, say, status_of, write_results

ENDINGS = PICTURE, SEGMENTS = ".png", ".segments.png"  # of drawn images and segment maps
GROUP_BATCHES = 16  # batches of images whose results can be in any order
SAID = 20  # failures that are printed
# What the names of files can't have on some systems, or in lists of names
NOT_IN_NAMES = re.compile(
    r'[\x00-\x1f\x7f\x85\u2028\u2029\\:*?"<>|\ud800-\udfff]|^\s+|(?<=/)\s+|\s+(?=/)|\s+$'
)
DISK_ERRORS = (errno.ENOSPC, errno.EDQUOT, errno.EROFS)  # not of one image


class PredictionRun:
    """Runs a model on the images of one process, and writes each result at once.

    Args:
        parsed: the options of the command.
        model, processor: see `predict`.

    Raises:
        ValueError: if a run with other options is to be continued.
    """

    def __init__(
        self,
        parsed: argparse.Namespace,
        model: DetectionPreTrainedModel,
        processor: DetectionImageProcessor,
    ) -> None:
        self.parsed, self.model, self.processor = parsed, model, processor
        self.id2label = model.config.id2label
        self.threshold = threshold_of_labels(parsed.threshold, model.config)
        self.folder = parsed.output
        self.part = Path()  # of this process, in folders of all
        if parsed.num_processes > 1:
            self.part = Path(part_name(parsed.process, parsed.num_processes))
        if parsed.format in IMAGE_FOLDERS:
            self.folder /= "pictures"  # apart from the images of the data set
        self.folder /= self.part
        self.lines = PredictionLines(
            shard_file(parsed.output, parsed.process, parsed.num_processes),
            GROUP_BATCHES * parsed.batch_size,
            _options(parsed, model),
            parsed.resume,
            parsed.retry_failed,
            parsed.output / UNCERTAIN_LIST if parsed.num_processes == 1 else None,
        )
        # Images that aren't done yet: index, input and distinct place, and the file or its bytes
        self.inputs: dict[int, tuple[int, InputImage, str]] = {}
        self.contents: dict[int, Path | bytes] = {}
        self.num_images = self.lines.start  # that are known to be there
        self.num_said = 0

    def predict(self) -> None:
        """Find objects in all images that have no results yet.

        Raises:
            ValueError: if there are none, or not those of the run that is to be continued.
        """
        total = self.parsed.count and -(-self.parsed.count // self.parsed.num_processes)
        bar = tqdm(
            total=total,
            initial=self.lines.start,
            unit="image",
            delay=PROGRESS_AFTER,
            disable=True if self.parsed.process else None,  # None shows it on a terminal only
        )
        images = self.parsed.inputs.part(self.parsed.process, self.parsed.num_processes)
        if torn := self.lines.torn_tars():
            images = images_as_before(images, torn)
        writes_images = self.parsed.draw or self.parsed.masks or self.parsed.format in IMAGE_FOLDERS
        inputs = _with_places(images) if writes_images else ((image, "") for image in images)
        with bar:
            start, size = self.lines.start, self.lines.group_size
            for _, group in groupby(self._failed(inputs), lambda one: one[0] // size):
                self._find_objects(group, bar)
            self._find_objects(enumerate(inputs, start), bar)
        for index in range(self.num_images, start + size):
            self.lines.has(index, None)
        number = self.lines.num_results + self.lines.num_failures
        if self.parsed.num_processes == 1 and not number:
            raise ValueError(NO_IMAGES)
        self.lines.complete(names=self.id2label, model=self.model.name_or_path)

    def _failed(
        self, inputs: Iterator[tuple[InputImage, str]]
    ) -> Iterator[tuple[int, tuple[InputImage, str]]]:
        """Yield the images to try again, and their indices; take those that have lines."""
        latest = None

        def names() -> Iterator[str]:
            nonlocal latest
            for latest in inputs:
                yield latest[0].name

        for index in self.lines.failed(names()):
            yield index, latest

    def _find_objects(
        self, images: Iterable[tuple[int, tuple[InputImage, str]]], bar: tqdm
    ) -> None:
        """Write the results of images with their indices and places."""
        threshold = self.threshold
        if self.parsed.uncertain:
            threshold = torch.as_tensor(threshold).clamp(max=LOWEST_SCORE)
        results = stream_with_sizes(
            self.model,
            self.processor,
            self._images(images),
            threshold,
            self.parsed.batch_size,
            self._note_failure,
            self.parsed.workers,
            self.lines.group_size,
            self.parsed.tiles,
            self.parsed.overlap,
        )
        for number, size_hw, result in results:
            self._write(number, size_hw, result)
            bar.update(self.lines.num_results + self.lines.num_failures - bar.n)

    def _images(
        self, images: Iterable[tuple[int, tuple[InputImage, str]]]
    ) -> Iterator[Callable[[], Path | PIL.Image.Image]]:
        for number, (index, (image, place)) in enumerate(images):
            self.inputs[number] = index, image, place
            self.num_images = max(self.num_images, index + 1)
            yield partial(self._open, number)

    def _open(self, number: int) -> Path | PIL.Image.Image:
        """Return an image, whose file or bytes are kept until it is done."""
        image = self.inputs[number][1]
        content = self.contents[number] = image.content()
        try:
            return opened(content)
        except READING_ERRORS as error:
            raise ValueError(f"image ({image.name!r}) can't be opened: it is no image.") from error

    def _note_failure(self, number: int, error: Exception) -> None:
        index, image, _ = self.inputs.pop(number)
        self.contents.pop(number, None)
        problem = str(error)
        if image.name not in problem:
            problem = problem.replace(f"image {number}", f"image {number} ({image.name!r})", 1)
        self._fail(index, image, problem.replace(f"image {number} ", f"image {index} ", 1))

    def _fail(self, index: int, image: InputImage, problem: str) -> None:
        if self.lines.has(index, image.name):
            return
        self.lines.add({**self._record(index, image), "error": problem})
        self.num_said += 1
        if self.num_said <= SAID:
            say(f"failed: {problem}")
        if self.num_said == SAID:
            say(f"Further failures are in {self.lines.file} only.")

    def _record(self, index: int, image: InputImage) -> dict[str, Any]:
        """Return how a line begins."""
        position = {"position": image.position} if self.parsed.num_processes > 1 else {}
        return {"index": index, **position, "file": image.name}

    def _write(self, number: int, size_hw: tuple[int, int], result: dict[str, Any]) -> None:
        """Write the result of an image."""
        index, image, place = self.inputs.pop(number)
        content = self.contents.pop(number)
        if self.lines.has(index, image.name):
            return  # it was run again for the others in its batch
        height, width = size_hw
        record = {**self._record(index, image), "width": width, "height": height}
        if self.parsed.uncertain:
            record["uncertainty"] = round(uncertainty(result), 4)
            is_found = above_threshold(result["scores"], result["labels"], self.threshold)
            result = {key: values[is_found] for key, values in result.items()}
        record |= describe(result, self.id2label)
        try:
            record |= self._write_images(place, content, result)
        except (ValueError, OSError) as error:
            if getattr(error, "errno", None) in DISK_ERRORS:
                raise  # no failure of this image
            self._fail(index, image, str(error))
            return
        self.lines.add(record)
        if not self.parsed.are_many:
            counts = Counter(found["label"] for found in record["objects"])
            found = ", ".join(f"{count} {name}" for name, count in counts.items()) or "nothing"
            say(f"{image.name}: {found}", to_stdout=not self.parsed.json)

    def _write_images(
        self, place: str, content: Path | bytes, result: dict[str, Any]
    ) -> dict[str, str]:
        """Write the requested images of one image; return their paths."""
        stem, written = self.folder / os.path.splitext(place)[0], {}
        if self.parsed.draw:
            written["picture"] = f"{stem}{PICTURE}"
            picture = draw_predictions(opened(content), result, self.id2label)
            save_picture(picture, written["picture"], content, compress_level=1)
        if self.parsed.masks:
            written["segment_map"] = f"{stem}{SEGMENTS}"
            ids = result["segmentation"].numpy().clip(min=0)  # -1 is an image without segments
            segment_map = PIL.Image.fromarray(ids.astype("uint16"))
            save_picture(segment_map, written["segment_map"], content)
        if self.parsed.format in IMAGE_FOLDERS:
            folder = self.parsed.output / IMAGE_FOLDERS[self.parsed.format]
            written["image"] = keep_image(folder, str(self.part / place), content)
        return written

    def finish(self) -> None:
        """Close the lines; write from them what the options ask for, if this is the only process.

        Otherwise `merge_if_last` does that.
        """
        self.lines.close()
        parsed = self.parsed
        if parsed.num_processes == 1:
            header = {"model": self.model.name_or_path, "threshold": parsed.threshold}
            write_results(parsed, self.lines, self.id2label, header, parsed.inputs.skipped)
        elif self.lines.num_results + self.lines.num_failures:
            say(f"The results of process {parsed.process + 1} are in {self.lines.file}.")

    def status(self) -> int:
        """Return the exit status of the command.

        It is 0 for one of several processes, because torchrun would stop the others.
        """
        return 0 if self.parsed.num_processes > 1 else status_of(self.lines)


def _options(parsed: argparse.Namespace, model: DetectionPreTrainedModel) -> dict[str, Any]:
    """Return what the results depend on, apart from the images."""
    options = {
        "--model": str(parsed.model or "the one of hf_detr"),
        "the model's files": model_revision(model),
        "--dtype": str(model.dtype).removeprefix("torch."),
        "--threshold": parsed.threshold,
        "--batch-size": parsed.batch_size,
        "--tiles": parsed.tiles,
        "--overlap": parsed.overlap if parsed.tiles else None,
        "--masks": parsed.masks,
        "--draw": parsed.draw,
        "--format": parsed.format if parsed.format in IMAGE_FOLDERS else "no data set",
    }
    return options | {UNCERTAIN: True} if parsed.uncertain else options


def _with_places(images: Iterator[InputImage]) -> Iterator[tuple[InputImage, str]]:
    """Yield images and their places, with numbers added where an earlier one's results are."""
    taken: set[str] = set()
    numbers = defaultdict(lambda: count(2))  # not yet used for each stem
    for image in images:
        path = PurePosixPath(NOT_IN_NAMES.sub("_", Path(image.place).as_posix()))
        folder, stem = path.parent, path.stem.strip() or "image"
        key = str(folder / stem)
        for name in chain([stem], (f"{stem}-{number}" for number in numbers[key])):
            results = {str(folder / (name + ending)).lower() for ending in ENDINGS}
            if not results & taken:  # some systems ignore case
                break
        taken |= results
        yield image, str(folder / f"{name}{path.suffix}")
