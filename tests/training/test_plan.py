"""Tests the plan of an epoch and the learning rate."""

import pytest

from hf_detr.training.plan import MicroBatch, learning_rate_factor, plan_epoch


def images_of_steps(num_images: int, num_processes: int, **options: int) -> list[list[int]]:
    """The sorted images of each step over all processes."""
    plans = [
        plan_epoch(num_images, num_processes=num_processes, process_index=index, **options)
        for index in range(num_processes)
    ]
    return [
        sorted(i for parts in step for part in parts if part.counts for i in part.indices)
        for step in zip(*plans, strict=True)
    ]


@pytest.mark.parametrize("num_images", [1, 7, 16, 17, 23])
def test_steps_do_not_depend_on_processes(num_images: int) -> None:
    """Steps have the same images with any number of processes, also if nothing divides evenly."""
    options = {"batch_size": 8, "epoch": 3, "seed": 5}
    alone = images_of_steps(num_images, 1, micro_batch_size=8, **options)
    for processes, size in ((2, 4), (4, 2), (2, 2), (4, 1), (1, 1), (3, 2), (1, 3), (5, 3)):
        assert images_of_steps(num_images, processes, micro_batch_size=size, **options) == alone
    assert sorted(sum(alone, [])) == list(range(num_images))


@pytest.mark.parametrize("num_images", [1, 5, 9, 10, 11, 13])
def test_processes_have_equal_numbers_of_micro_batches(num_images: int) -> None:
    """All processes have the same number of micro-batches, and none is empty."""
    plans = [
        plan_epoch(num_images, 11, 2, num_processes=3, process_index=index) for index in range(3)
    ]
    lengths = [[len(parts) for parts in plan] for plan in plans]
    assert lengths[0] == lengths[1] == lengths[2]
    sizes = [len(part.indices) for plan in plans for parts in plan for part in parts]
    assert min(sizes) >= 1 and max(sizes) <= 2


def test_fillers_do_not_count() -> None:
    """Repeated images in the last step don't count."""
    plans = [plan_epoch(1, 4, 2, num_processes=2, process_index=index) for index in range(2)]
    assert plans == [[[MicroBatch([0])]], [[MicroBatch([0], counts=False)]]]


def test_epochs_and_seeds_differ() -> None:
    """The order depends on epoch and seed only."""
    plan = plan_epoch(50, 50, 50)
    assert plan == plan_epoch(50, 50, 50)
    assert plan != plan_epoch(50, 50, 50, epoch=1) != plan_epoch(50, 50, 50, seed=1) != plan


def test_invalid_numbers() -> None:
    """Empty data sets and invalid indices of processes are rejected."""
    with pytest.raises(ValueError, match="num_images is 0"):
        plan_epoch(0, 2, 2)
    with pytest.raises(ValueError, match="process_index is 2; expected 0 to 1"):
        plan_epoch(5, 2, 2, num_processes=2, process_index=2)


def test_the_papers_schedule() -> None:
    """The learning rate drops to a tenth after 80 % of the steps: epoch 40 of 50, 400 of 500."""
    factors = [learning_rate_factor(step, 50) for step in range(50)]
    assert factors == [1.0] * 40 + [0.1] * 10


def test_cosine_falls_to_zero() -> None:
    """The cosine decreases from 1 to 0 and is 0.5 in the middle."""
    factors = [learning_rate_factor(step, 100, "cosine") for step in range(101)]
    assert factors[0] == 1 and factors[50] == pytest.approx(0.5) and factors[100] == 0
    assert factors == sorted(factors, reverse=True)


@pytest.mark.parametrize("schedule", ["step", "cosine"])
def test_warm_up_rises_linearly(schedule: str) -> None:
    """The warm-up increases in equal steps from above 0 to the full rate."""
    factors = [learning_rate_factor(step, 100, schedule, warmup_steps=4) for step in range(5)]
    assert factors == pytest.approx([0.2, 0.4, 0.6, 0.8, 1.0])


def test_unknown_schedule() -> None:
    """Unknown schedules are rejected."""
    with pytest.raises(ValueError, match="'cosin'.*'step' or 'cosine'"):
        learning_rate_factor(0, 10, "cosin")
