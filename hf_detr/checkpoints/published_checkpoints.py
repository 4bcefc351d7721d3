"""The checkpoints that the papers' authors published: configurations, results and model cards.

The data are in `published_checkpoints.toml`. All results are the authors'; none was measured with
hf_detr. The module also finds the small model that is part of the package.
"""

import tomllib
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path, PurePath
from typing import Any

from huggingface_hub import ModelCard
from transformers import PreTrainedConfig

from ..models.variants import VARIANTS
from .model_card import CardResults, make_model_card

DC5 = " DC5: the last stage of the backbone is dilated and has no stride."
TRAINING = (
    "Weight decay 1e-4, gradient norm clipped at 0.1, dropout 0.1. The backbone is initialized "
    "from ImageNet weights; its batch norm, stem and first stage are frozen. Augmentation: flips, "
    "crops, short side 480 to 800 pixels, long side at most 1333."
)
MASK_TRAINING = (
    "First the detector was trained on the boxes of things and stuff, then only the mask head for "
    "25 epochs with dice and focal losses. The recipe for detectors is:\n\n"
)
BATCH_LIMIT = "The authors report a lower AP with several images per batch: use a batch size of 1."
VERIFIED = (
    "None: COCO's images and these weights were not available. The tests verify that hf_detr "
    "reproduces recorded outputs of the official code with synthetic weights, for"
)
VERIFIED_SWIN = (
    "None: COCO's images and these weights were not available, and the official code was not "
    "recorded with this backbone. The tests verify that hf_detr predicts what a naive "
    "implementation of the model predicts, with synthetic weights."
)


@dataclass(frozen=True)
class PublishedCheckpoint:
    """A checkpoint that a paper's authors published.

    Attributes:
        name: repository on the Hub, or a name without an owner if it isn't on the Hub.
        file: name of the authors' file.
        family: the model type.
        variant: description of the model.
        metrics: results in percent on the family's test data; none if there are none.
        options: differences from the family's default configuration, except the classes.
        labels: names of the classes. Default: COCO's category ids.
        longest_edge: what images are resized to, if both edges have this limit.
        trained_on: data sets on the Hub. Default: the family's.
        source: name and URL of the source of the results. Default: the official README.
        recorded: recorded case of the official code with this configuration, if any.
    """

    name: str
    file: str
    family: str
    variant: str
    metrics: dict[str, float] = field(default_factory=dict)
    options: dict[str, Any] = field(default_factory=dict)
    labels: list[str] | None = None
    longest_edge: int | None = None
    trained_on: list[str] | None = None
    source: list[str] | None = None
    recorded: str | None = None

    @property
    def has_masks(self) -> bool:
        """Whether the model has a mask head."""
        return "PQ" in self.metrics

    @property
    def main_metric(self) -> str:
        """The metric that models of this kind are compared by."""
        return "PQ" if self.has_masks else "AP"

    @property
    def test_data(self) -> list[str]:
        """Name of the data that the results are of, and its name on the Hub."""
        return _read()["families"][self.family].get("test_data", ["COCO 2017 val", "coco"])

    @property
    def is_on_coco(self) -> bool:
        """Whether there is a result on COCO 2017 val."""
        return self.main_metric in self.metrics and self.test_data[1] == "coco"

    @property
    def id2label(self) -> dict[int, str]:
        """Names of the classes; empty for COCO's."""
        return dict(enumerate(self.labels or ()))

    @property
    def preprocessing(self) -> dict[str, Any]:
        """Settings of the image processor that differ from the variant's."""
        if self.longest_edge is None:
            return {}
        return {"size": {"shortest_edge": self.longest_edge, "longest_edge": self.longest_edge}}

    def make_config(self) -> PreTrainedConfig:
        """Make the published configuration, without auxiliary losses."""
        config_class = VARIANTS[self.family].config
        task = "ForSegmentation" if self.has_masks else "ForObjectDetection"
        classes: dict[str, Any] = {"num_labels": 250 if self.has_masks else 91}
        if self.id2label:
            classes = {"id2label": self.id2label}
        return config_class(
            **self.options,
            **classes,
            auxiliary_loss=False,
            architectures=[config_class.__name__.removesuffix("Config") + task],
        )


