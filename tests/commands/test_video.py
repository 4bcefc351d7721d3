"""`hf-detr video` on real videos: orientation, times, and files that aren't videos."""

import json
from collections.abc import Iterable
from fractions import Fraction
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import PIL.Image
import pytest

from hf_detr.commands import video as video_command
from hf_detr_command_line import main as run

from .test_predict import GARMENTS

av = pytest.importorskip("av")
TIMES = (0, 40, 120, 160, 400)  # milliseconds; irregular, as from a phone


def main(arguments: list[str]) -> int:
    """`hf-detr video` with these arguments."""
    return run(["video", *arguments])


def write_video(path: Path, pixels: np.ndarray, degrees: int = 0) -> None:
    """Write a video of one image (H, W, 3), to be shown turned counterclockwise."""
    write_frames(path, [pixels] * len(TIMES), TIMES, degrees)


def write_frames(
    path: Path, frames: Iterable[np.ndarray], times: Iterable[int], degrees: int = 0
) -> None:
    """Write images (H, W, 3) at times in milliseconds."""
    first, *_ = frames = list(frames)
    with av.open(path, "w") as container:
        stream = container.add_stream("mpeg4", rate=25)
        stream.height, stream.width = first.shape[:2]
        stream.pix_fmt, stream.bit_rate = "yuv420p", 4_000_000
        stream.codec_context.time_base = Fraction(1, 1000)
        if degrees:
            stream.set_display_rotation(degrees)
        for time, pixels in zip(times, frames, strict=True):
            frame = av.VideoFrame.from_ndarray(pixels, format="rgb24")
            frame.pts, frame.time_base = time, Fraction(1, 1000)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))


@pytest.fixture(scope="module")
def garments() -> np.ndarray:
    """The image of the examples."""
    return np.asarray(PIL.Image.open(GARMENTS).convert("RGB"))


