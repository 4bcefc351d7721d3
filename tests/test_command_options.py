"""Numbers and sizes on command lines."""

import argparse
from pathlib import Path

import pytest

from hf_detr.command_options import (
    add_model_options,
    add_threshold,
    positive,
    prepare_file,
    size_hw,
)


def test_numbers_and_sizes() -> None:
    """Height comes first, as everywhere; what is no size is refused in words."""
    assert positive("12") == 12 and size_hw("480x640") == (480, 640)
    for text in ("480", "480x", "0x640", "-1x2", "480x640x3"):
        with pytest.raises(argparse.ArgumentTypeError, match="no whole number from 1"):
            size_hw(text)


def test_several_models() -> None:
    """The default is of the kind that the command asked for."""
    for several in (False, True):
        parser = argparse.ArgumentParser()
        add_model_options(parser, several)
        assert isinstance(parser.parse_args([]).model, list if several else str)


def test_thresholds_are_scores(capsys: pytest.CaptureFixture) -> None:
    """A threshold in percent would find nothing, and say so as if there were nothing."""
    parser = argparse.ArgumentParser()
    add_threshold(parser)
    assert parser.parse_args(["--threshold", "0"]).threshold == 0
    for text in ("50", "-1", "nan", "inf", "half"):
        with pytest.raises(SystemExit) as ended:
            parser.parse_args([f"--threshold={text}"])
        assert ended.value.code == 2 and "no number from 0 to 1" in capsys.readouterr().err


def test_files_are_prepared_before_the_work(tmp_path: Path) -> None:
    """Folders are made, files that are there stay; where no file can be, it is told at once."""
    there = tmp_path / "there.json"
    there.write_text("{}")
    prepare_file(there)
    prepare_file(tmp_path / "a" / "b" / "new.json")
    assert there.read_text() == "{}" and not list((tmp_path / "a" / "b").iterdir())
    with pytest.raises(OSError, match="it is a folder"):
        prepare_file(tmp_path / "a")
    with pytest.raises(OSError):
        prepare_file(there / "new.json")
