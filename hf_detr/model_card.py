"""Model cards: what a model is, how to run it, how it was trained and how good it is.

Everything that a card needs follows from the model's configuration or is an argument here, so that
training, conversion and the cards of published checkpoints say it in the same way.
"""

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from huggingface_hub import EvalResult, ModelCard, ModelCardData
from transformers import PreTrainedConfig

TASKS = {"ForObjectDetection": "object-detection", "ForSegmentation": "image-segmentation"}
# Why a model's files aren't for transformers alone.
ONLY_HERE = {
    "DeformableDetrForSegmentation": "transformers has no such model.",
    "ConditionalDetrForSegmentation": (
        "transformers' class of this name leaves the reference points out of the boxes and scores "
        "by softmax what was trained as sigmoids."
    ),
}


@dataclasses.dataclass(frozen=True)
class CardResults:
    """Figures of a model on one data set.

    Attributes:
        metrics: name and value, in the unit of the source, for example `{"AP": 42.0}`.
        dataset: its name for people, such as "COCO 2017 val".
        dataset_id: its name on the Hub, or any short one.
        source: name and URL of what published them; None if they were measured for this card.
    """

    metrics: Mapping[str, float]
    dataset: str
    dataset_id: str
    source: tuple[str, str] | None = None


def make_model_card(
    config: PreTrainedConfig,
    *,
    name: str,
    description: str,
    results: Sequence[CardResults] = (),
    evaluation: str = "",
    training: str = "",
    limits: str = "",
    license: str | None = None,
    base_model: str | None = None,
    datasets: Sequence[str] = (),
) -> ModelCard:
    """The card of a model; `.save(folder / "README.md")` writes it.

    Args:
        config: the model's, with `architectures` as `save_pretrained` sets it.
        name: repository or folder from which the card's code loads the model.
        description: what the model is; Markdown, as evaluation, training and limits are.
        results: figures, published and measured in a section each. The metadata hold one set for
            each data set, measured before published, since the Hub knows one source for each.
        evaluation: what else is to be said of what was measured, or wasn't.
        training: data and recipe.
        limits: what else the model can't do.
        license: the Hub's name of the licence, such as "apache-2.0"; None says that none is given.
        base_model: the Hub's name of the model that this one was fine-tuned from.
        datasets: Hub names of the training data.

    Raises:
        ValueError: if the configuration doesn't name a detector or segmenter.
    """
    architecture = _architecture(config)
    data = ModelCardData(
        license=license,
        library_name=library_of(architecture),
        pipeline_tag=task_of(architecture),
        tags=["hf_detr", config.model_type, "vision"],
        base_model=base_model,
        datasets=list(datasets) or None,
        model_name=name,
        eval_results=_indexed(results, task_of(architecture)) or None,
    )
    published = [one for one in results if one.source is not None]
    measured = [one for one in results if one.source is None]
    sections = {
        "Use": _use(architecture, name),
        "Configuration": _configuration(config),
        "Training": training,
        "Published results": "\n\n".join(map(_results_table, published)),
        "Measured results": "\n\n".join(filter(None, [*map(_results_table, measured), evaluation])),
        "Limits": f"{_limits(config)} {limits}",
        "Licence": license or "None was given; ask the author before you use the model.",
    }
    text = "\n\n".join(
        f"## {title}\n\n{content.strip()}" for title, content in sections.items() if content
    )
    return ModelCard(f"---\n{data.to_yaml()}\n---\n\n# {name}\n\n{description.strip()}\n\n{text}\n")


