"""`import hf_detr`: what it registers with transformers, and what it leaves alone."""

import subprocess
import sys
from pathlib import Path

import transformers
from transformers import AutoConfig, AutoImageProcessor, AutoModel, AutoModelForObjectDetection

import hf_detr

from .tiny import class_of, tiny_detector

REPOSITORY = Path(__file__).parents[1]


def test_auto_classes_resolve_to_ours(variant: str, tmp_path: Path) -> None:
    """A folder of our model types gives our config, model and processor."""
    tiny_detector(variant).save_pretrained(tmp_path)
    class_of(variant, "ImageProcessor")(size={"shortest_edge": 64}).save_pretrained(tmp_path)
    assert type(AutoConfig.from_pretrained(tmp_path)) is class_of(variant, "Config")
    assert type(AutoModel.from_pretrained(tmp_path)) is class_of(variant, "Model")
    detector = AutoModelForObjectDetection.from_pretrained(tmp_path)
    assert type(detector) is class_of(variant, "ForObjectDetection")
    assert type(AutoImageProcessor.from_pretrained(tmp_path)) is class_of(variant, "ImageProcessor")


def test_processor_of_transformers_files_is_ours(variant: str, tmp_path: Path) -> None:
    """A preprocessor_config.json that transformers wrote gives our processor."""
    tiny_detector(variant).save_pretrained(tmp_path)
    class_of(variant, "ImageProcessor", transformers)().save_pretrained(tmp_path)
    assert type(AutoImageProcessor.from_pretrained(tmp_path)) is class_of(variant, "ImageProcessor")


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


def test_public_names() -> None:
    """`__all__` is what exists."""
    assert all(hasattr(hf_detr, name) for name in hf_detr.__all__)
