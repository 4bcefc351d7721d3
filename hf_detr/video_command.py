"""`hf-detr video`: find objects in the frames of a film and draw them (needs the extra `video`)."""

import argparse
import json
import sys
from collections import Counter
from collections.abc import Iterator
from fractions import Fraction
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
from tqdm.auto import tqdm

from .command_options import add_dtype, add_model_options, add_threshold, make_parser, positive
from .drawing import draw_predictions
from .model_loading import load_model
from .prediction import PROGRESS_AFTER, stream_predictions
from .prediction_command import describe

try:
    import av

    FILM_ERRORS = (av.error.FFmpegError,)
except ImportError:  # the command says so, nothing else needs it
    av, FILM_ERRORS = None, ()

DESCRIPTION = """Find objects in every frame of a film; write the film with them drawn, and a file
with one line of JSON per frame: its number, its time in seconds and the objects."""
STATUSES = """exit status:
  0  everything was done
  1  not done: the model or the film can't be used; what was written before a bad frame stays
  2  the arguments are wrong

Sound isn't kept. A frame is looked at by itself: nothing follows objects from frame to frame."""


def main(arguments: list[str] | None = None, prog: str | None = None) -> int:
    """Find objects in the film that the command line names; return the exit status."""
    parsed = _parser(prog).parse_args(arguments)
    film = parsed.output / f"{Path(parsed.film).stem}.mp4"
    lines = film.with_suffix(".jsonl")
    try:
        if av is None:
            raise ValueError("PyAV isn't installed; pip install 'hf_detr[video]' brings it.")
        if Path(parsed.film).resolve() in (film.resolve(), lines.resolve()):
            raise ValueError(f"{film} would be written over what is read; give another --output.")
        frames = _Frames(_address(parsed.film), parsed.most_frames)
        counts = _write(frames, parsed, film, lines)
    except (ValueError, OSError, *FILM_ERRORS) as error:
        print(f"ERROR: {error}", file=sys.stderr)
        return 1
    found = ", ".join(f"{count} {name}" for name, count in counts.most_common()) or "nothing"
    print(f"{frames.count} frames, in all of them {found}.")
    print(f"The film is {film}, the results are in {lines}.")
    return 0


def _write(frames: "_Frames", parsed: argparse.Namespace, film: Path, lines: Path) -> Counter[str]:
    """Write film and lines frame by frame; how often each class was found."""
    model, processor = load_model(parsed.model, parsed.device, dtype=parsed.dtype)
    id2label, counts = model.config.id2label, Counter()
    results = stream_predictions(model, processor, frames, parsed.threshold, parsed.batch_size)
    first = next(results)  # raises before an earlier run's files are written over
    parsed.output.mkdir(parents=True, exist_ok=True)
    bar = tqdm(total=frames.total, unit="frame", delay=PROGRESS_AFTER, disable=None)
    with lines.open("w", encoding="utf-8") as records, _Film(film, frames.rate) as drawn, bar:
        for index, result in chain([first], results):  # in their order, since all are of one size
            picture, pts, time_base = frames.waiting.pop(index)
            record = describe(result, id2label)
            counts.update(found["label"] for found in record["objects"])
            time = round(float(pts * time_base), 4)
            records.write(json.dumps({"frame": index, "time": time, **record}) + "\n")
            drawn.add(np.asarray(draw_predictions(picture, result, id2label)), pts, time_base)
            bar.update()
    return counts


def _address(film: str) -> str:
    """What FFmpeg takes for a file even if it has a colon in its name."""
    return str(Path(film).absolute()) if Path(film).exists() else film


class _Frames:
    """Upright RGB frames of a film, one after the other; those not yet drawn wait here."""

    def __init__(self, name: str, most_frames: int | None) -> None:
        self.container = av.open(name)
        if not self.container.streams.video:
            raise ValueError(f"{name} holds no pictures.")
        self.stream = self.container.streams.video[0]
        self.stream.thread_type = "AUTO"
        self.rate = Fraction(self.stream.average_rate or 25)
        self.most_frames = most_frames
        self.total = most_frames or self.stream.frames or None  # some formats don't tell
        self.waiting: dict[int, tuple[PIL.Image.Image, int, Fraction]] = {}
        self.count = 0

    def __iter__(self) -> Iterator[PIL.Image.Image]:
        size = None
        with self.container:
            for frame in self.container.decode(self.stream):
                if self.count == self.most_frames:
                    return
                # Telephones write frames as the sensor lies, and the angle beside them.
                pixels = np.rot90(frame.to_ndarray(format="rgb24"), round(frame.rotation / 90))
                # No array, whose rows could be taken for channels in a film of three.
                picture = PIL.Image.fromarray(np.ascontiguousarray(pixels))
                if min(picture.size) < 2:
                    raise ValueError("the film is one pixel wide or high; 2 are needed.")
                if picture.size != (size or picture.size):
                    raise ValueError(f"frame {self.count} has another size than those before it.")
                size = picture.size
                time = (frame.pts, frame.time_base)
                if frame.pts is None:  # as in a camera's raw stream
                    time = (self.count, 1 / self.rate)
                self.waiting[self.count] = picture, *time
                self.count += 1
                yield picture
        if not self.count:
            raise ValueError("the film has no frame that can be read.")


class _Film:
    """An MP4 file that frames are added to."""

    def __init__(self, path: Path, rate: Fraction) -> None:
        self.container = av.open(path, "w")
        codec = "libx264" if "libx264" in av.codecs_available else "mpeg4"
        self.stream = self.container.add_stream(codec, rate=rate)
        self.stream.pix_fmt = "yuv420p"  # what players understand

    def __enter__(self) -> "_Film":
        return self

    def add(self, pixels: np.ndarray, pts: int, time_base: Fraction) -> None:
        """Add a frame (H, W, 3) at its own time, which need not be regular."""
        height, width = (side // 2 * 2 for side in pixels.shape[:2])  # the format has no odd sides
        if not self.stream.codec_context.is_open:  # it opens with the first frame
            self.stream.height, self.stream.width = height, width
            self.stream.codec_context.time_base = time_base
        frame = av.VideoFrame.from_ndarray(
            np.ascontiguousarray(pixels[:height, :width]), format="rgb24"
        )
        frame.pts, frame.time_base = pts, time_base
        self.container.mux(self.stream.encode(frame))

    def __exit__(self, *_: Any) -> None:
        if self.stream.codec_context.is_open:
            self.container.mux(self.stream.encode(None))
        self.container.close()


def _parser(prog: str | None) -> argparse.ArgumentParser:
    parser = make_parser(prog, DESCRIPTION, STATUSES)
    parser.add_argument("film", metavar="FILM", help="a file or an address that FFmpeg can read")
    add_model_options(parser)
    add_dtype(parser)
    parser.add_argument("--output", type=Path, default=Path("outputs"), help="folder of the film")
    add_threshold(parser)
    parser.add_argument(
        "--batch-size", type=positive, default=8, help="frames that run together, default 8"
    )
    parser.add_argument("--most-frames", type=positive, help="stop after so many; default: all")
    return parser
