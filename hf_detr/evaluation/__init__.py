"""COCO AP, panoptic quality and metrics for transformers' Trainer."""
