"""`hf-detr demo` before the page is served; `plots/test_demo_page.py` tests the page itself."""

from importlib.machinery import ModuleSpec
from pathlib import Path
from typing import Any

import pytest

from hf_detr.commands import demo
from hf_detr.plots import demo_page
from hf_detr_command_line import main

IMAGE = Path(__file__).parents[2] / "examples" / "images" / "garments.jpg"


class Page:
    """Remembers how it was launched."""

    def __init__(self, model: str | None) -> None:
        self.model = model

    def launch(self, **options: Any) -> None:
        self.options = options


@pytest.fixture
def pages(monkeypatch: pytest.MonkeyPatch) -> list[Page]:
    """The pages that a command makes, without gradio."""
    made = []
    monkeypatch.setattr(demo, "LIBRARIES", ())
    monkeypatch.setattr(demo_page, "make_page", lambda model: made.append(Page(model)) or made[-1])
    return made


def test_options_reach_the_page(pages: list[Page], tmp_path: Path) -> None:
    """Model, port and sharing are those of the command line."""
    assert main(["demo"]) == 0
    assert main(["demo", "--model", str(tmp_path), "--port", "7777", "--share"]) == 0
    assert [page.model for page in pages] == [None, str(tmp_path)]
    launched = [(page.options["server_port"], page.options["share"]) for page in pages]
    assert launched == [(None, False), (7777, True)]


def test_missing_libraries_are_named(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    """Without gradio, one line says what to install, before anything is loaded."""

    def find(name: str) -> ModuleSpec | None:
        return None if name == "gradio" else ModuleSpec(name, None)

    monkeypatch.setattr(demo, "find_spec", find)
    with pytest.raises(SystemExit) as ended:
        main(["demo"])
    assert ended.value.code == 2
    expected = "gradio isn't installed; pip install 'hf_detr[demo]' installs it"
    assert expected in capsys.readouterr().err


@pytest.mark.parametrize("wrong", [["--model", "./nowhere"], ["--port", "0"]])
def test_wrong_arguments(wrong: list[str], capsys: pytest.CaptureFixture) -> None:
    """Each is one message with status 2."""
    with pytest.raises(SystemExit) as ended:
        main(["demo", *wrong])
    assert ended.value.code == 2 and wrong[0] in capsys.readouterr().err


def test_example_is_the_one_of_the_repository() -> None:
    """The package has a copy of the example image, because examples/ isn't in the wheel."""
    assert demo_page.EXAMPLE.read_bytes() == IMAGE.read_bytes()
