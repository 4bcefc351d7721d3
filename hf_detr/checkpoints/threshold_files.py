"""Writes the score thresholds of a model's classes to its files."""

import json
import os
from collections.abc import Mapping
from pathlib import Path

from transformers.utils import CONFIG_NAME

from ..atomic_saving import atomic_file
from ..models.configuration_checks import check_class_thresholds
from .model_card import CARD_NAME, with_thresholds


def write_class_thresholds(
    folder: str | os.PathLike[str], thresholds: Mapping[str, float]
) -> list[Path]:
    """Write thresholds to `config.json` of a model, and to its card if there is one.

    Args:
        folder: of the model.
        thresholds: class name -> score in [0, 1]; replaces those that are there.

    Returns:
        The files that were written.

    Raises:
        OSError: if there is no `config.json`, or a file can't be written.
        ValueError: if a class isn't one of the model's, or a score isn't in [0, 1].
    """
    config_file, card = Path(folder, CONFIG_NAME), Path(folder, CARD_NAME)
    config = json.loads(config_file.read_text(encoding="utf-8"))
    if "id2label" in config:  # missing for names like LABEL_0
        check_class_thresholds(thresholds, config["id2label"], "thresholds")
    config["class_thresholds"] = dict(thresholds)
    # Formatted as by transformers
    contents = {config_file: json.dumps(config, indent=2, sort_keys=True) + "\n"}
    if card.is_file():
        contents[card] = with_thresholds(card.read_text(encoding="utf-8"), thresholds)
    for file, text in contents.items():
        with atomic_file(file) as unfinished:
            unfinished.write_text(text, encoding="utf-8")
    return list(contents)
