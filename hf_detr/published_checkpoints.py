"""The checkpoints that the papers' authors published: configurations, figures, and their cards.

What is known of them stands in `published_checkpoints.toml`; no figure there was measured here.
"""

import tomllib
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path, PurePath
from typing import Any

from huggingface_hub import ModelCard
from transformers import PreTrainedConfig

from .configuration_detr import CONFIGURATIONS
from .model_card import CardResults, make_model_card

DC5 = " (DC5: the last stage keeps its resolution, by dilation instead of a stride.)"
TRAINING = (
    "Weight decay 1e-4, gradient norm clipped at 0.1, dropout 0.1. The backbone starts from "
    "ImageNet weights; its batch norm, stem and first stage are frozen. Augmentation: flips, "
    "crops, short side 480 to 800 pixels, long side at most 1333."
)
MASK_TRAINING = (
    "First the detector, on the boxes of things and stuff; then the mask head alone for 25 epochs, "
    "the detector frozen, by dice and focal losses. Detectors alone are trained so:\n\n"
)
BATCH_LIMIT = (
    "Its authors report that AP drops if several images are evaluated in one batch: run them one "
    "by one."
)
VERIFIED = (
    "No figure: neither COCO's images nor these weights were at hand. What was verified is that "
    "hf_detr reproduces recorded outputs of the official code with synthetic weights"
)


@dataclass(frozen=True)
class PublishedCheckpoint:
    """A file that a paper's authors published.

    Attributes:
        name: its repository on the Hub; without an owner where there is none.
        file: name of the authors' file.
        family: the model type.
        variant: what sets it apart, in words.
        metrics: figures in percent on COCO 2017 val.
        options: what differs from the family's default configuration, beside the classes.
        source: name and URL of where the figures stand; None is the official README.
        recorded: case of the official code in this configuration that tests compare with, if any.
        nearest: otherwise those that come nearest.
    """

    name: str
    file: str
    family: str
    variant: str
    metrics: dict[str, float]
    options: dict[str, Any] = field(default_factory=dict)
    source: list[str] | None = None
    recorded: str | None = None
    nearest: list[str] = field(default_factory=list)

    @property
    def has_masks(self) -> bool:
        """Whether it segments, too."""
        return "PQ" in self.metrics

    def make_config(self) -> PreTrainedConfig:
        """The configuration as it is published: without the auxiliary losses of training."""
        config_class = CONFIGURATIONS[self.family]
        task = "ForSegmentation" if self.has_masks else "ForObjectDetection"
        return config_class(
            **self.options,
            num_labels=250 if self.has_masks else 91,
            auxiliary_loss=False,
            architectures=[config_class.__name__.removesuffix("Config") + task],
        )


def published_checkpoints() -> list[PublishedCheckpoint]:
    """All that are known."""
    return [PublishedCheckpoint(**values) for values in _read()["checkpoints"]]


def find_published_checkpoint(file: str | Path) -> PublishedCheckpoint | None:
    """The one whose file has this name, in whatever folder; None if it isn't known."""
    name = PurePath(file).name
    return next((one for one in published_checkpoints() if one.file == name), None)


def make_published_card(
    checkpoint: PublishedCheckpoint, config: PreTrainedConfig | None = None, name: str | None = None
) -> ModelCard:
    """The card of a published checkpoint.

    Args:
        checkpoint: which one.
        config: of the files that the card lies beside; None takes `make_config()`.
        name: repository or folder that the authors' file was converted to; None is the Hub's.
    """
    family = _read()["families"][checkpoint.family]
    masks = " A mask head gives every object, thing or stuff, its pixels." * checkpoint.has_masks
    used = "133 of 250" if checkpoint.has_masks else "80 of 91"
    source = tuple(checkpoint.source or family["readme"])
    is_dc5 = "dilation" in checkpoint.options
    # Deformable DETR's authors say nothing of the kind.
    batch_limit = is_dc5 and checkpoint.family != "deformable_detr"
    return make_model_card(
        config or checkpoint.make_config(),
        name=name or checkpoint.name,
        description=(
            f"{family['summary']}{masks}\n\n"
            f"This one: {checkpoint.variant}.{DC5 * is_dc5}\n\n"
            f"{_origin(checkpoint, family['readme'], name)}"
        ),
        results=[CardResults(checkpoint.metrics, "COCO 2017 val", "coco", source)],
        evaluation=f"{VERIFIED} {_verified_with(checkpoint)}.",
        training=f"{MASK_TRAINING * checkpoint.has_masks}{family['recipe']}\n\n{TRAINING}",
        limits=(
            f"Classes are numbered by COCO's category ids, so that {used} numbers are in use. "
            f"{BATCH_LIMIT * batch_limit}"
        ),
        license="apache-2.0",
        datasets=["coco"],
    )


def _origin(checkpoint: PublishedCheckpoint, readme: list[str], name: str | None) -> str:
    published = f"The authors' file is `{checkpoint.file}`, see [{readme[0]}]({readme[1]})"
    if name is not None:
        return f"{published}; hf_detr converted it."
    if "/" in checkpoint.name:
        return (
            f"{published}; the Hub has it in transformers' format. Beside what stands under "
            "Configuration its `config.json` may hold transformers' defaults of training, such as "
            "`attention_dropout` 0."
        )
    return (
        f"{published}. It is not on the Hub; `hf-detr convert "
        f"{checkpoint.file} {checkpoint.name}` makes the folder that the code below loads."
    )


def _verified_with(checkpoint: PublishedCheckpoint) -> str:
    tests = "tests/test_segmentation.py" if checkpoint.has_masks else "tests/test_parity.py"
    if checkpoint.recorded is not None:
        return f"in this configuration (`{checkpoint.recorded}` in `{tests}`)"
    nearest = " and ".join(f"`{case}`" for case in checkpoint.nearest)
    return f"in {nearest}, the configurations nearest to this one of which there are recordings"


@cache
def _read() -> dict[str, Any]:
    return tomllib.loads(Path(__file__).with_suffix(".toml").read_text(encoding="utf-8"))
