"""DETR, Conditional DETR and Deformable DETR as one Hugging Face-style package.

`import hf_detr` makes the Auto classes and `pipeline("object-detection")` of transformers use
these classes for the model types they cover; `HF_DETR_REGISTER=0` in the environment leaves
transformers alone.
"""

import os

from transformers import (
    AutoConfig,
    AutoImageProcessor,
    AutoModel,
    AutoModelForImageSegmentation,
    AutoModelForObjectDetection,
)
from transformers.pipelines import PIPELINE_REGISTRY

from .augmentation import make_evaluation_transform, make_training_transform
from .batches import DetectionCollator, SizeGroupedBatches
from .coco_evaluator import CocoEvaluator, metrics_table
from .compiled_attention import kernel_status
from .configuration_detr import ConditionalDetrConfig, DeformableDetrConfig, DetrConfig
from .detection_pipeline import DetectionPipeline
from .evaluation import evaluate, keep_detections, make_compute_metrics
from .image_processing_detr import DetrImageProcessor
from .image_processing_sigmoid_detr import (
    ConditionalDetrImageProcessor,
    DeformableDetrImageProcessor,
)
from .modeling_conditional_detr import ConditionalDetrForObjectDetection, ConditionalDetrModel
from .modeling_deformable_detr import DeformableDetrForObjectDetection, DeformableDetrModel
from .modeling_detr import DetrForObjectDetection, DetrModel
from .modeling_detr_segmentation import DetrForSegmentation
from .multi_scale_deformable_attention import multi_scale_deformable_attention
from .panoptic_quality import PanopticQuality

__version__ = "0.1.0"

__all__ = [
    "CocoEvaluator",
    "ConditionalDetrConfig",
    "ConditionalDetrForObjectDetection",
    "ConditionalDetrImageProcessor",
    "ConditionalDetrModel",
    "DeformableDetrConfig",
    "DeformableDetrForObjectDetection",
    "DeformableDetrImageProcessor",
    "DeformableDetrModel",
    "DetectionCollator",
    "DetectionPipeline",
    "DetrConfig",
    "DetrForObjectDetection",
    "DetrForSegmentation",
    "DetrImageProcessor",
    "PanopticQuality",
    "DetrModel",
    "SizeGroupedBatches",
    "evaluate",
    "keep_detections",
    "kernel_status",
    "make_compute_metrics",
    "make_evaluation_transform",
    "make_training_transform",
    "metrics_table",
    "multi_scale_deformable_attention",
]


def _register() -> None:
    """Put our classes in the place of transformers' for the same model types."""
    for config, model, detector, processor in (
        (DetrConfig, DetrModel, DetrForObjectDetection, DetrImageProcessor),
        (
            ConditionalDetrConfig,
            ConditionalDetrModel,
            ConditionalDetrForObjectDetection,
            ConditionalDetrImageProcessor,
        ),
        (
            DeformableDetrConfig,
            DeformableDetrModel,
            DeformableDetrForObjectDetection,
            DeformableDetrImageProcessor,
        ),
    ):
        AutoConfig.register(config.model_type, config, exist_ok=True)
        AutoModel.register(config, model, exist_ok=True)
        AutoModelForObjectDetection.register(config, detector, exist_ok=True)
        # One class for both names: a file or a user that asks for "pil" gets it too.
        processors = {"torchvision": processor, "pil": processor}
        AutoImageProcessor.register(config, image_processor_classes=processors, exist_ok=True)
    AutoModelForImageSegmentation.register(DetrConfig, DetrForSegmentation, exist_ok=True)
    PIPELINE_REGISTRY.supported_tasks["object-detection"]["impl"] = DetectionPipeline


if os.environ.get("HF_DETR_REGISTER", "1") != "0":
    _register()
