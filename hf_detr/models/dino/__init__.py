"""DINO (arXiv 2203.03605)."""
