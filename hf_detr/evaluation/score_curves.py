"""How precision, recall and F1 of a class depend on the score threshold, and the best threshold."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

LOGITS = np.linspace(-7, 7, 281)
SCORES = 1 / (1 + np.exp(-LOGITS))  # thresholds of the curves, from 0.001 to 0.999
SMOOTHING = 0.25  # standard deviation, in logits, of the Gaussian that smooths F1
ADDED_OBJECTS = 10  # that have the scores of all classes
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

    def best_threshold(self, of_all: "ScoreCurve | None" = None) -> float | None:
        """Return the threshold of the best F1, of `SCORES`; None if no object is found at any.

        The best F1 of few objects is largely chance. Therefore a few objects are added that have
        the scores of all classes, and F1 is smoothed, over logits, because models differ in the
        range of their scores. Of equal ones, that nearest to 0.5 is taken.

        Args:
            of_all: the curve of all classes together; None adds nothing.
        """
        if not self.counts(SCORES[0])[0]:
            return None
        f1 = self.f1() if of_all is None else self._f1_with(of_all)
        step = LOGITS[1] - LOGITS[0]
        reach = round(4 * SMOOTHING / step)
        weights = np.exp(-0.5 * (np.arange(-reach, reach + 1) * step / SMOOTHING) ** 2)
        padded = np.pad(f1, reach, mode="edge")
        smooth = np.convolve(padded, weights / weights.sum(), mode="valid")
        best = np.flatnonzero(smooth > smooth.max() - TIE)
        return round(float(SCORES[best[np.abs(LOGITS[best]).argmin()]]), 3)

    def _f1_with(self, of_all: "ScoreCurve") -> np.ndarray:
        share = ADDED_OBJECTS / max(of_all.num_objects, 1)
        pairs = zip(self.counts(SCORES), of_all.counts(SCORES), strict=True)
        true, every = (own + share * all_ for own, all_ in pairs)
        return 2 * true / (every + self.num_objects + ADDED_OBJECTS)


def joined_curve(curves: Sequence[ScoreCurve]) -> ScoreCurve:
    """Return the curve of several classes together."""
    return ScoreCurve(
        np.sort(np.concatenate([curve.true_scores for curve in curves])),
        np.sort(np.concatenate([curve.scores for curve in curves])),
        sum(curve.num_objects for curve in curves),
    )
