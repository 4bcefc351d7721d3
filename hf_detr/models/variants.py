"""The table of variants: a new one is its folder and one row here.

Registration with the Auto classes, loading, conversion of official checkpoints and model cards read
this table; no other module lists variants.
"""

from dataclasses import dataclass

from ..image_processing.image_processor import DetectionImageProcessor
from .conditional_detr.configuration_conditional_detr import ConditionalDetrConfig
from .conditional_detr.image_processing_conditional_detr import ConditionalDetrImageProcessor
from .conditional_detr.modeling_conditional_detr import (
    ConditionalDetrForObjectDetection,
    ConditionalDetrForSegmentation,
    ConditionalDetrModel,
)
from .configuration import DetectionConfig
from .deformable_detr.configuration_deformable_detr import DeformableDetrConfig
from .deformable_detr.image_processing_deformable_detr import DeformableDetrImageProcessor
from .deformable_detr.modeling_deformable_detr import (
    DeformableDetrForObjectDetection,
    DeformableDetrForSegmentation,
    DeformableDetrModel,
)
from .detection_transformer import DetectionTransformer
from .detr.configuration_detr import DetrConfig
from .detr.image_processing_detr import DetrImageProcessor
from .detr.modeling_detr import DetrForObjectDetection, DetrForSegmentation, DetrModel
from .object_detector import ObjectDetector
from .segmentation import Segmenter


@dataclass(frozen=True)
class Recipe:
    """How a paper trains its model; all divide the learning rate by 10 after 80 % of the epochs."""

    lr: float
    epochs: int
    batch_size: int


@dataclass(frozen=True)
class Variant:
    """The classes of one variant, its training, and how its official code names weights.

    Attributes:
        config, model, detector, segmenter, image_processor: its classes.
        recipe: its paper's training.
        official_mark: a weight of the transformer that only its official checkpoints have.
        official_names: (pattern, replacement) from names on the Hub to official names, applied
            after those that all variants share.
        official_masks: whether its official code has a mask head.
        segmenter_only_here: why transformers can't load or run the segmenter correctly, if so.
    """

    config: type[DetectionConfig]
    model: type[DetectionTransformer]
    detector: type[ObjectDetector]
    segmenter: type[Segmenter]
    image_processor: type[DetectionImageProcessor]
    recipe: Recipe
    official_mark: str
    official_names: tuple[tuple[str, str], ...]
    official_masks: bool = False
    segmenter_only_here: str = ""


VARIANTS: dict[str, Variant] = {
    variant.config.model_type: variant
    for variant in (
        Variant(
            DetrConfig,
            DetrModel,
            DetrForObjectDetection,
            DetrForSegmentation,
            DetrImageProcessor,
            Recipe(lr=1e-4, epochs=500, batch_size=64),
            official_mark="decoder.layers.0.multihead_attn.in_proj_weight",
            official_names=(
                (r"(\.decoder\.layers\.\d+\.)self_attn_layer_norm\.", r"\1norm1."),
                (r"(\.decoder\.layers\.\d+\.)encoder_attn_layer_norm\.", r"\1norm2."),
                (r"\.encoder_attn\.", ".multihead_attn."),
            ),
            official_masks=True,
        ),
        Variant(
            ConditionalDetrConfig,
            ConditionalDetrModel,
            ConditionalDetrForObjectDetection,
            ConditionalDetrForSegmentation,
            ConditionalDetrImageProcessor,
            Recipe(lr=1e-4, epochs=50, batch_size=32),
            official_mark="decoder.ref_point_head.layers.0.weight",
            official_names=(
                (r"(\.decoder\.layers\.\d+\.)self_attn_layer_norm\.", r"\1norm1."),
                (r"(\.decoder\.layers\.\d+\.)encoder_attn_layer_norm\.", r"\1norm2."),
                (r"\.encoder_attn\.", ".cross_attn."),
            ),
            segmenter_only_here=(
                "transformers' class of this name ignores the reference points in the boxes and "
                "scores by softmax instead of sigmoid."
            ),
        ),
        Variant(
            DeformableDetrConfig,
            DeformableDetrModel,
            DeformableDetrForObjectDetection,
            DeformableDetrForSegmentation,
            DeformableDetrImageProcessor,
            Recipe(lr=2e-4, epochs=50, batch_size=32),
            official_mark="level_embed",
            official_names=(
                # The official code numbers its norms in another order than it uses them.
                (r"(\.decoder\.layers\.\d+\.)self_attn_layer_norm\.", r"\1norm2."),
                (r"(\.decoder\.layers\.\d+\.)encoder_attn_layer_norm\.", r"\1norm1."),
                (r"\.encoder_attn\.", ".cross_attn."),
            ),
            segmenter_only_here="transformers doesn't have this model.",
        ),
    )
}
