"""Numbers and sizes on command lines."""

import argparse
from pathlib import Path

import pytest

from hf_detr.commands.options import (
    add_data_options,
    add_model_options,
    add_prediction_options,
    checked_data,
    model_name,
    positive,
    prepare_file,
    size_hw,
)
from hf_detr.data.formats import DataArguments

from ..some_data import entry, write_coco


def test_numbers_and_sizes() -> None:
    """Height comes first, as everywhere; other texts are refused."""
    assert positive("12") == 12 and size_hw("480x640") == (480, 640)
    for text in ("480", "480x", "0x640", "-1x2", "480x640x3"):
        with pytest.raises(argparse.ArgumentTypeError, match="isn't an integer of at least 1"):
            size_hw(text)


def test_several_models() -> None:
    """The default is a list if there can be several models."""
    for several in (False, True):
        parser = argparse.ArgumentParser()
        add_model_options(parser, several)
        assert parser.parse_args([]).model == ([None] if several else None)


def test_data_sets_have_options(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    """Options are the fields of DataArguments, and former ones are refused."""
    parser = argparse.ArgumentParser()
    add_data_options(parser)
    write_coco(tmp_path / "train", [entry(1)])
    parsed = parser.parse_args(["--data", str(tmp_path), "--box-format", "xyxy"])
    assert checked_data(parsed) == DataArguments(str(tmp_path), box_format="xyxy")
    parsed = parser.parse_args(["--data", str(tmp_path), "--masks", "--val-fraction", "0.2"])
    assert checked_data(parsed) == DataArguments(str(tmp_path), masks=True, val_fraction=0.2)
    with pytest.raises(ValueError, match="--data is missing"):
        checked_data(parser.parse_args([]))
    for name in ("--coco", "--voc", "--yolo", "--hub"):
        with pytest.raises(SystemExit) as ended:
            parser.parse_args([name, "folder"])
        assert ended.value.code == 2
        assert f"{name} is now --data" in capsys.readouterr().err


def test_thresholds_are_scores(capsys: pytest.CaptureFixture) -> None:
    """A threshold in percent, which no score reaches, is refused."""
    parser = argparse.ArgumentParser()
    add_prediction_options(parser)
    assert parser.parse_args(["--threshold", "0"]).threshold == 0
    for text in ("50", "-1", "nan", "inf", "half"):
        with pytest.raises(SystemExit) as ended:
            parser.parse_args([f"--threshold={text}"])
        assert ended.value.code == 2 and "isn't a number from 0 to 1" in capsys.readouterr().err


def test_files_are_prepared_before_the_work(tmp_path: Path) -> None:
    """Folders are made, existing files stay; impossible files are refused at once."""
    there = tmp_path / "there.json"
    there.write_text("{}")
    prepare_file(there)
    prepare_file(tmp_path / "a" / "b" / "new.json")
    assert there.read_text() == "{}" and not list((tmp_path / "a" / "b").iterdir())
    with pytest.raises(OSError, match="it is a folder"):
        prepare_file(tmp_path / "a")
    with pytest.raises(OSError):
        prepare_file(there / "new.json")


def test_models_are_folders_or_names_on_the_hub(tmp_path: Path) -> None:
    """Paths that don't exist, and files, are refused without asking the Hub."""
    for name in (str(tmp_path), "facebook/detr-resnet-50", "detr_2.0"):
        assert model_name(name) == name
    (tmp_path / "file").touch()
    for name in ("./nowhere", str(tmp_path / "nowhere"), "a/b/c", str(tmp_path / "file")):
        with pytest.raises(argparse.ArgumentTypeError, match="expected a folder or a name on"):
            model_name(name)
