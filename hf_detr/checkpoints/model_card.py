"""Makes model cards from the model's configuration and results.

Training, conversion and the cards of published checkpoints use the same functions.
"""

import dataclasses
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from huggingface_hub import EvalResult, ModelCard, ModelCardData
from transformers import PreTrainedConfig, PreTrainedModel

from ..layers.backbone import OneStepBatchNormAct2d
from ..models.variants import VARIANTS

TASKS = {"ForObjectDetection": "object-detection", "ForSegmentation": "image-segmentation"}
# Models that transformers can't load or run correctly, and the reason.
ONLY_HERE = {
    model.__name__: reason
    for variant in VARIANTS.values()
    for model, reason in (
        (variant.detector, variant.only_here),
        (variant.segmenter, variant.only_here or variant.segmenter_only_here),
    )
    if model is not None and reason
}

CARD_NAME = "README.md"
LONGEST_LINE = 100  # of code
THRESHOLDS = "Score thresholds"  # title of a section
DROPPED_ACTIVATIONS = (
    "transformers drops the activations that some norms of this backbone contain, and would detect "
    "other objects."
)


@dataclasses.dataclass(frozen=True)
class CardResults:
    """Results of a model on one data set.

    Attributes:
        metrics: names and values, for example `{"AP": 42.0}`.
        dataset: name of the data set, such as "COCO 2017 val".
        dataset_id: name of the data set on the Hub, or a short name.
        source: name and URL of the publication; None if the results were measured for this card.
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
    only_here: str = "",
) -> ModelCard:
    """Make the card of a model; save it with `.save(folder / "README.md")`.

    Args:
        config: the model's configuration, with `architectures` as set by `save_pretrained`.
        name: repository or folder from which the card's code loads the model.
        description: description of the model, in Markdown.
        results: published and measured results. The metadata contain one entry per data set,
            because the Hub supports one source each; measured results take precedence.
        evaluation: text after the measured results, in Markdown.
        training: training data and recipe, in Markdown.
        limits: further limits of the model, in Markdown.
        license: the Hub's name of the licence, such as "apache-2.0".
        base_model: the Hub's name of the model that was fine-tuned.
        datasets: the Hub's names of the training data.
        only_here: why transformers can't run the model, as of `needs_hf_detr`; by default that of
            its class.

    Raises:
        ValueError: if `config.architectures` isn't one detector or segmentation model.
    """
    architecture = _architecture(config)
    processor = f"{architecture.split('For')[0]}ImageProcessor"
    if config.model_type in VARIANTS:
        processor = VARIANTS[config.model_type].image_processor.__name__
    only_here = only_here or ONLY_HERE.get(architecture, "")
    data = ModelCardData(
        license=license,
        **hub_metadata(architecture, only_here),
        tags=["hf_detr", config.model_type, "vision"],
        base_model=base_model,
        datasets=list(datasets) or None,
        model_name=name,
        eval_results=_indexed(results, _task(architecture)) or None,
    )
    published = [one for one in results if one.source is not None]
    measured = [one for one in results if one.source is None]
    sections = {
        "Use": _use(architecture, processor, name, only_here),
        "Configuration": _configuration(config),
        "Training": training,
        "Published results": "\n\n".join(map(_results_table, published)),
        "Measured results": "\n\n".join(filter(None, [*map(_results_table, measured), evaluation])),
        THRESHOLDS: _thresholds(config.class_thresholds or {}),
        "Limits": f"{_limits(config, architecture)} {limits}",
        "Licence": license or "No licence is given; ask the author before you use the model.",
    }
    text = "\n\n".join(
        f"## {title}\n\n{content.strip()}" for title, content in sections.items() if content
    )
    return ModelCard(f"---\n{data.to_yaml()}\n---\n\n# {name}\n\n{description.strip()}\n\n{text}\n")


def markdown_table(columns: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    """Format a table in Markdown; bars in values are escaped, line breaks are spaces."""
    lines = [columns, ["---"] * len(columns), *rows]
    cells = [[" ".join(str(value).split()).replace("|", "\\|") for value in line] for line in lines]
    return "\n".join(f"| {' | '.join(line)} |" for line in cells)


def with_thresholds(card: str, thresholds: Mapping[str, float]) -> str:
    """Return a card's text with a section of the classes' thresholds, which replaces one."""
    section = re.compile(rf"^## {THRESHOLDS}\n.*?(?=^## |\Z)", re.DOTALL | re.MULTILINE)
    text = f"## {THRESHOLDS}\n\n{_thresholds(thresholds)}\n"
    if found := section.search(card):
        end = card[found.end() :]
        return card[: found.start()] + text + ("\n" if end else "") + end
    return f"{card.rstrip()}\n\n{text}"


def _thresholds(thresholds: Mapping[str, float]) -> str:
    if not thresholds:
        return ""
    return (
        "The scores of the best F1 of each class on validation data (`class_thresholds` in "
        "`config.json`). hf_detr uses them if no threshold is given, and 0.5 for other classes.\n\n"
        f"{markdown_table(('class', 'threshold'), thresholds.items())}"
    )


def _architecture(config: PreTrainedConfig) -> str:
    names = config.architectures or []
    if len(names) != 1 or not names[0].endswith(tuple(TASKS)):
        raise ValueError(
            f"config.architectures is {config.architectures}; expected the name of one detector or "
            "segmentation model, such as ['DetrForObjectDetection']. save_pretrained sets it: "
            "save the model first."
        )
    return names[0]


def needs_hf_detr(model: PreTrainedModel) -> str:
    """Return why transformers can't load or run a model correctly; "" if it can."""
    if any(isinstance(module, OneStepBatchNormAct2d) for module in model.modules()):
        return DROPPED_ACTIVATIONS
    return ONLY_HERE.get(type(model).__name__, "")


