"""Names of classes in any language are drawn with their letters."""

import warnings

import PIL.Image
import pytest
import torch
from PIL import ImageFont

from hf_detr.inference import label_font as label_fonts
from hf_detr.inference.drawing import draw_predictions
from hf_detr.inference.label_font import ABSENT, label_font


def draw(name: str) -> bytes:
    """The pixels of a picture with a named box."""
    result = {
        "boxes": torch.tensor([[10.0, 60, 190, 190]]),
        "labels": torch.tensor([0]),
        "scores": torch.tensor([0.9]),
    }
    return draw_predictions(PIL.Image.new("RGB", (200, 200)), result, {0: name}).tobytes()


def test_letters_that_pillows_font_lacks() -> None:
    """They differ from each other in the picture, without a warning."""
    pytest.importorskip("matplotlib")  # which has a font with them
    assert len({draw(name) for name in ("Münze", "Mёnze", "Mßnze")}) == 3
    font = label_font(14, ["Münze", "box"])
    assert bytes(font.getmask("ü")) != bytes(font.getmask(ABSENT))


def test_ascii_names_use_pillows_font(monkeypatch: pytest.MonkeyPatch) -> None:
    """No other font is looked for, so that pictures are the same everywhere."""
    monkeypatch.setattr(label_fonts, "_other_fonts", lambda: pytest.fail("looked for a font"))
    expected = ImageFont.load_default(14).getname()
    assert label_font(14, ["a box", "another"]).getname() == expected


def test_letters_that_no_font_has() -> None:
    """A warning names them, once for the same letters."""
    for number, letter in enumerate(("\U000e1000", "\U000e1001", "\U000e1000")):
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            label_font(14, [f"a{letter}"])
        shown = [str(one.message) for one in caught]
        assert [repr(letter) in text for text in shown] == [True] * (number < 2), shown


def test_without_other_fonts(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a computer with none of them, Pillow's own font is used."""
    monkeypatch.setattr(label_fonts, "_other_fonts", tuple)
    expected = ImageFont.load_default(14).getname()
    with pytest.warns(UserWarning, match=r"letters '\\U000e1002', .* looked for DejaVuSans.ttf, "):
        assert label_font(14, ["M\U000e1002nze"]).getname() == expected
