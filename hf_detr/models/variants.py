"""The table of variants: a new one is its folder and one row here.

Registration with the Auto classes, loading, conversion of official checkpoints and model cards read
this table; no other module lists variants.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

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
from .dino.configuration_dino import DinoDetrConfig
from .dino.image_processing_dino import DinoDetrImageProcessor
from .dino.modeling_dino import (
    DinoDetrForObjectDetection,
    DinoDetrForSegmentation,
    DinoDetrModel,
)
from .dino.official_options import OFFICIAL_BACKBONES, official_options
from .object_detector import ObjectDetector
from .segmentation import Segmenter
from .table_transformer.configuration_table_transformer import TableTransformerConfig
from .table_transformer.modeling_table_transformer import (
    TableTransformerForObjectDetection,
    TableTransformerModel,
)


@dataclass(frozen=True)
class Recipe:
    """How a paper trains its model.

    Training divides the learning rate by 10 after 80 % of the epochs, as all papers do but two:
    Table Transformer's multiplies it by 0.9 after each epoch, and DINO's divides it after the 11th
    of 12.

    Attributes:
        lr, epochs, batch_size, backbone: the paper's.
        class_factor: measured, of the learning rate for class heads, if classes are new to a
            trained model and data are small.
    """

    lr: float
    epochs: int
    batch_size: int
    backbone: str = "resnet50.tv_in1k"
    class_factor: float = 10.0


@dataclass(frozen=True)
class Variant:
    """The classes of one variant, its training, and how its official code names weights.

    Attributes:
        config, model, detector, segmenter, image_processor: its classes; segmenter is None if it
            has no mask head.
        recipe: its paper's training.
        official_marks: weights of the transformer that its official checkpoints have; the variant
            with the most marks in a file is the file's.
        official_names: (pattern, replacement) from names on the Hub to official names, applied
            after those that all variants share.
        official_options: from a configuration to options of its official code that others lack.
        official_backbones: timm's names of what its official code has besides torchvision's
            ResNets, and their names there.
        official_masks: whether its official code has a mask head.
        official_repeats_heads: whether its official code names heads once per layer, also if all
            layers share them, of the detector and of the decoder.
        official_is_bare: whether its official code reads files of weights alone, without options.
        only_here: why transformers can't load or run the models, if so.
        segmenter_only_here: the same for the segmenter alone.
        preprocessing: settings of its image processor that differ from the class's own.
        on_the_hub: names of trained models, to try.
    """

    config: type[DetectionConfig]
    model: type[DetectionTransformer]
    detector: type[ObjectDetector]
    segmenter: type[Segmenter] | None
    image_processor: type[DetectionImageProcessor]
    recipe: Recipe
    official_marks: tuple[str, ...]
    official_names: tuple[tuple[str, str], ...]
    official_options: Callable[[Any], dict[str, Any]] = lambda config: {}
    official_backbones: Mapping[str, str] = field(default_factory=dict)
    official_masks: bool = False
    official_repeats_heads: bool = False
    official_is_bare: bool = False
    only_here: str = ""
    segmenter_only_here: str = ""
    preprocessing: dict[str, Any] = field(default_factory=dict)
    on_the_hub: tuple[str, ...] = ()


DETR_MARK = "decoder.layers.0.multihead_attn.in_proj_weight"
DETR_NAMES = (
    (r"(\.decoder\.layers\.\d+\.)self_attn_layer_norm\.", r"\1norm1."),
    (r"(\.decoder\.layers\.\d+\.)encoder_attn_layer_norm\.", r"\1norm2."),
    (r"\.encoder_attn\.", ".multihead_attn."),
)
SAMPLED_NAMES = (
    # The official code numbers its norms in another order than it uses them.
    (r"(\.decoder\.layers\.\d+\.)self_attn_layer_norm\.", r"\1norm2."),
    (r"(\.decoder\.layers\.\d+\.)encoder_attn_layer_norm\.", r"\1norm1."),
    (r"\.encoder_attn\.", ".cross_attn."),
)
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
            official_marks=(DETR_MARK,),
            official_names=DETR_NAMES,
            official_masks=True,
            on_the_hub=("facebook/detr-resnet-50", "facebook/detr-resnet-50-panoptic"),
        ),
        Variant(
            ConditionalDetrConfig,
            ConditionalDetrModel,
            ConditionalDetrForObjectDetection,
            ConditionalDetrForSegmentation,
            ConditionalDetrImageProcessor,
            Recipe(lr=1e-4, epochs=50, batch_size=32, class_factor=30.0),
            official_marks=("decoder.ref_point_head.layers.0.weight",),
            official_names=(
                (r"(\.decoder\.layers\.\d+\.)self_attn_layer_norm\.", r"\1norm1."),
                (r"(\.decoder\.layers\.\d+\.)encoder_attn_layer_norm\.", r"\1norm2."),
                (r"\.encoder_attn\.", ".cross_attn."),
            ),
            segmenter_only_here=(
                "transformers' class of this name ignores the reference points in the boxes and "
                "scores by softmax instead of sigmoid."
            ),
            on_the_hub=("microsoft/conditional-detr-resnet-50",),
        ),
        Variant(
            DeformableDetrConfig,
            DeformableDetrModel,
            DeformableDetrForObjectDetection,
            DeformableDetrForSegmentation,
            DeformableDetrImageProcessor,
            Recipe(lr=2e-4, epochs=50, batch_size=32),
            official_marks=("level_embed",),
            official_names=SAMPLED_NAMES,
            segmenter_only_here="transformers doesn't have this model.",
            on_the_hub=("SenseTime/deformable-detr",),
        ),
        Variant(
            TableTransformerConfig,
            TableTransformerModel,
            TableTransformerForObjectDetection,
            None,
            DetrImageProcessor,  # as in transformers, which has no other class for it
            # https://github.com/microsoft/table-transformer, src/detection_config.json
            Recipe(lr=5e-5, epochs=20, batch_size=2, backbone="resnet18.tv_in1k"),
            official_marks=(
                DETR_MARK,
                "encoder.norm.weight",
            ),
            official_names=DETR_NAMES,
            official_is_bare=True,
            preprocessing={"size": {"shortest_edge": 800, "longest_edge": 800}},
            on_the_hub=("microsoft/table-transformer-detection",),
        ),
        Variant(
            DinoDetrConfig,
            DinoDetrModel,
            DinoDetrForObjectDetection,
            DinoDetrForSegmentation,
            DinoDetrImageProcessor,
            Recipe(lr=1e-4, epochs=12, batch_size=16),
            official_marks=("level_embed", "tgt_embed.weight", "enc_out_class_embed.weight"),
            official_names=(
                *SAMPLED_NAMES,
                (r"^transformer\.decoder\.bbox_embed\.", "bbox_embed."),
                (r"^(class|bbox)_embed\.(?!\d)", r"\1_embed.0."),  # one head for all layers
                (r"^transformer\.query_contents\.", "transformer.tgt_embed."),
                (r"^transformer\.denoising\.label_embeddings\.", "label_enc."),
                (r"\.proposals\.(class|bbox)_embed\.", r".enc_out_\1_embed."),
                (r"\.proposals\.", "."),
            ),
            official_options=official_options,
            official_backbones=OFFICIAL_BACKBONES,
            official_repeats_heads=True,
            only_here="transformers doesn't have this model.",
        ),
    )
}


def check_has_masks(model_type: str, name: str) -> None:
    """Check that there is a segmentation model of a type.

    Args:
        model_type: of the configuration; types of other libraries pass.
        name: of the model, for the message.

    Raises:
        ValueError: if there is none.
    """
    if model_type in VARIANTS and VARIANTS[model_type].segmenter is None:
        others = [one for one, variant in VARIANTS.items() if variant.segmenter is not None]
        raise ValueError(
            f"{name} is a {model_type} model, of which there is none with a mask head; expected a "
            f"model of the types {', '.join(others)}."
        )