def hub_metadata(architecture: str, only_here: str) -> dict[str, str]:
    """Return the library and the task of a model class, which `pipeline(model=...)` needs."""
    library = "hf_detr" if only_here else "transformers"
    return {"library_name": library, "pipeline_tag": _task(architecture)}


def _task(architecture: str) -> str:
    return next(task for ending, task in TASKS.items() if architecture.endswith(ending))


def _indexed(results: Sequence[CardResults], task: str) -> list[EvalResult]:
    """Convert results to metadata; measured results replace published ones."""
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


def _use(architecture: str, processor: str, name: str, only_here: str) -> str:
    """Installation and code examples."""
    task = _task(architecture)
    kind = "object_detection" if task == "object-detection" else "panoptic_segmentation"
    call = f'predict = pipeline("{task}", model="{name}")'
    if len(call) > LONGEST_LINE:
        call = f'predict = pipeline(\n    "{task}", model="{name}"\n)'
    run_pipeline = f"""from transformers import pipeline

{call}
predictions = predict("image.jpg")
```"""
    if only_here:
        plain = f"The model needs hf_detr: {only_here}"
    else:
        plain = f"In plain transformers, without hf_detr:\n\n```python\n{run_pipeline}"
    return f"""With hf_detr (`pip install hf_detr`):

```python
import hf_detr  # registers its classes with transformers
{run_pipeline}

or step by step:

```python
import torch
from PIL import Image
from hf_detr import {architecture}, {processor}

name = "{name}"
processor = {processor}.from_pretrained(name)
model = {architecture}.from_pretrained(name)
image = Image.open("image.jpg")
with torch.no_grad():
    outputs = model(**processor(image, return_tensors="pt"))
predictions = processor.post_process_{kind}(
    outputs, threshold=0.5, target_sizes=[(image.height, image.width)]
)
```

{plain}
"""


def _configuration(config: PreTrainedConfig) -> str:
    """A table of the fields that differ from the defaults."""
    default = type(config)()
    written = config.to_dict()
    general = {field.name for field in dataclasses.fields(PreTrainedConfig)}
    names = [field.name for field in dataclasses.fields(config) if field.name in written]
    names = [
        name for name in names if name not in general | {"backbone_config", "class_thresholds"}
    ]
    rows = [
        (f"`{name}`", f"`{getattr(config, name)}`", f"`{getattr(default, name)}`")
        for name in ("backbone", "num_labels", *names)
        if getattr(config, name) != getattr(default, name)
    ]
    if getattr(config.backbone_config, "output_norm", False):
        rows.insert(1, ("`backbone_kwargs`", "`{'output_norm': True}`", "`None`"))
    if not rows:
        return f"The defaults of `hf_detr.{type(config).__name__}`."
    return (
        f"Differences from the defaults of `hf_detr.{type(config).__name__}`:\n\n"
        f"{markdown_table(('field', 'value', 'default'), rows)}"
    )


def _results_table(results: CardResults) -> str:
    origin = "" if results.source is None else ", from [{}]({})".format(*results.source)
    table = markdown_table(("metric", "value"), results.metrics.items())
    return f"On {results.dataset}{origin}:\n\n{table}"


def _limits(config: PreTrainedConfig, architecture: str) -> str:
    most, more = config.queries_per_image, ""
    variant = VARIANTS.get(config.model_type)
    if variant is not None and _task(architecture) == "object-detection":
        detections = variant.image_processor.most_detections(most, config.num_labels)
        most = min(detections, most)  # a query can have several classes, but is one object
        if most < config.queries_per_image:
            more = " (more with a larger `top_k` in `post_process_object_detection`)"
    return (
        f"The model detects only the classes of its `config.id2label` and at most {most} objects "
        f"per image{more}. Its errors and biases were not studied: test it on your own images "
        "before you rely on it."
    )
