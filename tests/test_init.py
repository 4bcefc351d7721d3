"""`import hf_detr`: its public names."""

import hf_detr


def test_public_names() -> None:
    """`__all__` is what exists."""
    assert all(hasattr(hf_detr, name) for name in hf_detr.__all__)
