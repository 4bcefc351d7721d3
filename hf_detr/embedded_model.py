"""The small detector that comes with the package, so that there is something to try offline.

A Deformable DETR of 3.7 million parameters that finds ten kinds of garments. Its card, how it was
trained and how good it is, is `model_cards/deformable-detr-garments.md` in the repository.
"""

from pathlib import Path


def embedded_model_folder() -> Path:
    """The folder of the model and its image processor, for `from_pretrained` and `pipeline`."""
    return Path(__file__).parent / "garments"
