"""DETR, Conditional DETR and Deformable DETR as one Hugging Face-style package.

`import hf_detr` makes the Auto classes and `pipeline("object-detection")` of transformers use
these classes for the model types they cover; `HF_DETR_REGISTER=0` in the environment leaves
transformers alone.
"""

import os

from transformers import AutoConfig, AutoImageProcessor, AutoModel, AutoModelForObjectDetection
from transformers.pipelines import PIPELINE_REGISTRY

from .configuration_detr import DetrConfig
from .detection_pipeline import DetectionPipeline
from .image_processing_detr import DetrImageProcessor
from .modeling_detr import DetrForObjectDetection, DetrModel

__version__ = "0.1.0"

__all__ = [
    "DetectionPipeline",
    "DetrConfig",
    "DetrForObjectDetection",
    "DetrImageProcessor",
    "DetrModel",
]


def _register() -> None:
    """Put our classes in the place of transformers' for the same model types."""
    AutoConfig.register("detr", DetrConfig, exist_ok=True)
    AutoModel.register(DetrConfig, DetrModel, exist_ok=True)
    AutoModelForObjectDetection.register(DetrConfig, DetrForObjectDetection, exist_ok=True)
    AutoImageProcessor.register(
        DetrConfig,
        # One class for both names: a file or a user that asks for "pil" gets it too.
        image_processor_classes={"torchvision": DetrImageProcessor, "pil": DetrImageProcessor},
        exist_ok=True,
    )
    PIPELINE_REGISTRY.supported_tasks["object-detection"]["impl"] = DetectionPipeline


if os.environ.get("HF_DETR_REGISTER", "1") != "0":
    _register()
