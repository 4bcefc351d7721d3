"""Pictures that `hf-detr predict` writes never replace an image of the user."""

import io
import sys
from pathlib import Path

import PIL.Image
import pytest

from hf_detr import DetrImageProcessor
from hf_detr.commands.picture_files import save_picture
from hf_detr_command_line import main as run

from ..inference.test_prediction import SIZE
from ..some_data import write_image
from ..tiny import tiny_detector

PICTURE = PIL.Image.new("RGB", (3, 2))


def test_only_pictures_of_earlier_runs_are_replaced(tmp_path: Path) -> None:
    """An image of the user stays, an earlier picture or what a kill left of one doesn't."""
    source, file = write_image(tmp_path / "a.png"), tmp_path / "sub" / "a.png"
    save_picture(PICTURE, str(file), source)
    save_picture(PICTURE.resize((5, 5)), str(file), source)
    with PIL.Image.open(file) as picture:
        assert picture.size == (5, 5)
    file.write_bytes(b"")
    save_picture(PICTURE, str(file), b"of an image")
    with pytest.raises(ValueError, match="is the input itself; give another --output"):
        save_picture(PICTURE, str(file), file)
    before = source.read_bytes()
    with pytest.raises(ValueError, match="has no mark of hf-detr predict"):
        save_picture(PICTURE, str(source), b"of an image")
    assert source.read_bytes() == before


@pytest.mark.parametrize("is_link", [False, True])
def test_inputs_from_stdin_are_never_overwritten(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture,
    is_link: bool,
) -> None:
    """Neither that image nor a later one; a second run replaces the pictures of the first."""
    tiny_detector("detr").save_pretrained(tmp_path / "model")
    DetrImageProcessor(size=SIZE).save_pretrained(tmp_path / "model")
    output = tmp_path / "output"
    other, later = write_image(tmp_path / "other" / "b.png"), output / "b.png"
    first, good = output / "a.png", write_image(tmp_path / "other" / "c.png")
    write_image(later, seed=2)
    if is_link:
        first.symlink_to(good)
    else:
        write_image(first, seed=1)
    before = [file.read_bytes() for file in (first, later)]
    names = "\n".join(map(str, (first, other, later, good)))
    for _ in range(2):
        text = io.TextIOWrapper(io.BytesIO(names.encode()))
        monkeypatch.setattr(sys, "stdin", text)
        given = ["-", "--draw", "--output", output, "--model", tmp_path / "model"]
        assert run(["predict", *map(str, given)]) == 3
        assert "a.png would be overwritten, which is the input itself" in capsys.readouterr().err
        assert [file.read_bytes() for file in (first, later)] == before
        assert first.is_symlink() == is_link
        assert {path.name for path in output.glob("*.png")} == {
            "a.png",
            "b.png",
            "b-2.png",
            "c.png",
        }