def markdown_table(columns: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    """A table in Markdown; values may hold its bars."""
    lines = [columns, ["---"] * len(columns), *rows]
    cells = [[str(value).replace("|", "\\|") for value in line] for line in lines]
    return "\n".join(f"| {' | '.join(line)} |" for line in cells)


def _architecture(config: PreTrainedConfig) -> str:
    names = config.architectures or []
    if len(names) != 1 or not names[0].endswith(tuple(TASKS)):
        raise ValueError(
            f"config.architectures is {config.architectures}; a card needs the name of one "
            "detector or segmenter, such as ['DetrForObjectDetection']. save_pretrained sets it, "
            "so save the model first."
        )
    return names[0]


def library_of(architecture: str) -> str:
    """What the Hub calls the library that loads models of a class."""
    return "hf_detr" if architecture in ONLY_HERE else "transformers"


def task_of(architecture: str) -> str:
    """What the Hub calls the task of a class, a detector or segmenter."""
    return next(task for ending, task in TASKS.items() if architecture.endswith(ending))


def _indexed(results: Sequence[CardResults], task: str) -> list[EvalResult]:
    """The results for the metadata, of which those measured take precedence."""
    chosen = {one.dataset_id: one for one in sorted(results, key=lambda one: one.source is None)}
    return [
        EvalResult(
            task_type=task,
            dataset_type=one.dataset_id,
            dataset_name=one.dataset,
            metric_type=metric.lower().replace(" ", "_"),
            metric_name=metric,
            metric_value=value,
            source_name=one.source and one.source[0],
            source_url=one.source and one.source[1],
        )
        for one in chosen.values()
        for metric, value in one.metrics.items()
    ]


def _use(architecture: str, name: str) -> str:
    """How to install what is needed, and code for each way to run the model."""
    prefix = architecture.split("For")[0]
    task = task_of(architecture)
    post_process = {
        "object-detection": "post_process_object_detection",
        "image-segmentation": "post_process_panoptic_segmentation",
    }[task]
    run_pipeline = f"""from transformers import pipeline

predict = pipeline("{task}", model="{name}")
predictions = predict("image.jpg")
```"""
    if architecture in ONLY_HERE:
        alone = f"The model needs hf_detr: {ONLY_HERE[architecture]}"
    else:
        alone = f"In plain transformers, without hf_detr:\n\n```python\n{run_pipeline}"
    return f"""With hf_detr (`pip install hf_detr`):

```python
import hf_detr  # makes transformers use its classes
{run_pipeline}

or step by step:

```python
import torch
from PIL import Image
from hf_detr import {architecture}, {prefix}ImageProcessor

name = "{name}"
processor = {prefix}ImageProcessor.from_pretrained(name)
model = {architecture}.from_pretrained(name)
image = Image.open("image.jpg")
with torch.no_grad():
    outputs = model(**processor(image, return_tensors="pt"))
predictions = processor.{post_process}(
    outputs, threshold=0.5, target_sizes=[(image.height, image.width)]
)
```

{alone}
"""


def _configuration(config: PreTrainedConfig) -> str:
    """Where the configuration differs from its class's defaults."""
    default = type(config)()
    written = config.to_dict()
    general = {field.name for field in dataclasses.fields(PreTrainedConfig)}
    names = [field.name for field in dataclasses.fields(config) if field.name in written]
    names = [name for name in names if name not in general | {"backbone_config"}]
    rows = [
        (f"`{name}`", f"`{getattr(config, name)}`", f"`{getattr(default, name)}`")
        for name in ("backbone", "num_labels", *names)
        if getattr(config, name) != getattr(default, name)
    ]
    if not rows:
        return f"The defaults of `hf_detr.{type(config).__name__}`."
    return (
        f"What differs from the defaults of `hf_detr.{type(config).__name__}`:\n\n"
        f"{markdown_table(('field', 'here', 'default'), rows)}"
    )


def _results_table(results: CardResults) -> str:
    origin = "" if results.source is None else ", by [{}]({})".format(*results.source)
    table = markdown_table(("metric", "value"), results.metrics.items())
    return f"On {results.dataset}{origin}:\n\n{table}"


def _limits(config: PreTrainedConfig) -> str:
    two_stage = getattr(config, "two_stage", False)
    most = config.two_stage_num_proposals if two_stage else config.num_queries
    return (
        f"It knows the classes of its `config.id2label` only and finds at most {most} objects in "
        "an image. Its errors and biases were not studied here: test it on images of your own "
        "before you rely on it."
    )
