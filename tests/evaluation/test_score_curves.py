"""The best threshold of a class, from known scores."""

import numpy as np
import pytest

from hf_detr.evaluation.score_curves import ScoreCurve, joined_curve


def curve_of(true: list[float], false: list[float], num_objects: int) -> ScoreCurve:
    return ScoreCurve(np.sort(true), np.sort([*true, *false]), num_objects)


@pytest.mark.parametrize(
    ("true", "false", "expected"),
    [
        ([0.9, 0.9], [0.1], 0.5),
        ([0.99, 0.99], [0.01], 0.5),  # the nearest to the default
        ([0.99, 0.99], [], 0.5),
        ([0.8], [0.6, 0.6], 0.708),  # the middle, in logits
        ([0.03] * 5, [0.01] * 20, 0.0174),  # models with small scores
    ],
)
def test_threshold_separates_true_from_false(
    true: list[float], false: list[float], expected: float
) -> None:
    """The threshold is between the scores, not close to any."""
    curve = curve_of(true, false, len(true))
    threshold = curve.best_threshold()
    assert threshold == pytest.approx(expected, rel=0.1)
    assert curve.counts(threshold) == (len(true), len(true))
    assert curve.f1(threshold) == 1


def test_one_detection_does_not_move_the_threshold() -> None:
    """The peak that one false detection makes beside a broad maximum isn't chosen."""
    generator = np.random.default_rng(0)
    true, false = generator.beta(6, 2, 200).tolist(), generator.beta(1, 6, 600).tolist()
    before = curve_of(true, false, 220).best_threshold()
    for score in (0.3, 0.6, 0.9):
        after = curve_of(true, [*false, score], 220).best_threshold()
        assert after == pytest.approx(before, abs=0.02)


def test_threshold_is_less_noisy_than_the_best_of_a_sample() -> None:
    """From 30 objects, F1 on new data is higher than with the maximum of the raw curve."""

    def draw(number: int, seed: int) -> ScoreCurve:
        generator = np.random.default_rng(seed)
        true = generator.beta(6, 2, generator.binomial(number, 0.85))
        return curve_of(true.tolist(), generator.beta(1, 6, 5 * number).tolist(), number)

    everything, smooth, raw = draw(100_000, 0), [], []
    for seed in range(1, 31):
        curve = draw(30, seed)
        smooth.append(float(everything.f1(curve.best_threshold())))
        raw.append(float(everything.f1(curve.scores[curve.f1(curve.scores - 1e-9).argmax()])))
    assert np.mean(smooth) > np.mean(raw)
    assert np.mean(smooth) > everything.f1().max() - 0.01


def test_nothing_found_has_no_threshold() -> None:
    """Neither a class without objects nor one of which none is found has a best F1."""
    assert curve_of([], [0.9, 0.3], 0).best_threshold() is None
    assert curve_of([], [0.9, 0.3], 4).best_threshold() is None
    assert curve_of([], [], 0).f1(0.5) == 0


def test_few_objects_follow_all_classes() -> None:
    """One object doesn't make a threshold that all others speak against; many do."""
    others = curve_of([0.9] * 100, [0.4] * 100, 100)
    for number, is_high in ((1, True), (300, False)):
        own = curve_of([0.2] * number, [0.02] * number, number)
        together = own.best_threshold(joined_curve([own, others]))
        assert (together > 0.4) == is_high
    assert curve_of([], [0.3], 2).best_threshold(others) is None


def test_scores_below_all_thresholds_have_none() -> None:
    """An object that is found below the lowest threshold of the curve isn't found at any."""
    others = curve_of([0.9] * 100, [0.4] * 100, 100)
    for of_all in (None, others):
        assert curve_of([1e-9], [1e-9], 1).best_threshold(of_all) is None
