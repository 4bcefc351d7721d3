"""The formats that data sets come in; each reader returns a `DetectionDataset`."""

from .coco_data import read_coco

__all__ = ["read_coco"]
