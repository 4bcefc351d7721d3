"""Protects the learning rate of every step."""

import pytest

from hf_detr.learning_rate import learning_rate_factor


def test_the_papers_schedule() -> None:
    """Protects the drop to a tenth after 80 % of the steps: epoch 40 of 50, 400 of 500."""
    factors = [learning_rate_factor(step, 50) for step in range(50)]
    assert factors == [1.0] * 40 + [0.1] * 10


def test_cosine_falls_to_zero() -> None:
    """Protects the cosine's course by hand: whole, half and (nearly) nothing."""
    factors = [learning_rate_factor(step, 100, "cosine") for step in range(101)]
    assert factors[0] == 1 and factors[50] == pytest.approx(0.5) and factors[100] == 0
    assert factors == sorted(factors, reverse=True)


@pytest.mark.parametrize("schedule", ["step", "cosine"])
def test_warm_up_rises_linearly(schedule: str) -> None:
    """Protects the first steps: never 0, and in equal steps up to the whole rate."""
    factors = [learning_rate_factor(step, 100, schedule, warmup_steps=4) for step in range(5)]
    assert factors == pytest.approx([0.2, 0.4, 0.6, 0.8, 1.0])


def test_unknown_schedule() -> None:
    """Protects against a misspelt schedule."""
    with pytest.raises(ValueError, match="'cosin'.*'step' or 'cosine'"):
        learning_rate_factor(0, 10, "cosin")
