"""Tests loading models and image processors by name."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from transformers import YolosConfig

from hf_detr import DetrForObjectDetection, DetrForSegmentation, DetrImageProcessor
from hf_detr.inference.model_loading import load_model

from ..models.test_segmentation import tiny_segmenter
from ..tiny import tiny_config, tiny_detector


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A detector in `detector` and a segmentation model in `segmenter`."""
    folder = tmp_path_factory.mktemp("models")
    for name, model in (("detector", tiny_detector()), ("segmenter", tiny_segmenter())):
        model.save_pretrained(folder / name)
        DetrImageProcessor().save_pretrained(folder / name)
    return folder


def test_saved_classes(folder: Path, tmp_path: Path) -> None:
    """The saved class is loaded, or only the detector with masks=False, in the given dtype."""
    for name, masks, expected in [
        ("detector", None, DetrForObjectDetection),
        ("segmenter", None, DetrForSegmentation),
        ("segmenter", True, DetrForSegmentation),
        ("segmenter", False, DetrForObjectDetection),
    ]:
        model, processor = load_model(folder / name, "cpu", masks)
        assert type(model) is expected and not model.training
        assert type(processor) is DetrImageProcessor
        assert model.dtype == torch.float32
    model, processor = load_model(folder / "detector", "cpu", dtype="bfloat16")
    assert model.dtype == torch.bfloat16
    model.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    assert load_model(tmp_path, "cpu")[0].dtype == torch.bfloat16


def test_output_of_a_training(folder: Path) -> None:
    """The error names the folder inside that has the model, also beside files of other kinds."""
    output = folder / "trained"
    shutil.copytree(folder / "detector", output / "model")
    with pytest.raises(OSError, match="output of a training; give its folder .*trained.model"):
        load_model(output)


def test_invalid_models(folder: Path, tmp_path: Path) -> None:
    """Detectors with masks=True, other models and unknown devices are rejected."""
    with pytest.raises(ValueError, match="has no mask head"):
        load_model(folder / "detector", masks=True)
    tiny_config("table-transformer").save_pretrained(folder / "tables")
    message = "tables is a table-transformer model, .* expected a model of the types detr, cond"
    with pytest.raises(ValueError, match=message):
        load_model(folder / "tables", masks=True)
    with pytest.raises(ValueError, match="The device 'abacus' isn't available"):
        load_model(folder / "detector", "abacus")
    YolosConfig().save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="is a 'yolos' model of transformers"):
        load_model(tmp_path)
    with pytest.raises(OSError, match="nowhere is neither a folder here, nor a model"):
        load_model(tmp_path / "nowhere")


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("preprocessor_config.json", '{"image_processor_type": "ViTImageProcessor"}', "has a ViT"),
        ("preprocessor_config.json", "[]", "damaged"),
        ("config.json", None, "damaged"),
    ],
)
def test_damaged_files(
    folder: Path, tmp_path: Path, name: str, content: str | None, message: str
) -> None:
    """Damaged configurations are rejected."""
    shutil.copytree(folder / "detector", tmp_path / "model")
    if content is None:
        config = json.loads((tmp_path / "model" / name).read_text())
        content = json.dumps({**config, "architectures": 5})
    (tmp_path / "model" / name).write_text(content)
    with pytest.raises(ValueError, match=message):
        load_model(tmp_path / "model")
