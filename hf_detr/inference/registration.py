"""Makes the Auto classes and pipelines of transformers, and if asked its names, use our classes."""

import sys
from collections.abc import Iterator
from typing import Any

import transformers
from transformers import (
    AutoConfig,
    AutoImageProcessor,
    AutoModel,
    AutoModelForImageSegmentation,
    AutoModelForObjectDetection,
    AutoModelForUniversalSegmentation,
    PreTrainedConfig,
)
from transformers.pipelines import PIPELINE_REGISTRY

from ..models.configuration import DetectionConfig
from ..models.variants import VARIANTS
from .pipelines import DetectionPipeline, SegmentationPipeline

SEGMENTATION = (AutoModelForImageSegmentation, AutoModelForUniversalSegmentation)
AUTO_MODELS = (AutoModel, AutoModelForObjectDetection, *SEGMENTATION)


class ModelLoadingError(Exception):
    """A model that `pipeline()` can't load; its cause is the error of `from_pretrained`.

    It isn't a `ValueError` or `OSError`: after one of these, `pipeline()` would load the same files
    with transformers' class, which checks less.
    """


def register_with_transformers() -> None:
    """Make the Auto classes and pipelines of transformers use the classes of hf_detr."""
    for variant in VARIANTS.values():
        config, processor = variant.config, variant.image_processor
        AutoConfig.register(config.model_type, _outermost_only(config), exist_ok=True)
        AutoModel.register(config, variant.model, exist_ok=True)
        AutoModelForObjectDetection.register(config, variant.detector, exist_ok=True)
        if variant.segmenter is not None:
            for auto_class in SEGMENTATION:
                auto_class.register(config, variant.segmenter, exist_ok=True)
        # One class for both names: a file or a user that asks for "pil" gets it too.
        processors = {"torchvision": processor, "pil": processor}
        AutoImageProcessor.register(config, image_processor_classes=processors, exist_ok=True)
    tasks = PIPELINE_REGISTRY.supported_tasks
    tasks["object-detection"]["impl"] = DetectionPipeline
    tasks["image-segmentation"]["impl"] = SegmentationPipeline
    for task in tasks.values():
        task["pt"] = tuple(
            _without_second_try(auto_class) if auto_class in AUTO_MODELS else auto_class
            for auto_class in task["pt"]
        )


def patch_transformers() -> None:
    """Make `from transformers import DetrForObjectDetection` and the like give hf_detr's classes.

    Call it before such imports: names that were imported earlier keep transformers' classes. Names
    in transformers' own modules, such as `transformers.models.detr`, are unchanged, because other
    models of transformers use them.
    """
    for ours in _public_classes():
        if hasattr(transformers, ours.__name__):
            setattr(transformers, ours.__name__, ours)


def _public_classes() -> Iterator[type]:
    for variant in VARIANTS.values():
        classes = (variant.config, variant.model, variant.detector, variant.segmenter)
        yield from filter(None, (*classes, variant.image_processor))


def _without_second_try(auto_class: type) -> type:
    """An Auto class for `pipeline()`, which ends when a class of hf_detr doesn't load a model."""

    class WithoutSecondTry(auto_class):  # type: ignore[misc, valid-type]
        @classmethod
        def from_pretrained(cls, *args: Any, **kwargs: Any) -> Any:
            try:
                return super().from_pretrained(*args, **kwargs)
            except (OSError, ValueError) as error:
                if not hasattr(error, "ends_pipeline"):
                    raise
                raise ModelLoadingError(str(error)) from error

    WithoutSecondTry.__name__ = auto_class.__name__  # by which transformers saves pipelines
    return WithoutSecondTry


def _outermost_only(config: type[DetectionConfig]) -> type[DetectionConfig]:
    """A class for `AutoConfig` that makes `config`, but transformers' class inside other models.

    MaskFormer, for example, has a DETR configuration for its decoder. It was written for the
    defaults and the checks of transformers' class, and so were its files.
    """
    theirs: type[PreTrainedConfig] | None = getattr(transformers, config.__name__, None)
    if theirs is None:
        return config

    class OutermostOnly(config):  # type: ignore[misc, valid-type]
        def __new__(cls, *args: Any, **kwargs: Any) -> Any:
            # A nested configuration is made by the same call as the one that `for_model` returns.
            is_outermost = sys._getframe(1).f_code is AutoConfig.for_model.__code__
            return (config if is_outermost else theirs)(*args, **kwargs)

        @classmethod
        def from_dict(cls, config_dict: dict[str, Any], **kwargs: Any) -> Any:
            # `AutoConfig.from_pretrained` gives the name; for nested ones there is none.
            is_outermost = "name_or_path" in kwargs
            return (config if is_outermost else theirs).from_dict(config_dict, **kwargs)

        @classmethod
        def from_pretrained(cls, *args: Any, **kwargs: Any) -> Any:
            return config.from_pretrained(*args, **kwargs)

        @classmethod
        def default_config_fields(cls) -> Any:
            return theirs.default_config_fields()

    OutermostOnly.__name__ = config.__name__
    return OutermostOnly
