"""Means of precision and recall: the summaries of COCO and LVIS."""

from collections.abc import Sequence

import numpy as np

from .lvis_fields import FREQUENCIES

AREAS = ("all", "small", "medium", "large")


def summarize(
    precision: np.ndarray,
    recall: np.ndarray,
    max_detections: Sequence[int],
    frequencies: Sequence[str] = (),
) -> dict[str, float]:
    """Compute the metrics of COCO's summary, and those of LVIS for the classes of a frequency.

    Args:
        precision: (T, R, K, A, M), T IoU thresholds, R recall thresholds, K classes, A areas, M
            maximum numbers of detections; -1 for a class without objects.
        recall: (T, K, A, M), likewise.
        max_detections: (M,).
        frequencies: (K,) keys of `FREQUENCIES`, or empty.

    Returns:
        AP (with the last maximum) and AR by name, in [0, 1], or -1 without objects.
    """
    parts = {
        "AP": precision[:, :, :, 0, -1],
        "AP50": precision[0, :, :, 0, -1],
        "AP75": precision[5, :, :, 0, -1],
        **{f"AP_{area}": precision[:, :, :, a, -1] for a, area in enumerate(AREAS) if a},
    }
    if frequencies:
        of_class = np.array(list(frequencies))
        for key, name in FREQUENCIES.items():
            parts[f"AP_{name}"] = precision[:, :, of_class == key, 0, -1]
    parts |= {f"AR_{number}": recall[:, :, 0, m] for m, number in enumerate(max_detections)}
    parts |= {f"AR_{area}": recall[:, :, a, -1] for a, area in enumerate(AREAS) if a}
    # -1 means that there are no objects.
    valid = {name: part[part > -1] for name, part in parts.items()}
    return {name: float(part.mean()) if part.size else -1.0 for name, part in valid.items()}
