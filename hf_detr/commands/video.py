"""Find objects in every frame of a video; write the video with the objects drawn.

A second file has one line of JSON per frame: its number, its time in seconds and the objects. Sound
isn't kept. Results before a bad frame stay. The command needs `pip install 'hf_detr[video]'`.

Frames are independent of each other. With --track, an object keeps its id and colour from frame to
frame, from the second one in which it is found until it is gone for a second. Then found objects
below --threshold, down to half of it, continue tracks; and of segmentation models only the boxes
are used. This needs `pip install 'hf_detr[track]'`.
"""

import argparse
import json
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from fractions import Fraction
from importlib.util import find_spec
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import PIL.Image
from tqdm.auto import tqdm

from ..inference.prediction_lines import describe
from .options import add_prediction_options, check_tile_options, positive

try:
    import av

    VIDEO_ERRORS = (av.error.FFmpegError,)
except ImportError:  # only this command needs it, and says so
    av, VIDEO_ERRORS = None, ()

UNKNOWN_RATE = 25  # frames per second, taken for a stream that doesn't say it

if TYPE_CHECKING:
    from ..image_processing.image_processor import DetectionImageProcessor
    from ..models.pretrained_model import DetectionPreTrainedModel


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the command's options."""
    parser.add_argument("video", metavar="VIDEO", help="file or address that FFmpeg can read")
    add_prediction_options(parser)
    help = "give the objects ids, which they keep from frame to frame"
    parser.add_argument("--track", action="store_true", help=help)
    parser.add_argument("--most-frames", type=positive, help="stop after this number; default: all")


def check(parsed: argparse.Namespace) -> None:
    """Check the arguments; `drawn` and `lines` are the files to write."""
    check_tile_options(parsed)
    video = Path(parsed.video)
    parsed.drawn = parsed.output / f"{video.stem}.mp4"
    parsed.lines = parsed.drawn.with_suffix(".jsonl")
    if av is None:
        raise ValueError("PyAV isn't installed; pip install 'hf_detr[video]' installs it.")
    if parsed.track and find_spec("trackers") is None:
        raise ValueError("--track needs trackers; pip install 'hf_detr[track]' installs it.")
    if not video.exists() and ":" not in parsed.video:  # FFmpeg's addresses have a colon
        raise FileNotFoundError(f"{video} doesn't exist; expected a video.")
    if video.resolve() in (parsed.drawn.resolve(), parsed.lines.resolve()):
        raise ValueError(f"{video} would be overwritten; give another --output.")


def run(parsed: argparse.Namespace) -> int:
    """Find objects in the video; return the exit status."""
    try:
        # FFmpeg takes an absolute path for a file even if its name has a colon.
        is_file = Path(parsed.video).exists()
        address = str(Path(parsed.video).absolute()) if is_file else parsed.video
        frames = _Frames(address, parsed.most_frames)
        counts = _write(frames, parsed)
    except VIDEO_ERRORS as error:
        raise ValueError(str(error)) from error
    found = ", ".join(f"{count} {name}" for name, count in counts.most_common()) or "nothing"
    what = "tracked objects" if parsed.track else "objects in all of them"
    print(f"{frames.count} frames, {what}: {found}.")
    print(f"The video is {parsed.drawn}, the results are in {parsed.lines}.")
    return 0


def _write(frames: "_Frames", parsed: argparse.Namespace) -> Counter[str]:
    """Write video and lines frame by frame; return how often each class was found.

    With --track, each object counts once, when it gets its id.
    """
    from ..inference.drawing import draw_predictions
    from ..inference.model_loading import load_model
    from ..inference.prediction import PROGRESS_AFTER

    masks = False if parsed.track else None
    model, processor = load_model(parsed.model, parsed.device, masks, parsed.dtype)
    id2label, counts, tracks = model.config.id2label, Counter(), {None}
    results = _find_objects(model, processor, frames, parsed)
    first = next(results)  # raises before files of an earlier run are overwritten
    parsed.output.mkdir(parents=True, exist_ok=True)
    bar = tqdm(total=frames.total, unit="frame", delay=PROGRESS_AFTER, disable=None)
    drawn = _drawn_video(parsed.drawn, frames.rate, frames.aspect)
    records = _json_lines(parsed.lines)
    with records as write_line, drawn as add_frame, bar:
        for index, result in chain([first], results):  # in order, since all have one size
            image, pts, time_base = frames.waiting.pop(index)
            record = describe(result, id2label)
            objects = record["objects"]
            new = [one for one in objects if not parsed.track or one["track_id"] not in tracks]
            counts.update(one["label"] for one in new)
            tracks.update(one.get("track_id") for one in new)
            time = round(float(pts * time_base), 4)
            write_line({"frame": index, "time": time, **record})
            add_frame(np.asarray(draw_predictions(image, result, id2label)), pts, time_base)
            bar.update()
    return counts


