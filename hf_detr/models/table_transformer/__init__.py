"""Table Transformer (arXiv 2110.00061)."""
