"""Tests what `import hf_detr` changes in transformers, and what it must leave alone."""

import importlib
import json
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from transformers import (
    AutoConfig,
    AutoImageProcessor,
    AutoModel,
    AutoModelForImageSegmentation,
    AutoModelForObjectDetection,
    AutoModelForUniversalSegmentation,
    MaskFormerConfig,
    pipeline,
)

import hf_detr
from hf_detr import ModelLoadingError

from ..tiny import IN_TRANSFORMERS, class_of, tiny_detector

REPOSITORY = Path(__file__).parents[2]


@pytest.fixture
def folder(variant: str, tmp_path: Path) -> Path:
    """A saved detector with its image processor."""
    tiny_detector(variant).save_pretrained(tmp_path)
    class_of(variant, "ImageProcessor")(size={"shortest_edge": 64}).save_pretrained(tmp_path)
    return tmp_path


def test_auto_classes_resolve_to_ours(variant: str, folder: Path) -> None:
    """A folder of our model types gives our config, model and processor."""
    assert type(AutoConfig.from_pretrained(folder)) is class_of(variant, "Config")
    assert type(AutoConfig.for_model(variant)) is class_of(variant, "Config")
    assert type(AutoModel.from_pretrained(folder)) is class_of(variant, "Model")
    detector = AutoModelForObjectDetection.from_pretrained(folder)
    assert type(detector) is class_of(variant, "ForObjectDetection")
    assert type(AutoImageProcessor.from_pretrained(folder)) is class_of(variant, "ImageProcessor")


def test_segmentation_classes_resolve_to_ours() -> None:
    """Both Auto classes that transformers has for DETR's masks give ours."""
    for auto_class in (AutoModelForImageSegmentation, AutoModelForUniversalSegmentation):
        assert auto_class._model_mapping[hf_detr.DetrConfig] is hf_detr.DetrForSegmentation


@pytest.mark.parametrize("variant", IN_TRANSFORMERS)
def test_processor_of_transformers_files_is_ours(variant: str, folder: Path) -> None:
    """A preprocessor_config.json that transformers wrote gives our processor."""
    class_of(variant, "ImageProcessor", transformers)().save_pretrained(folder)
    assert type(AutoImageProcessor.from_pretrained(folder)) is class_of(variant, "ImageProcessor")


def test_registration_can_be_switched_off() -> None:
    """HF_DETR_REGISTER=0 leaves the Auto classes and pipelines to transformers."""
    code = (
        "import hf_detr, transformers as t; c = t.AutoConfig.for_model('detr');"
        "assert type(c) is t.DetrConfig, type(c);"
        "from transformers.pipelines import PIPELINE_REGISTRY as r;"
        # A class or, in newer versions, its name.
        "impl = r.supported_tasks['object-detection']['impl'];"
        "assert getattr(impl, '__name__', impl).endswith('ObjectDetectionPipeline'), impl"
    )
    result = subprocess.run(
        [sys.executable, "-c", code],
        env={"HF_DETR_REGISTER": "0", "HF_HUB_OFFLINE": "1", "PATH": ""},
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
    )
    assert result.returncode == 0, result.stderr


NESTED = {
    "default": None,
    "values": {"model_type": "detr", "encoder_layers": 2},
    "fields that only transformers has": {"model_type": "detr", "encoder_layerdrop": 0.1},
}


@pytest.mark.parametrize("decoder_config", NESTED.values(), ids=list(NESTED))
def test_configurations_inside_other_models_are_theirs(
    decoder_config: dict | None, tmp_path: Path
) -> None:
    """MaskFormer's decoder keeps the configuration that it has without hf_detr."""
    values = dict(decoder_config or {})
    values.pop("model_type", None)
    expected = transformers.DetrConfig(**values).to_dict()
    config = MaskFormerConfig(decoder_config=decoder_config)
    config.save_pretrained(tmp_path)
    for one in (config, AutoConfig.from_pretrained(tmp_path)):
        assert type(one.decoder_config) is transformers.DetrConfig
        assert one.decoder_config.to_dict() == {**expected, **values}


def with_nan(folder: Path) -> None:
    """Make a weight NaN."""
    tensors = load_file(folder / "model.safetensors")
    next(tensor for name, tensor in tensors.items() if "encoder.layers" in name).fill_(torch.nan)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


def pickled(folder: Path) -> None:
    """Replace the weights by a pickle."""
    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()


def outside(folder: Path) -> None:
    """Replace the weights by an index that names a file outside the folder."""
    file = folder.parent / f"{folder.name}.safetensors"
    (folder / "model.safetensors").rename(file)
    index = {"metadata": {}, "weight_map": dict.fromkeys(load_file(file), f"../{file.name}")}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


@pytest.mark.parametrize("damage", [with_nan, pickled, outside])
@pytest.mark.parametrize("task", ["object-detection", "image-feature-extraction"])
def test_a_refusal_ends_the_pipeline(
    folder: Path, damage: Callable[[Path], None], task: str
) -> None:
    """transformers' own class isn't tried on files that ours refuses."""
    damage(folder)
    with pytest.raises((OSError, ValueError)) as refusal:
        AutoModelForObjectDetection.from_pretrained(folder)
    with pytest.raises(ModelLoadingError, match=re.escape(str(refusal.value)[:30])) as ended:
        pipeline(task, model=str(folder))
    assert type(ended.value.__cause__) is type(refusal.value)


def test_pipelines_of_other_models_try_on(tmp_path: Path) -> None:
    """Models that aren't ours are loaded by their architecture where the Auto class fails."""
    config = transformers.ViTConfig(
        hidden_size=8, num_hidden_layers=1, num_attention_heads=1, intermediate_size=8
    )
    transformers.ViTForImageClassification(config).save_pretrained(tmp_path)
    transformers.ViTImageProcessor().save_pretrained(tmp_path)
    loaded = pipeline("object-detection", model=str(tmp_path)).model
    assert type(loaded) is transformers.ViTForImageClassification


@pytest.fixture
def patched(monkeypatch: pytest.MonkeyPatch) -> None:
    """`patch_transformers()` for one test."""
    for name in hf_detr.__all__:
        if hasattr(transformers, name):
            monkeypatch.setattr(transformers, name, getattr(transformers, name))
    hf_detr.patch_transformers()


@pytest.mark.parametrize("variant", IN_TRANSFORMERS)
@pytest.mark.usefixtures("patched")
def test_names_of_transformers_can_be_ours(variant: str) -> None:
    """After `patch_transformers()`, imports from transformers give our classes."""
    for kind in ("Config", "Model", "ForObjectDetection", "ImageProcessor"):
        name = class_of(variant, kind).__name__
        assert getattr(importlib.import_module("transformers"), name) is getattr(hf_detr, name)
    assert not hasattr(transformers, "DeformableDetrForSegmentation")
    assert type(MaskFormerConfig().decoder_config).__module__.startswith("transformers.")
