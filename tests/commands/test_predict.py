"""`hf-detr predict` on real folders: broken files, huge photos, equal names."""

import http.server
import json
import threading
from functools import partial
from pathlib import Path

import numpy as np
import PIL.Image
import pytest

from hf_detr import DetrImageProcessor, embedded_model_folder
from hf_detr.commands import prediction_run
from hf_detr_command_line import main as run

from ..inference.test_prediction import SIZE, confident_segmenter
from ..some_data import write_image
from ..tiny import tiny_detector

GARMENTS = Path(__file__).parents[2] / "examples" / "images" / "garments.jpg"


def main(arguments: list[str]) -> int:
    """`hf-detr predict` with these arguments."""
    return run(["predict", *arguments])


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A small detector's folder."""
    folder = tmp_path_factory.mktemp("model")
    tiny_detector("detr").save_pretrained(folder)
    DetrImageProcessor(size=SIZE).save_pretrained(folder)
    return str(folder)


def test_folder_with_a_broken_image_a_text_and_a_huge_photo(
    model: str, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    """It finishes, names each, has status 3, and stdout has only JSON."""
    photos, output = tmp_path / "photos", tmp_path / "sub" / "output"
    write_image(photos / "good.png")
    (photos / "broken.jpg").write_bytes(b"\xff\xd8 no more")
    (photos / "readme.txt").write_text("text")
    (photos / "deeper").mkdir()
    PIL.Image.new("RGB", (8000, 5000), "gray").save(photos / "huge.jpg")
    given = [str(photos), "--model", model, "--output", str(output), "--threshold", "0", "--json"]
    assert main(given) == 3
    out, err = capsys.readouterr()
    report = json.loads(out)
    assert report == json.loads((output / "predictions.json").read_text())
    assert [Path(one["file"]).name for one in report["images"]] == ["good.png", "huge.jpg"]
    assert report["skipped"] == [str(photos / "readme.txt")]
    (failed,) = report["failed"]
    assert failed["file"] == str(photos / "broken.jpg") and "can't be" in failed["error"]
    assert "skipped" in err and "failed" in err and "1 of 3 images failed" in err
    with PIL.Image.open(output / "huge.png") as picture:
        assert picture.size == (8000, 5000)
    assert len(report["images"][1]["objects"]) == 7


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_finds_what_the_embedded_model_knows(
    dtype: str, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    """The default model on an image given by a pattern: names, boxes in pixels, status 0."""
    pattern = str(GARMENTS.parent / "garm*.jpg")
    options = ["--output", str(tmp_path), "--no-pictures", "--dtype", dtype]
    assert main([pattern, *options]) == 0
    out = capsys.readouterr().out
    assert all(f"1 {name}" in out for name in ("bag", "trouser", "coat"))
    names = {"predictions.json", "predictions.jsonl", "predictions.run.json"}
    assert {path.name for path in tmp_path.iterdir()} == names
    report = json.loads((tmp_path / "predictions.json").read_text())
    [line] = (tmp_path / "predictions.jsonl").read_text().splitlines()
    assert json.loads(line) == report["images"][0]
    best = report["images"][0]["objects"][0]
    assert best["label"] == "bag" and best["score"] > 0.7
    assert best["box"] == pytest.approx([347, 229, 434, 327], abs=4)
    assert report["model"] == str(embedded_model_folder())


def test_files_given_themselves_must_be_images(
    model: str, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    """A text file given by name fails, alone (1) or with an image (3)."""
    note, image = tmp_path / "note.txt", write_image(tmp_path / "image.png")
    note.write_text("text")
    options = ["--model", model, "--output", str(tmp_path / "output"), "--no-pictures"]
    assert main([str(note), str(image), *options]) == 3
    assert main([str(note), *options]) == 1
    assert "note.txt" in capsys.readouterr().err


def test_models_that_cannot_do_it(
    model: str, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    """Masks of a detector, or a name that the Hub doesn't have: status 1, and no output folder."""
    image, output = str(write_image(tmp_path / "image.png")), tmp_path / "output"
    options = ["--output", str(output)]
    assert main([image, "--model", "nobody/nothing", *options]) == 1
    assert main([image, "--model", model, "--masks", *options]) == 1
    assert "has no mask head" in capsys.readouterr().err
    assert not output.exists()


def test_wrong_arguments_are_status_2(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    """Each is one message; results never replace the input images."""
    image = str(write_image(tmp_path / "image.png"))
    (tmp_path / "empty").mkdir()
    nowhere = str(tmp_path / "nowhere")
    for given, message in [
        ([], "IMAGES"),
        ([image, "--output", str(tmp_path)], "contains input images"),
        ([image, "--batch-size", "0"], "isn't an integer of at least 1"),
        ([image, "--threshold", "50"], "isn't a number from 0 to 1"),
        ([image, nowhere], "nowhere doesn't exist"),
        ([str(tmp_path / "empty")], "there are no images in"),
        ([image, "--model", nowhere], "nowhere doesn't exist; expected a folder or a name"),
        ([image, "--model", image], "is a file; expected a folder or a name"),
    ]:
        with pytest.raises(SystemExit) as ended:
            main(given)
        assert ended.value.code == 2 and message in capsys.readouterr().err


@pytest.mark.parametrize("link_is", ["read", "written"])
def test_links_do_not_endanger_photos(
    model: str, tmp_path: Path, link_is: str, capsys: pytest.CaptureFixture
) -> None:
    """No result overwrites an input image through a link."""
    photo = write_image(tmp_path / "photos" / "cat.png")
    other = tmp_path / "other" / "cat.png"
    other.parent.mkdir()
    other.symlink_to(photo)
    before = photo.read_bytes()
    read, written = (other, photo) if link_is == "read" else (photo, other)
    with pytest.raises(SystemExit) as ended:
        main([str(read.parent), "--output", str(written.parent), "--model", model])
    assert ended.value.code == 2 and "contains input images" in capsys.readouterr().err
    assert photo.read_bytes() == before


@pytest.mark.parametrize("named", ["file", "folder", "--data"])
def test_addresses_and_data_sets_are_not_overwritten(
    model: str, tmp_path: Path, named: str, capsys: pytest.CaptureFixture
) -> None:
    """Local files that are given in other ways than by a path are checked too."""
    photo = write_image(tmp_path / "photos" / "cat.png")
    folder = photo.parent
    given = {
        "file": [photo.as_uri()],
        "folder": [folder.as_uri()],
        "--data": ["--data", str(folder)],
    }[named]
    before = photo.read_bytes()
    with pytest.raises(SystemExit) as ended:
        main([*given, "--draw", "--output", str(folder), "--model", model])
    assert ended.value.code == 2 and "contains input images" in capsys.readouterr().err
    assert photo.read_bytes() == before
    assert main([*given, "--draw", "--output", str(tmp_path / "output"), "--model", model]) == 0


def test_folders_in_folders_are_not_overwritten(
    model: str, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    """Not even where the output folder itself has no images."""
    photo = write_image(tmp_path / "photos" / "sub" / "cat.png")
    before = photo.read_bytes()
    given = [str(tmp_path / "photos"), "--recursive", "--output", str(tmp_path / "photos")]
    assert main([*given, "--model", model]) == 1
    assert "cat.png would be overwritten" in capsys.readouterr().err
    assert photo.read_bytes() == before


def test_results_stay_after_interruption(
    model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Results from before Ctrl-C are in predictions.json; the status is 130."""
    files = [str(write_image(tmp_path / f"{name}.png")) for name in "abc"]
    draw = prediction_run.draw_predictions

    def interrupted(image: Path, *others: object) -> PIL.Image.Image:
        if image.name == "b.png":
            raise KeyboardInterrupt
        return draw(image, *others)

    monkeypatch.setattr(prediction_run, "draw_predictions", interrupted)
    output = tmp_path / "output"
    assert main([*files, "--output", str(output), "--model", model]) == 130
    report = json.loads((output / "predictions.json").read_text())
    assert [Path(one["file"]).name for one in report["images"]] == ["a.png"]


def test_results_are_written_as_they_come(
    model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A kill leaves the results of the images before: each is on the disk before the next one."""
    files = [str(write_image(tmp_path / f"{name}.png")) for name in "abc"]
    output, written = tmp_path / "output", []
    output.mkdir()
    (output / "predictions.jsonl").write_text("of an earlier run")
    draw = prediction_run.draw_predictions

    def draw_and_look(*given: object) -> PIL.Image.Image:
        written.append((output / "predictions.jsonl").read_text())
        return draw(*given)

    monkeypatch.setattr(prediction_run, "draw_predictions", draw_and_look)
    assert main([*files, "--output", str(output), "--model", model]) == 0
    images = json.loads((output / "predictions.json").read_text())["images"]
    lines = [json.dumps(image) + "\n" for image in images]
    assert written == ["of an earlier run", lines[0], lines[0] + lines[1]]
    assert (output / "predictions.jsonl").read_text() == "".join(lines)


def test_addresses(
    model: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture,
) -> None:
    """Images are downloaded once and kept nowhere; what fails is named by its address."""
    served, output, asked = tmp_path / "served", tmp_path / "output", []
    write_image(served / "sub" / "a cat.png")
    (served / "page.html").write_text("no image")

    class Server(http.server.SimpleHTTPRequestHandler):
        def log_request(self, code: object = "", size: object = "") -> None:
            asked.append(self.path)

        def log_error(self, *message: object) -> None:
            pass

    monkeypatch.setenv("no_proxy", "*")
    handler = partial(Server, directory=str(served))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        root = f"http://127.0.0.1:{server.server_address[1]}"
        given = [f"{root}/{name}" for name in ("none.png", "sub/a cat.png?size=1", "page.html")]
        try:
            assert main([*given, "--output", str(output), "--model", model, "--json"]) == 3
        finally:
            server.shutdown()
            thread.join()
    out, err = capsys.readouterr()
    report = json.loads(out)
    assert [one["file"] for one in report["images"]] == given[1:2]
    assert report["images"][0]["picture"] == str(output / "a cat.png")
    with PIL.Image.open(output / "a cat.png") as picture:
        assert picture.size == (50, 40)
    missing, page = report["failed"]
    assert [missing["file"], page["file"]] == [given[0], given[2]]
    assert missing["error"].startswith(f"{given[0]} can't be downloaded: HTTP Error 404")
    assert f"({given[2]!r}) can't be opened" in page["error"] and "failed: " in err
    assert asked == ["/none.png", "/sub/a%20cat.png?size=1", "/page.html"]


def test_images_that_cannot_be_written(
    model: str, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    """Each is one failure; if all fail, the results of an earlier run stay."""
    files = [str(write_image(tmp_path / f"{name}.png")) for name in "abc"]
    output = tmp_path / "output"
    (output / "b.png").mkdir(parents=True)
    assert main([*files, "--output", str(output), "--model", model]) == 3
    report = json.loads((output / "predictions.json").read_text())
    assert [Path(one["file"]).name for one in report["images"]] == ["a.png", "c.png"]
    assert [Path(one["file"]).name for one in report["failed"]] == ["b.png"]
    capsys.readouterr()
    (tmp_path / "bad.png").write_text("not an image")
    assert main([str(tmp_path / "bad.png"), "--output", str(output), "--model", model]) == 1
    assert "bad.png" in capsys.readouterr().err
    assert json.loads((output / "predictions.json").read_text()) == report


def test_masks_and_equal_names(tmp_path: Path) -> None:
    """Segment maps have the ids of the results; equal names don't overwrite each other."""
    confident_segmenter().save_pretrained(tmp_path / "model")
    DetrImageProcessor(size=SIZE).save_pretrained(tmp_path / "model")
    names = ("a/1.png", "b/1.png", "b/1.segments.png")
    files = [str(write_image(tmp_path / name, seed=i)) for i, name in enumerate(names)]
    output = tmp_path / "output"
    options = ["--masks", "--output", str(output)]
    assert main([*files, *options, "--model", str(tmp_path / "model")]) == 0
    names = {path.name for path in output.iterdir()}
    pictures = {"1.png", "1-2.png", "1.segments.png", "1-2.segments.png"}
    pictures |= {"1.segments-2.png", "1.segments-2.segments.png"}
    assert names == pictures | {f"predictions.{end}" for end in ("json", "jsonl", "run.json")}
    report = json.loads((output / "predictions.json").read_text())
    for one in report["images"]:
        with PIL.Image.open(one["segment_map"]) as segment_map:
            assert np.asarray(segment_map).max() == one["segments"][0]["id"]
        assert one["segments"][0]["label_id"] == one["objects"][0]["label_id"] == 2
