"""DETR, Conditional DETR and Deformable DETR as one Hugging Face-style package.

`import hf_detr` makes the Auto classes and pipelines of transformers use these classes for the
model types they cover; `HF_DETR_REGISTER=0` in the environment leaves transformers alone.
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
from .coco_data import read_coco, read_coco_panoptic
from .coco_evaluator import CocoEvaluator, metrics_table
from .configuration_detr import ConditionalDetrConfig, DeformableDetrConfig, DetrConfig
from .data_formats import DataArguments
from .detection_data import DetectionDataset
from .drawing import draw_predictions
from .evaluation import evaluate, evaluate_panoptic
from .hub_data import read_hf_dataset, read_hf_segmentation
from .image_processing_detr import DetrImageProcessor
from .image_processing_sigmoid_detr import (
    ConditionalDetrImageProcessor,
    DeformableDetrImageProcessor,
)
from .kernel_loader import kernel_status
from .model_card import CardResults, make_model_card
from .model_loading import embedded_model_folder
from .modeling_conditional_detr import ConditionalDetrForObjectDetection, ConditionalDetrModel
from .modeling_deformable_detr import DeformableDetrForObjectDetection, DeformableDetrModel
from .modeling_detr import DetrForObjectDetection, DetrModel
from .modeling_detr_segmentation import (
    ConditionalDetrForSegmentation,
    DeformableDetrForSegmentation,
    DetrForSegmentation,
)
from .multi_scale_deformable_attention import multi_scale_deformable_attention
from .official_checkpoints import convert_official_checkpoint, export_official_checkpoint
from .panoptic_quality import PanopticQuality
from .pipelines import DetectionPipeline, SegmentationPipeline
from .prediction import predict, stream_predictions
from .published_checkpoints import find_published_checkpoint, make_published_card
from .publishing import push_to_hub
from .trainer_metrics import keep_detections, make_compute_metrics
from .voc_data import read_voc
from .yolo_data import read_yolo

__version__ = "0.1.0"

__all__ = [
    "CardResults",
    "CocoEvaluator",
    "ConditionalDetrConfig",
    "ConditionalDetrForObjectDetection",
    "ConditionalDetrForSegmentation",
    "ConditionalDetrImageProcessor",
    "ConditionalDetrModel",
    "DataArguments",
    "DeformableDetrConfig",
    "DeformableDetrForObjectDetection",
    "DeformableDetrForSegmentation",
    "DeformableDetrImageProcessor",
    "DeformableDetrModel",
    "DetectionCollator",
    "DetectionDataset",
    "DetectionPipeline",
    "DetrConfig",
    "DetrForObjectDetection",
    "DetrForSegmentation",
    "DetrImageProcessor",
    "PanopticQuality",
    "SegmentationPipeline",
    "DetrModel",
    "SizeGroupedBatches",
    "convert_official_checkpoint",
    "draw_predictions",
    "embedded_model_folder",
    "evaluate",
    "evaluate_panoptic",
    "export_official_checkpoint",
    "find_published_checkpoint",
    "keep_detections",
    "kernel_status",
    "make_compute_metrics",
    "make_evaluation_transform",
    "make_model_card",
    "make_published_card",
    "make_training_transform",
    "metrics_table",
    "multi_scale_deformable_attention",
    "predict",
    "push_to_hub",
    "read_coco",
    "read_coco_panoptic",
    "read_hf_dataset",
    "read_hf_segmentation",
    "read_voc",
    "read_yolo",
    "stream_predictions",
]


def _register() -> None:
    """Put our classes in the place of transformers' for the same model types."""
    for config, model, detector, segmenter, processor in (
        (DetrConfig, DetrModel, DetrForObjectDetection, DetrForSegmentation, DetrImageProcessor),
        (
            ConditionalDetrConfig,
            ConditionalDetrModel,
            ConditionalDetrForObjectDetection,
            ConditionalDetrForSegmentation,
            ConditionalDetrImageProcessor,
        ),
        (
            DeformableDetrConfig,
            DeformableDetrModel,
            DeformableDetrForObjectDetection,
            DeformableDetrForSegmentation,
            DeformableDetrImageProcessor,
        ),
    ):
        AutoConfig.register(config.model_type, config, exist_ok=True)
        AutoModel.register(config, model, exist_ok=True)
        AutoModelForObjectDetection.register(config, detector, exist_ok=True)
        AutoModelForImageSegmentation.register(config, segmenter, exist_ok=True)
        # One class for both names: a file or a user that asks for "pil" gets it too.
        processors = {"torchvision": processor, "pil": processor}
        AutoImageProcessor.register(config, image_processor_classes=processors, exist_ok=True)
    tasks = PIPELINE_REGISTRY.supported_tasks
    tasks["object-detection"]["impl"] = DetectionPipeline
    tasks["image-segmentation"]["impl"] = SegmentationPipeline


if os.environ.get("HF_DETR_REGISTER", "1") != "0":
    _register()
