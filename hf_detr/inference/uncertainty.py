"""How uncertain a model is about an image, to choose those that are most worth labelling."""

from collections.abc import Mapping
from typing import Any

from torch import Tensor

# Most queries find nothing, and the sum of their low scores would say little.
LOWEST_SCORE = 0.1


def uncertainty(result: Mapping[str, Any]) -> float:
    """Return the sum of p (1 - p) over an image's detections with score p.

    If scores were probabilities, this would be the variance of the number of objects. Scores near
    0.5 count most, and those below 0.1 not at all.

    Args:
        result: of `predict` for the image, with a threshold of at most 0.1, because objects that
            the model nearly found count too.
    """
    scores: Tensor = result["scores"]
    scores = scores[scores > LOWEST_SCORE].double()
    return float((scores * (1 - scores)).sum())
