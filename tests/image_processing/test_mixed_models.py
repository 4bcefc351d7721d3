"""Tests that models of transformers beside our image processors are noticed."""

import sys
from pathlib import Path
from types import ModuleType

import pytest
import transformers
from transformers import AutoImageProcessor

from ..tiny import IN_TRANSFORMERS, class_of


@pytest.fixture
def user_module(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """A module of a user."""
    module = ModuleType("someones_training")
    monkeypatch.setitem(sys.modules, module.__name__, module)
    return module


@pytest.mark.parametrize("variant", IN_TRANSFORMERS)
def test_models_of_transformers(variant: str, user_module: ModuleType, tmp_path: Path) -> None:
    """Our targets with transformers' model warn; with ours or another family's they don't."""
    class_of(variant, "ImageProcessor")().save_pretrained(tmp_path)
    name = class_of(variant, "ForObjectDetection").__name__
    setattr(user_module, name, class_of(variant, "ForObjectDetection"))
    user_module.YolosForObjectDetection = transformers.YolosForObjectDetection
    AutoImageProcessor.from_pretrained(tmp_path)
    setattr(user_module, name, getattr(transformers, name))
    with pytest.warns(UserWarning, match=f"someones_training imports {name} from transformers"):
        AutoImageProcessor.from_pretrained(tmp_path)
    class_of(variant, "ImageProcessor").from_pretrained(tmp_path)  # chosen by the user
