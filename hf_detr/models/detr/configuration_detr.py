"""Configuration of DETR (arXiv 2005.12872)."""

from huggingface_hub.dataclasses import strict

from ..configuration import DetectionConfig


@strict
class DetrConfig(DetectionConfig):
    """Configuration of DETR (arXiv 2005.12872), with the fields of `DetectionConfig`."""

    model_type = "detr"
