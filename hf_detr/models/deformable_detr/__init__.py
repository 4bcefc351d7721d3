"""Deformable DETR (arXiv 2010.04159)."""
