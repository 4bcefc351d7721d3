"""Names of classes in any language are drawn with their letters."""

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
    monkeypatch.setattr(label_fonts, "_other_fonts", lambda size: pytest.fail("looked for a font"))
    expected = ImageFont.load_default(14).getname()
    assert label_font(14, ["a box", "another"]).getname() == expected


def test_letters_that_no_font_has() -> None:
    """A warning names them, and the other letters are drawn."""
    with pytest.warns(UserWarning, match=r"No font here has the letters '\\U000e1000'.*install"):
        label_font(14, ["a\U000e1000"])


def test_without_other_fonts(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a computer with none of them, Pillow's own font is used."""

    def no_font(file: str, size: float) -> None:
        raise OSError("cannot open resource")

    own = ImageFont.load_default(14)
    monkeypatch.setattr(ImageFont, "load_default", lambda size: own)
    monkeypatch.setattr(ImageFont, "truetype", no_font)
    with pytest.warns(UserWarning, match="letters 'ü'"):
        assert label_font(14, ["Münze"]) is own