@pytest.mark.parametrize("degrees", [0, 90])
def test_finds_garments_in_every_frame(
    garments: np.ndarray, tmp_path: Path, degrees: int, capsys: pytest.CaptureFixture
) -> None:
    """Each frame is rotated upright, drawn and recorded at its own time."""
    lying = np.ascontiguousarray(np.rot90(garments, -degrees // 90))
    write_video(tmp_path / "clip.avi" if not degrees else tmp_path / "clip.mov", lying, degrees)
    video = next(tmp_path.glob("clip.*"))
    output = tmp_path / "sub" / "output"
    assert main([str(video), "--output", str(output), "--batch-size", "2"]) == 0
    said = capsys.readouterr().out
    assert "5 frames" in said and "5 coat" in said
    records = [json.loads(line) for line in (output / "clip.jsonl").read_text().splitlines()]
    assert [record["frame"] for record in records] == [0, 1, 2, 3, 4]
    times = [record["time"] for record in records]
    np.testing.assert_allclose(times, np.array(TIMES) / 1000, atol=0.02)
    for record in records:
        assert "coat" in {found["label"] for found in record["objects"]}
    with av.open(output / "clip.mp4") as container:
        drawn = list(container.decode(video=0))
    height, width = (side // 2 * 2 for side in garments.shape[:2])
    assert [(frame.height, frame.width) for frame in drawn] == [(height, width)] * 5
    np.testing.assert_allclose([frame.time for frame in drawn], times, atol=0.02)
    difference = drawn[0].to_ndarray(format="rgb24").astype(int) - garments[:height, :width]
    assert 0.5 < np.abs(difference).mean() < 20  # lines and letters on the same image


def test_frames_in_tiles(garments: np.ndarray, tmp_path: Path) -> None:
    """Frames come in their order, each with the objects of all its tiles."""
    large = np.concatenate([garments, garments], axis=1)
    write_video(tmp_path / "clip.avi", large)
    side, half = max(garments.shape[:2]), garments.shape[1]
    given = [str(tmp_path / "clip.avi"), "--output", str(tmp_path), "--tiles", str(side)]
    assert main([*given, "--overlap", "0", "--batch-size", "3"]) == 0
    records = [json.loads(line) for line in (tmp_path / "clip.jsonl").read_text().splitlines()]
    assert [record["frame"] for record in records] == [0, 1, 2, 3, 4]
    for record in records:
        places = [one["box"][0] < half for one in record["objects"] if one["label"] == "coat"]
        assert True in places and False in places


def crossing(garments: np.ndarray) -> Iterable[np.ndarray]:
    """A bag moves to the right, in front of a coat that moves to the left and is hidden."""
    bag, coat = garments[221:335, 339:442], garments[236:338, 188:274]
    for step in range(16):
        frame = np.full((240, 320, 3), (117, 69, 45), np.uint8)
        left, right = 229 - round(224 * step / 15), 5 + round(207 * step / 15)
        frame[70:172, left : left + 86] = coat
        frame[10:124, right : right + 103] = bag
        yield frame


def test_tracks_objects_through_a_crossing(
    garments: np.ndarray, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    """Ids are in the lines and stay, though the hidden object isn't found in some frames."""
    pytest.importorskip("trackers")
    write_frames(tmp_path / "clip.avi", crossing(garments), range(0, 1600, 100))
    given = [str(tmp_path / "clip.avi"), "--output", str(tmp_path), "--batch-size", "4"]
    assert main([*given, "--track"]) == 0
    assert "16 frames, tracked objects: 1 bag, 1 coat." in capsys.readouterr().out
    lines = (tmp_path / "clip.jsonl").read_text().splitlines()
    bags, others = [], []
    for line in lines:
        best, *rest = json.loads(line)["objects"]  # the best one is the bag
        bags.append(best["track_id"])
        others.append([one["track_id"] for one in rest])
    first, second = bags[1], others[1][0]
    assert bags == [None] + [first] * 15 and first != second
    assert others[0] == [None] and others[-1] == [second]  # it is the same at both ends
    assert {one for frame in others for one in frame} == {None, second}
    with av.open(tmp_path / "clip.mp4") as container:
        assert len(list(container.decode(video=0))) == 16
    assert main(given) == 0
    assert "track_id" not in (tmp_path / "clip.jsonl").read_text()


def test_most_frames(garments: np.ndarray, tmp_path: Path) -> None:
    """`--most-frames` ends early, with complete files."""
    write_video(tmp_path / "clip.avi", garments)
    assert main([str(tmp_path / "clip.avi"), "--output", str(tmp_path), "--most-frames", "3"]) == 0
    assert len((tmp_path / "clip.jsonl").read_text().splitlines()) == 3
    with av.open(tmp_path / "clip.mp4") as container:
        assert len(list(container.decode(video=0))) == 3


def test_video_without_frames_leaves_earlier_results(
    garments: np.ndarray, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    """Nothing is written before the first frame has been read."""
    video, output = tmp_path / "clip.avi", tmp_path / "output"
    write_video(video, garments)
    whole = video.read_bytes()
    video.write_bytes(whole[: whole.index(b"movi") + 4])
    output.mkdir()
    (output / "clip.jsonl").write_text("of an earlier run")
    assert main([str(video), "--output", str(output)]) == 1
    assert capsys.readouterr().err
    assert [path.name for path in output.iterdir()] == ["clip.jsonl"]
    assert (output / "clip.jsonl").read_text() == "of an earlier run"


def test_frames_without_times(garments: np.ndarray, tmp_path: Path) -> None:
    """A raw stream of a camera, which only has a rate, gets the times of that rate."""
    if "libx264" not in av.codecs_available:
        pytest.skip("this PyAV can't write H.264, whose raw streams have no times")
    with av.open(tmp_path / "raw.h264", "w", format="h264") as container:
        stream = container.add_stream("libx264", rate=25)
        stream.height, stream.width, stream.pix_fmt = *garments.shape[:2], "yuv420p"
        for _ in TIMES:
            frame = av.VideoFrame.from_ndarray(garments, format="rgb24")
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    with av.open(tmp_path / "raw.h264") as container:
        assert {frame.pts for frame in container.decode(video=0)} == {None}
    assert main([str(tmp_path / "raw.h264"), "--output", str(tmp_path)]) == 0
    lines = (tmp_path / "raw.jsonl").read_text().splitlines()
    assert [json.loads(line)["time"] for line in lines] == [0, 0.04, 0.08, 0.12, 0.16]
    with av.open(tmp_path / "raw.mp4") as container:
        times = [frame.time for frame in container.decode(video=0)]
    np.testing.assert_allclose(times, [0, 0.04, 0.08, 0.12, 0.16], atol=1e-3)


def test_times_that_go_backwards(tmp_path: Path) -> None:
    """Frames of an AVI file with B-frames, which has no times of its own, stay in their order."""
    if "libx264" not in av.codecs_available:
        pytest.skip("this PyAV can't write H.264, whose B-frames have such times")
    with av.open(tmp_path / "clip.avi", "w") as container:
        stream = container.add_stream("libx264", rate=10)
        stream.height, stream.width, stream.pix_fmt = 48, 64, "yuv420p"
        for number in range(8):
            pixels = np.full((48, 64, 3), 20 * number, np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
        container.mux(stream.encode(None))
    with av.open(tmp_path / "clip.avi") as container:
        given = [frame.pts for frame in container.decode(video=0)]
        assert given != sorted(given)
    assert main([str(tmp_path / "clip.avi"), "--output", str(tmp_path)]) == 0
    lines = (tmp_path / "clip.jsonl").read_text().splitlines()
    written = [json.loads(line)["time"] for line in lines]
    assert len(written) == 8 and written == sorted(set(written))
    with av.open(tmp_path / "clip.mp4") as container:
        times = [frame.time for frame in container.decode(video=0)]
    np.testing.assert_allclose(np.diff(times), np.diff(written), atol=1e-3)


def test_narrow_videos(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    """Three rows aren't taken for channels, and a video of one row can't be written."""
    for height in (1, 3):
        frames = [PIL.Image.new("RGB", (64, height), color) for color in ("red", "green")]
        frames[0].save(tmp_path / f"{height}.gif", save_all=True, append_images=frames[1:])
    assert main([str(tmp_path / "3.gif"), "--output", str(tmp_path / "output")]) == 0
    assert len((tmp_path / "output" / "3.jsonl").read_text().splitlines()) == 2
    assert main([str(tmp_path / "1.gif"), "--output", str(tmp_path / "output")]) == 1
    assert "one pixel wide or high" in capsys.readouterr().err
    assert not (tmp_path / "output" / "1.jsonl").exists()


def test_not_a_video(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    """A text and a bad address: one line each, status 1, nothing written."""
    text, given = tmp_path / "note.avi", ["--output", str(tmp_path)]
    text.write_text("not a video")
    assert main(["nothing://none.avi", *given]) == 1
    assert "none.avi" in capsys.readouterr().err
    assert main([str(text), *given]) == 1
    assert "note.avi" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["note.avi"]


def test_colon_in_the_name(
    tmp_path: Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An existing file is opened as a file, although FFmpeg's addresses have colons."""
    (tmp_path / "12:30.avi").write_text("not a video")
    monkeypatch.chdir(tmp_path)
    assert main(["12:30.avi"]) == 1
    assert "Invalid data" in capsys.readouterr().err


def test_wrong_arguments_are_status_2(
    tmp_path: Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A missing file, an output that overwrites the input, a missing package: one line each."""
    (tmp_path / "clip.mp4").touch()
    for name, message in [
        ("none.avi", "none.avi doesn't exist"),
        ("clip.mp4", "clip.mp4 would be overwritten"),
        ("clip.mp4", "hf_detr[track]"),
        ("clip.mp4", "hf_detr[video]"),
    ]:
        if message == "hf_detr[video]":
            monkeypatch.setattr(video_command, "av", None)
        given = ["--output", str(tmp_path)]
        if message == "hf_detr[track]":
            monkeypatch.setattr(video_command, "find_spec", lambda name: None)
            given = ["--output", str(tmp_path / "other"), "--track"]
        with pytest.raises(SystemExit) as ended:
            main([str(tmp_path / name), *given])
        assert ended.value.code == 2 and message in capsys.readouterr().err


def shown(path: Path) -> np.ndarray:
    """The first frame of a video, as it is shown."""
    return np.asarray(next(iter(video_command._Frames(str(path), 1))))


@pytest.mark.parametrize("degrees", [0, 90, 180])
def test_mirrored_frames(tmp_path: Path, degrees: int) -> None:
    """Cameras that look at their user note that frames are mirrored, before they are turned."""
    pixels = np.zeros((48, 64, 3), np.uint8)
    pixels[:24, :32] = 255
    write_video(tmp_path / "plain.mp4", pixels, degrees)
    content = bytearray((tmp_path / "plain.mp4").read_bytes())
    start = content.index(b"tkhd") + 44  # of the matrix: (a, b, u), (c, d, v), …
    matrix = np.frombuffer(content[start : start + 24], ">i4").copy()
    matrix[:2] *= -1  # the horizontal axis
    content[start : start + 24] = matrix.tobytes()
    (tmp_path / "mirrored.mp4").write_bytes(content)
    expected = np.rot90(pixels[:, ::-1], degrees // 90)
    difference = np.abs(shown(tmp_path / "mirrored.mp4").astype(int) - expected)
    assert difference.mean() < 10


def test_shape_of_pixels_and_choice_of_stream(tmp_path: Path) -> None:
    """Pixels of DVDs aren't square; a still image beside the video isn't the video."""
    video = tmp_path / "clip.mkv"
    with av.open(video, "w") as container:
        still, stream = (container.add_stream(codec, rate=25) for codec in ("mjpeg", "mpeg4"))
        still.pix_fmt, stream.pix_fmt = "yuvj420p", "yuv420p"
        still.height = still.width = 32
        stream.height, stream.width = 48, 64
        stream.codec_context.sample_aspect_ratio = Fraction(64, 45)
        for one, number in ((still, 1), (stream, 8)):
            for pts in range(number):
                pixels = np.full((one.height, one.width, 3), 30 * pts, np.uint8)
                frame = av.VideoFrame.from_ndarray(pixels, format="rgb24")
                frame.pts, frame.time_base = pts, Fraction(1, 25)
                container.mux(one.encode(frame))
            container.mux(one.encode(None))
    assert main([str(video), "--output", str(tmp_path / "output")]) == 0
    with av.open(tmp_path / "output" / "clip.mp4") as container:
        (stream,) = container.streams.video
        assert stream.sample_aspect_ratio == Fraction(64, 45)
        assert sum(1 for _ in container.decode(stream)) == 8


@pytest.mark.parametrize(("average", "guessed"), [(None, 1000), (1000, 25), (25, None), (25, 30)])
def test_rate_of_irregular_times(average: int | None, guessed: int | None) -> None:
    """The clock's rate, such as the 1000 of browsers' recordings, would keep ids for 40 seconds."""
    stream = SimpleNamespace(average_rate=average, guessed_rate=guessed)
    assert video_command._likely_rate(stream) == 25
