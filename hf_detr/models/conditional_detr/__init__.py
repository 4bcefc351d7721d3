"""Conditional DETR (arXiv 2108.06152)."""
