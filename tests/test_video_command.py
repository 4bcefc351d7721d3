"""`hf-detr video` on real films: upright, at their own times, and what can't be a film."""

import json
from fractions import Fraction
from pathlib import Path

import numpy as np
import PIL.Image
import pytest

from hf_detr import video_command
from hf_detr.video_command import main

av = pytest.importorskip("av")
GARMENTS = Path(__file__).parents[1] / "examples" / "images" / "garments.jpg"
TIMES = (0, 40, 120, 160, 400)  # milliseconds; irregular, as of a telephone


def write_film(path: Path, pixels: np.ndarray, degrees: int = 0) -> None:
    """A film of one picture (H, W, 3), to be shown turned counterclockwise."""
    with av.open(path, "w") as container:
        stream = container.add_stream("mpeg4", rate=25)
        stream.height, stream.width = pixels.shape[:2]
        stream.pix_fmt, stream.bit_rate = "yuv420p", 4_000_000
        stream.codec_context.time_base = Fraction(1, 1000)
        if degrees:
            stream.set_display_rotation(degrees)
        for time in TIMES:
            frame = av.VideoFrame.from_ndarray(pixels, format="rgb24")
            frame.pts, frame.time_base = time, Fraction(1, 1000)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))


@pytest.fixture(scope="module")
def garments() -> np.ndarray:
    """The picture that comes with the examples."""
    return np.asarray(PIL.Image.open(GARMENTS).convert("RGB"))


@pytest.mark.parametrize("degrees", [0, 90])
def test_finds_garments_in_every_frame(
    garments: np.ndarray, tmp_path: Path, degrees: int, capsys: pytest.CaptureFixture
) -> None:
    """Each frame is seen upright, drawn and recorded, at the time that it had."""
    lying = np.ascontiguousarray(np.rot90(garments, -degrees // 90))
    write_film(tmp_path / "clip.avi" if not degrees else tmp_path / "clip.mov", lying, degrees)
    film = next(tmp_path.glob("clip.*"))
    output = tmp_path / "sub" / "output"
    assert main([str(film), "--output", str(output), "--batch-size", "2"]) == 0
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
    assert 0.5 < np.abs(difference).mean() < 20  # lines and letters on the same picture


def test_stops_where_it_is_told(garments: np.ndarray, tmp_path: Path) -> None:
    """`--most-frames` ends early, with whole files."""
    write_film(tmp_path / "clip.avi", garments)
    assert main([str(tmp_path / "clip.avi"), "--output", str(tmp_path), "--most-frames", "3"]) == 0
    assert len((tmp_path / "clip.jsonl").read_text().splitlines()) == 3
    with av.open(tmp_path / "clip.mp4") as container:
        assert len(list(container.decode(video=0))) == 3


def test_a_film_without_pictures_leaves_earlier_results(
    garments: np.ndarray, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    """Nothing is written before the first frame has been read."""
    film, output = tmp_path / "clip.avi", tmp_path / "output"
    write_film(film, garments)
    whole = film.read_bytes()
    film.write_bytes(whole[: whole.index(b"movi") + 4])
    output.mkdir()
    (output / "clip.jsonl").write_text("of an earlier run")
    assert main([str(film), "--output", str(output)]) == 1
    assert capsys.readouterr().err
    assert [path.name for path in output.iterdir()] == ["clip.jsonl"]
    assert (output / "clip.jsonl").read_text() == "of an earlier run"


def test_frames_without_times(garments: np.ndarray, tmp_path: Path) -> None:
    """A camera's raw stream, which has a rate alone, lasts as long as it should."""
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


def test_narrow_films(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    """Three rows are no channels, and a film of one can't be written."""
    for height in (1, 3):
        frames = [PIL.Image.new("RGB", (64, height), color) for color in ("red", "green")]
        frames[0].save(tmp_path / f"{height}.gif", save_all=True, append_images=frames[1:])
    assert main([str(tmp_path / "3.gif"), "--output", str(tmp_path / "output")]) == 0
    assert len((tmp_path / "output" / "3.jsonl").read_text().splitlines()) == 2
    assert main([str(tmp_path / "1.gif"), "--output", str(tmp_path / "output")]) == 1
    assert "one pixel wide or high" in capsys.readouterr().err
    assert not (tmp_path / "output" / "1.jsonl").exists()


def test_what_is_no_film(
    tmp_path: Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A missing file, a text, its own output and a missing library: one line each, status 1."""
    text = tmp_path / "note.avi"
    text.write_text("no film")
    given = ["--output", str(tmp_path)]
    assert main([str(tmp_path / "none.avi"), *given]) == 1
    assert "none.avi" in capsys.readouterr().err
    assert main(["nothing://none.avi", *given]) == 1  # of PyAV's own kind
    assert "none.avi" in capsys.readouterr().err
    assert main([str(text), *given]) == 1
    assert "note.avi" in capsys.readouterr().err
    assert main([str(tmp_path / "clip.mp4"), *given]) == 1
    assert "would be written over" in capsys.readouterr().err
    (tmp_path / "12:30.avi").write_text("no film")
    monkeypatch.chdir(tmp_path)
    assert main(["12:30.avi", *given]) == 1
    assert "Invalid data" in capsys.readouterr().err  # it was opened as the file that it is
    (tmp_path / "12:30.avi").unlink()
    monkeypatch.setattr(video_command, "av", None)
    assert main([str(text), *given]) == 1
    assert "hf_detr[video]" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["note.avi"]
