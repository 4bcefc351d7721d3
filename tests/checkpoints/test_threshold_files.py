"""Thresholds in a model's files: the configuration, and the card if there is one."""

import json
from pathlib import Path

import pytest
import transformers

from hf_detr import DetrConfig, make_model_card
from hf_detr.checkpoints.model_card import with_thresholds
from hf_detr.checkpoints.threshold_files import write_class_thresholds

from ..tiny import tiny_config

NAMES = {0: "cat", 1: "a | b", 2: "two\nlines"}


def test_config_and_card_are_written(tmp_path: Path) -> None:
    """Nothing else changes; a second time replaces the first; plain transformers loads it."""
    config = tiny_config(num_labels=3, id2label=NAMES, architectures=["DetrForObjectDetection"])
    config.save_pretrained(tmp_path)
    before = json.loads((tmp_path / "config.json").read_text())
    assert write_class_thresholds(tmp_path, {"cat": 0.9}) == [tmp_path / "config.json"]
    card = tmp_path / "README.md"
    card.write_text("# Model\n\n## Score thresholds\n\nOld.\n\n## Limits\n\nSome.\n")
    thresholds = {"cat": 0.25, "a | b": 0.5, "two\nlines": 0.75}
    assert write_class_thresholds(tmp_path, thresholds) == [tmp_path / "config.json", card]
    after = json.loads((tmp_path / "config.json").read_text())
    assert after.pop("class_thresholds") == thresholds and after == before
    assert DetrConfig.from_pretrained(tmp_path).class_thresholds == thresholds
    assert transformers.DetrConfig.from_pretrained(tmp_path).id2label == NAMES
    text = card.read_text()
    assert "Old" not in text and text.count("## Score thresholds") == 1
    assert "| cat | 0.25 |\n| a \\| b | 0.5 |\n| two lines | 0.75 |\n\n## Limits\n\nSome.\n" in text


def test_unknown_classes_are_not_written(tmp_path: Path) -> None:
    """The files stay as they are."""
    tiny_config(num_labels=3, id2label=NAMES).save_pretrained(tmp_path)
    before = (tmp_path / "config.json").read_bytes()
    with pytest.raises(ValueError, match="thresholds has the class 'dog'"):
        write_class_thresholds(tmp_path, {"dog": 0.5})
    assert (tmp_path / "config.json").read_bytes() == before


def test_section_of_a_new_card() -> None:
    """A card has the section that `with_thresholds` adds, and not in the table of fields."""
    config = tiny_config(
        num_labels=3,
        id2label=NAMES,
        architectures=["DetrForObjectDetection"],
        class_thresholds={"cat": 0.25},
    )
    card = make_model_card(config, name="a/b", description="A model.").content
    assert "| cat | 0.25 |" in card and "`class_thresholds` |" not in card
    assert with_thresholds(card, {"cat": 0.25}) == card
    assert with_thresholds(card, {"cat": 0.75}) == card.replace("| cat | 0.25 |", "| cat | 0.75 |")
    config.class_thresholds = None
    plain = make_model_card(config, name="a/b", description="A model.").content
    assert "thresholds" not in plain
    assert with_thresholds(plain, {"cat": 0.25}).endswith("| cat | 0.25 |\n")