def published_checkpoints() -> list[PublishedCheckpoint]:
    """Return all known published checkpoints."""
    return [PublishedCheckpoint(**values) for values in _read()["checkpoints"]]


def find_published_checkpoint(file: str | Path) -> PublishedCheckpoint | None:
    """Return a published checkpoint, or None.

    Args:
        file: the authors' file in any folder; or the repository on the Hub, or any folder with the
            repository's name, as `hf-detr convert` writes it.
    """
    name = PurePath(file).name
    folder = name if Path(file).is_dir() else None
    for one in published_checkpoints():
        if one.file == name or one.name == str(file) or PurePath(one.name).name == folder:
            return one
    return None


def make_published_card(
    checkpoint: PublishedCheckpoint, config: PreTrainedConfig | None = None, name: str | None = None
) -> ModelCard:
    """Make the model card of a published checkpoint.

    Args:
        checkpoint: the published checkpoint.
        config: configuration of the model in the card's folder. Default: `make_config()`.
        name: repository or folder of the converted file. Default: the repository on the Hub.
    """
    family = _read()["families"][checkpoint.family]
    masks = (
        " A mask head predicts the pixels of each thing and stuff segment." * checkpoint.has_masks
    )
    used = "133 of 250" if checkpoint.has_masks else "80 of 91"
    labels = f"Labels are COCO's category ids, of which {used} are used."
    if checkpoint.labels:
        labels = f"Labels are {', '.join(checkpoint.labels)}."
    recipe = f"{family['recipe']}\n\n{family.get('training', TRAINING)}"
    alike = "this configuration" if checkpoint.recorded else "similar ones"
    is_swin = "swin" in checkpoint.options.get("backbone", "")
    verified = VERIFIED_SWIN if is_swin else f"{VERIFIED} {alike}."
    source = tuple(checkpoint.source or family["readme"])
    results = (
        [CardResults(checkpoint.metrics, *checkpoint.test_data, source)]
        if checkpoint.metrics
        else []
    )
    is_dc5 = "dilation" in checkpoint.options
    # Deformable DETR's authors don't report this.
    batch_limit = is_dc5 and family.get("dc5_one_by_one", False)
    return make_model_card(
        config or checkpoint.make_config(),
        name=name or checkpoint.name,
        description=(
            f"{family['summary']}{masks}\n\n"
            f"This checkpoint: {checkpoint.variant}.{DC5 * is_dc5}\n\n"
            f"{_origin(checkpoint, family['readme'], name)}"
        ),
        results=results,
        evaluation=family.get("verified", verified),
        training=f"{MASK_TRAINING * checkpoint.has_masks}{recipe}",
        limits=f"{labels} {BATCH_LIMIT * batch_limit}",
        license=family.get("license", "apache-2.0"),
        datasets=checkpoint.trained_on or family.get("trained_on", ["coco"]),
    )


def _origin(checkpoint: PublishedCheckpoint, readme: list[str], name: str | None) -> str:
    published = f"The authors' file is `{checkpoint.file}`, see [{readme[0]}]({readme[1]})"
    if name is not None:
        return f"{published}; it was converted by hf_detr."
    if "/" in checkpoint.name:
        return (
            f"{published}; the repository on the Hub has it in transformers' format. In addition "
            "to the fields under Configuration, its `config.json` may contain transformers' "
            "defaults for training, such as `attention_dropout` 0."
        )
    return (
        f"{published}. It is not on the Hub: run `hf-detr convert {checkpoint.file} "
        f"{checkpoint.name}` to create the folder that the code below loads."
    )


@cache
def _read() -> dict[str, Any]:
    return tomllib.loads(Path(__file__).with_suffix(".toml").read_text(encoding="utf-8"))
