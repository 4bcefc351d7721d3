"""Tests which trainings may be resumed."""

from typing import Any

import pytest

from hf_detr.training.options import TrainingOptions
from hf_detr.training.resuming import check_same_options


def test_options_of_an_earlier_version() -> None:
    """A training that began before an option existed had its neutral value."""
    recorded = TrainingOptions(class_factor=1.0, ema=0.0, warmup_steps=0).recorded()
    later = {"class_factor", "ema", "warmup_steps", "query_groups", "lora", "freeze", "patience"}
    assert later <= recorded.keys()
    before = {name: value for name, value in recorded.items() if name not in later}
    check_same_options(before, recorded)
    check_same_options(before, {**recorded, "classes": ["cat"], "val_images": 3})
    for name, value in (("class_factor", 10.0), ("ema", 0.9), ("lora", 4), ("patience", 2)):
        with pytest.raises(ValueError, match=f"training to resume: {name} was .*, is {value}"):
            check_same_options(before, {**recorded, name: value})
    with pytest.raises(ValueError, match="images was None, is 3"):
        check_same_options(before, {**recorded, "images": 3})


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"classes": ["cat", "owl", "dog"]}, "class 1 was 'dog', is 'owl'"),
        ({"classes": ["cat"]}, "class 1 was 'dog', is None"),
        ({"images": 8, "val_images": 4}, "images was 9, is 8, val_images was 3, is 4"),
    ],
)
def test_other_data(changed: dict[str, Any], message: str) -> None:
    """The difference is named; of classes, of which there may be thousands, the first."""
    before = {"images": 9, "val_images": 3, "classes": ["cat", "dog", "owl"]}
    check_same_options(before, before)
    with pytest.raises(ValueError, match=rf"or data differ from .* to resume: {message}\. Use"):
        check_same_options(before, {**before, **changed})
