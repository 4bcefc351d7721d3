"""DETR, Conditional and Deformable DETR, DINO and Table Transformer, as Hugging Face-style models.

`import hf_detr` makes the Auto classes and pipelines of transformers use these classes for the
model types they cover; `HF_DETR_REGISTER=0` in the environment leaves transformers alone.
"""

import os
from typing import TYPE_CHECKING, Any

from .checkpoints.model_card import CardResults, make_model_card
from .checkpoints.official_checkpoints import (
    convert_official_checkpoint,
    export_official_checkpoint,
)
from .checkpoints.published_checkpoints import find_published_checkpoint, make_published_card
from .checkpoints.publishing import push_to_hub
from .data.augmentation import make_evaluation_transform, make_training_transform
from .data.batches import DetectionCollator, PackingCollator, SizeGroupedBatches
from .data.coco import read_coco, read_coco_panoptic
from .data.dataset import DetectionDataset
from .data.formats import DataArguments, read_data, read_splits
from .data.hub import read_hf_dataset, read_hf_segmentation
from .data.open_images import read_open_images
from .data.streamed import StreamedDataset
from .data.torch_data import read_torch_dataset
from .data.voc import read_voc
from .data.webdataset import read_webdataset
from .data.yolo import read_yolo
from .evaluation.coco_evaluator import CocoEvaluator, metrics_table
from .evaluation.evaluate import evaluate, evaluate_panoptic
from .evaluation.panoptic_quality import PanopticQuality
from .evaluation.trainer_metrics import keep_detections, make_compute_metrics
from .inference.drawing import draw_predictions
from .inference.model_loading import embedded_model_folder
from .inference.pipelines import DetectionPipeline, SegmentationPipeline
from .inference.prediction import predict, stream_predictions
from .inference.registration import (
    ModelLoadingError,
    patch_transformers,
    register_with_transformers,
)
from .inference.tracking import ObjectTracker
from .inference.uncertainty import uncertainty
from .models.conditional_detr.configuration_conditional_detr import ConditionalDetrConfig
from .models.conditional_detr.image_processing_conditional_detr import ConditionalDetrImageProcessor
from .models.conditional_detr.modeling_conditional_detr import (
    ConditionalDetrForObjectDetection,
    ConditionalDetrForSegmentation,
    ConditionalDetrModel,
)
from .models.deformable_detr.configuration_deformable_detr import DeformableDetrConfig
from .models.deformable_detr.image_processing_deformable_detr import DeformableDetrImageProcessor
from .models.deformable_detr.modeling_deformable_detr import (
    DeformableDetrForObjectDetection,
    DeformableDetrForSegmentation,
    DeformableDetrModel,
)
from .models.detr.configuration_detr import DetrConfig
from .models.detr.image_processing_detr import DetrImageProcessor
from .models.detr.modeling_detr import DetrForObjectDetection, DetrForSegmentation, DetrModel
from .models.dino.configuration_dino import DinoDetrConfig
from .models.dino.image_processing_dino import DinoDetrImageProcessor
from .models.dino.modeling_dino import (
    DinoDetrForObjectDetection,
    DinoDetrForSegmentation,
    DinoDetrModel,
)
from .models.table_transformer.configuration_table_transformer import TableTransformerConfig
from .models.table_transformer.modeling_table_transformer import (
    TableTransformerForObjectDetection,
    TableTransformerModel,
)
from .ops.kernel_loader import kernel_status
from .ops.multi_scale_deformable_attention import multi_scale_deformable_attention
from .ops.speed_up import speed_up

if TYPE_CHECKING:
    from .training.train import TrainingResult, train

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
    "DinoDetrConfig",
    "DinoDetrForObjectDetection",
    "DinoDetrForSegmentation",
    "DinoDetrImageProcessor",
    "DinoDetrModel",
    "ObjectTracker",
    "PackingCollator",
    "PanopticQuality",
    "SegmentationPipeline",
    "DetrModel",
    "SizeGroupedBatches",
    "StreamedDataset",
    "TableTransformerConfig",
    "TableTransformerForObjectDetection",
    "TableTransformerModel",
    "TrainingResult",
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
    "ModelLoadingError",
    "multi_scale_deformable_attention",
    "patch_transformers",
    "predict",
    "push_to_hub",
    "read_coco",
    "read_coco_panoptic",
    "read_data",
    "read_hf_dataset",
    "read_hf_segmentation",
    "read_splits",
    "read_torch_dataset",
    "read_open_images",
    "read_voc",
    "read_webdataset",
    "read_yolo",
    "speed_up",
    "stream_predictions",
    "train",
    "uncertainty",
]


def __getattr__(name: str) -> Any:
    # Not at once: training needs packages that prediction doesn't.
    if name in ("TrainingResult", "train"):
        from .training.train import TrainingResult, train

        return {"TrainingResult": TrainingResult, "train": train}[name]
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


if os.environ.get("HF_DETR_REGISTER", "1") != "0":
    register_with_transformers()
