"""How precision, recall and F1 of a class depend on the score threshold, and the best threshold."""

from dataclasses import dataclass

import numpy as np

LOGITS = np.linspace(-7, 7, 281)
SCORES = 1 / (1 + np.exp(-LOGITS))  # thresholds of the curves, from 0.001 to 0.999
SMOOTHING = 0.25  # standard deviation, in logits, of the Gaussian that smooths F1
TIE = 1e-9


@dataclass(frozen=True)
class ScoreCurve:
    """One class; a detection is true if it is matched with an object at an IoU of 0.5.

    Attributes:
        true_scores: sorted scores of the true detections.
        scores: sorted scores of all.
        num_objects: number of annotated objects, without crowds.
    """

    true_scores: np.ndarray
    scores: np.ndarray
    num_objects: int

    def counts(self, threshold: float | np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return the numbers of true detections and of all with scores above each threshold."""
        return tuple(
            len(values) - np.searchsorted(values, threshold, side="right")
            for values in (self.true_scores, self.scores)
        )

    def f1(self, threshold: float | np.ndarray = SCORES) -> np.ndarray:
        """Return F1 at each threshold; 0 without objects and detections."""
        true, every = self.counts(threshold)
        return 2 * true / np.maximum(every + self.num_objects, 1)

    def best_threshold(self) -> float | None:
        """Return the threshold of the best F1; None if no object is found at any.

        The best F1 of few objects is largely chance. Therefore F1 is smoothed first, over logits,
        because models differ in the range of their scores. Of equal ones, that nearest to 0.5 is
        taken.
        """
        if not len(self.true_scores):
            return None
        step = LOGITS[1] - LOGITS[0]
        reach = round(4 * SMOOTHING / step)
        weights = np.exp(-0.5 * (np.arange(-reach, reach + 1) * step / SMOOTHING) ** 2)
        padded = np.pad(self.f1(), reach, mode="edge")
        smooth = np.convolve(padded, weights / weights.sum(), mode="valid")
        best = np.flatnonzero(smooth > smooth.max() - TIE)
        return round(float(SCORES[best[np.abs(LOGITS[best]).argmin()]]), 3)
