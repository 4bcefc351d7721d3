"""Tests the options of a training."""

from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest

from hf_detr.models.variants import VARIANTS, Recipe
from hf_detr.training.options import GROUPS, TrainingOptions

RECIPE = VARIANTS["detr"].recipe
TRAINED = {"is_trained": True}
NEW_CLASSES = {**TRAINED, "has_new_classes": True}


def filled(
    model: dict[str, Any] | None = None, recipe: Recipe = RECIPE, **given: Any
) -> dict[str, Any]:
    """The options with the defaults of DETR, or of another recipe, and three images."""
    options = TrainingOptions(**given)
    options.check()
    return vars(options.filled(recipe, 3, **model or {}))


@pytest.mark.parametrize("more", [{}, {"small_data": True}, {"overfit": 3}])
def test_given_options_are_kept(more: dict[str, Any]) -> None:
    """`small_data` and `overfit` change defaults, not options that are given, 0 included."""
    given = {"ema": 0.0, "schedule": "step", "warmup_steps": 0, "batch_size": 5, "lr": 0.5}
    given |= {"micro_batch_size": 5, "workers": 3, "evaluate_every": 7, "epochs": 9}
    assert given.items() <= filled(**given, **more).items()


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({}, {"ema": 0.0, "schedule": "step", "warmup_steps": 0, "micro_batch_size": 2}),
        ({}, {"epochs": 500, "batch_size": 64, "lr": 1e-4, "metric": "AP"}),
        ({"small_data": True}, {"ema": 0.998, "schedule": "cosine", "batch_size": 8}),
        ({"small_data": True}, {"epochs": 500, "class_factor": 1}),
        ({"small_data": True, "model": TRAINED}, {"epochs": 50, "class_factor": 1, "lr": 1e-4}),
        ({"small_data": True, "epochs": 30}, {"evaluate_every": 3}),
        ({"small_data": True, "epochs": 5}, {"evaluate_every": 1}),
        ({"small_data": True, "model": NEW_CLASSES}, {"epochs": 50, "class_factor": 10}),
        ({"small_data": True, "model": {"width": 64}}, {"lr": 4e-4}),
        ({"model": {**NEW_CLASSES, "width": 64}}, {"epochs": 500, "class_factor": 1, "lr": 1e-4}),
        ({"overfit": 3}, {"batch_size": 3, "micro_batch_size": 3, "evaluate_every": 300}),
        ({"batch_size": 3}, {"micro_batch_size": 2}),
        ({"batch_size": 1}, {"micro_batch_size": 1}),
        ({"panoptic": True}, {"metric": "pq"}),
    ],
)
def test_defaults(given: dict[str, Any], expected: dict[str, Any]) -> None:
    """Defaults are the paper's, those for small data, or those of the health check."""
    assert expected.items() <= filled(**given).items()
    assert None not in {filled(**given)[name] for name in ("workers", "metric", "evaluate_every")}


def test_class_heads_of_each_variant() -> None:
    """New classes of small data learn faster, by the model; it changes nothing else."""
    factors = {
        name: filled(NEW_CLASSES, variant.recipe, small_data=True)["class_factor"]
        for name, variant in VARIANTS.items()
    }
    others = dict.fromkeys(factors.keys() - {"conditional_detr"}, 10)
    assert factors == {"conditional_detr": 30, **others}
    recipe = VARIANTS["conditional_detr"].recipe
    for model, given in ((TRAINED, {"small_data": True}), (NEW_CLASSES, {})):
        assert filled(model, recipe, **given)["class_factor"] == 1


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"epochs": 0}, "--epochs is 0; expected at least 1"),
        ({"save_every": 0}, "--save-every is 0"),
        ({"lr": float("nan")}, "--lr is nan"),
        ({"micro_batch_size": 0}, "--micro-batch-size is 0"),
        ({"micro_batch_size": "most"}, "--micro-batch-size is 'most'; expected a number or auto"),
        ({"ema": 1.0}, "--ema is 1.0; expected a number below 1"),
        ({"metric": "pq"}, "--metric pq is computed with --panoptic only"),
        ({"push_to": "me/cups", "overfit": 4}, "--push-to can't be used with --overfit"),
        ({"max_grad_norm": 0.0}, "--max-grad-norm is 0, .* A large one, such as inf, doesn't clip"),
        ({"crop": 1.5}, "a probability from 0 to 1"),
        ({"warmup_steps": 2.5}, "a whole number of steps, or a share below 1"),
        ({"crop": 0.2, "no_augmentation": True}, "--crop has no effect with --no-augmentation"),
        ({"metric": "mAP"}, "--metric is 'mAP'; expected one of"),
        ({"freeze": ["detector"]}, "without --panoptic"),
        ({"query_groups": 1, "denoising": 9}, "not both"),
        ({"patience": 2, "overfit": 4}, "--patience can't be used with --overfit"),
        ({"tiles": 8}, "tiles is 8; expected the side of a tile"),
        ({"tiles": 64, "overlap": 1}, "overlap is 1; expected a share"),
        ({"overlap": 0.5}, "--overlap has no effect without --tiles"),
        ({"tiles": 64, "metric": "AR_100"}, "--metric AR_100 isn't computed with --tiles"),
        ({"tracker": ["logs"]}, "--tracker is 'logs'; expected some of"),
    ],
)
def test_wrong_values(given: dict[str, Any], message: str) -> None:
    """A value that can't be meant is refused before anything is read."""
    with pytest.raises(ValueError, match=message):
        TrainingOptions(**given).check()


def test_values_of_another_kind() -> None:
    """A name where a list is needed isn't read as a list of letters; missing files are named."""
    with pytest.raises(TypeError, match=r"tracker is 'wandb'; expected a list, as \['wandb'\]"):
        TrainingOptions(tracker="wandb").check()
    with pytest.raises(FileNotFoundError, match="--backbone-weights no.pth isn't a file"):
        TrainingOptions(backbone_weights=Path("no.pth")).check()


def test_packages_that_are_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    """A tracker without its package is refused; Accelerate would only omit it."""
    monkeypatch.setattr("hf_detr.training.options.find_spec", lambda name: name != "wandb" or None)
    with pytest.raises(ImportError, match="This training needs wandb: `pip install wandb`"):
        TrainingOptions(tracker=["wandb"]).check()


def test_recorded_options_are_those_of_the_result() -> None:
    """Options of speed may differ when a training is resumed, options of the result not."""
    recorded = TrainingOptions(freeze=["backbone"]).recorded()
    assert recorded["freeze"] == ["backbone"] and {"lr", "seed", "lora"} <= recorded.keys()
    assert not {"workers", "micro_batch_size", "resume", "tracker"} & recorded.keys()


def test_groups_are_of_options() -> None:
    """The help's groups start at options that exist, and all options are in one."""
    names = [field.name for field in fields(TrainingOptions)]
    assert set(GROUPS) <= set(names) and names[0] in GROUPS