def _find_objects(
    model: "DetectionPreTrainedModel",
    processor: "DetectionImageProcessor",
    frames: "_Frames",
    parsed: argparse.Namespace,
) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yield the index and the result of each frame, with --track of tracked objects."""
    from ..inference.prediction import stream_predictions
    from ..inference.score_thresholds import threshold_of_labels
    from ..inference.tracking import ObjectTracker

    tiles = {"tiles": parsed.tiles, "overlap": parsed.overlap}
    if not parsed.track:
        given = frames, parsed.threshold, parsed.batch_size
        yield from stream_predictions(model, processor, *given, **tiles)
        return
    threshold = threshold_of_labels(parsed.threshold, model.config)
    tracker = ObjectTracker(threshold, _likely_rate(frames.stream))
    given = frames, tracker.lowest_score, parsed.batch_size
    for index, result in stream_predictions(model, processor, *given, **tiles):
        yield index, tracker.update(result)


def _likely_rate(stream: "av.VideoStream") -> float:
    # With irregular times either rate can be that of the file's clock, such as 1,000.
    average = stream.average_rate or UNKNOWN_RATE
    return float(min(stream.guessed_rate or average, average))


def _rank(stream: "av.VideoStream") -> tuple[bool, int]:
    """Rank a file's video streams: of those that aren't covers, the largest, as FFmpeg does."""
    is_cover = bool(stream.disposition & av.stream.Disposition.attached_pic)
    return not is_cover, stream.width * stream.height


class _Frames:
    """Upright RGB frames of a video in order; `waiting` has those that aren't drawn yet."""

    def __init__(self, name: str, most_frames: int | None) -> None:
        self.container = av.open(name)
        if not self.container.streams.video:
            raise ValueError(f"{name} has no video stream.")
        self.stream = max(self.container.streams.video, key=_rank)
        self.stream.thread_type = "AUTO"
        self.rate = Fraction(self.stream.average_rate or UNKNOWN_RATE)
        self.aspect = self.stream.sample_aspect_ratio  # of a pixel, once upright; None if unknown
        self.most_frames = most_frames
        self.total = most_frames or self.stream.frames or None  # some formats have no number
        self.waiting: dict[int, tuple[PIL.Image.Image, int, Fraction]] = {}
        self.count = 0
        self.last_pts: int | None = None

    def __iter__(self) -> Iterator[PIL.Image.Image]:
        size = None
        with self.container:
            for frame in self.container.decode(self.stream):
                if self.count == self.most_frames:
                    return
                pixels = _upright(frame)
                if self.aspect and round(frame.rotation / 90) % 2 and not self.count:
                    self.aspect = 1 / self.aspect
                # Not an array: three rows could be mistaken for channels.
                image = PIL.Image.fromarray(np.ascontiguousarray(pixels))
                if min(image.size) < 2:
                    raise ValueError("the video is one pixel wide or high; expected at least 2.")
                if image.size != (size or image.size):
                    raise ValueError(
                        f"frame {self.count} has size {image.size}, those before it {size}."
                    )
                size = image.size
                self.waiting[self.count] = image, *self._time(frame)
                self.count += 1
                yield image
        if not self.count:
            raise ValueError("the video has no frame that can be read.")

    def _time(self, frame: "av.VideoFrame") -> tuple[int, Fraction]:
        """Return a frame's pts and its unit; without one after the last frame's, that of the rate.

        Raw streams of cameras have none, and in AVI files they can go backwards.
        """
        unit, pts = frame.time_base or 1 / self.rate, frame.pts
        if self.last_pts is None:
            pts = pts or 0
        elif pts is None or pts <= self.last_pts:
            pts = self.last_pts + max(round(1 / self.rate / unit), 1)
        self.last_pts = pts
        return pts, unit


def _upright(frame: "av.VideoFrame") -> np.ndarray:
    """Return the pixels (H, W, 3) as they are shown.

    Phones store frames as the camera sees them, and their rotation, or mirroring, separately.
    """
    pixels = frame.to_ndarray(format="rgb24")
    if (matrix := frame.side_data.get("DISPLAYMATRIX")) is not None:
        a, b, _, c, d = np.frombuffer(matrix, np.int32)[:5].astype(float)
        if a * d < b * c:  # mirrored; `rotation` is that of the first axis
            pixels = pixels[::-1]
    return np.rot90(pixels, round(frame.rotation / 90))


@contextmanager
def _json_lines(file: Path) -> Iterator[Callable[[Mapping[str, Any]], None]]:
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


@contextmanager
def _drawn_video(
    path: Path, rate: Fraction, aspect: Fraction | None
) -> Iterator[Callable[[np.ndarray, int, Fraction], None]]:
    """Give a function that adds frames (H, W, 3) to an MP4 file, at irregular times."""
    with av.open(path, "w") as container:
        codec = "libx264" if "libx264" in av.codecs_available else "mpeg4"
        stream = container.add_stream(codec, rate=rate)
        stream.pix_fmt = "yuv420p"  # the format that players support

        def add(pixels: np.ndarray, pts: int, time_base: Fraction) -> None:
            height, width = (side // 2 * 2 for side in pixels.shape[:2])  # odd ones fail
            if not stream.codec_context.is_open:  # it opens with the first frame
                stream.height, stream.width = height, width
                stream.codec_context.time_base = time_base
                stream.codec_context.sample_aspect_ratio = aspect or Fraction(1)
            even = np.ascontiguousarray(pixels[:height, :width])
            frame = av.VideoFrame.from_ndarray(even, format="rgb24")
            frame.pts, frame.time_base = pts, time_base
            container.mux(stream.encode(frame))

        try:
            yield add
        finally:
            if stream.codec_context.is_open:
                container.mux(stream.encode(None))
