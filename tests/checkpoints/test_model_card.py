"""Tests model cards: metadata, tables and code."""

import re
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import transformers
from huggingface_hub import ModelCard

import hf_detr
from hf_detr import CardResults, make_model_card
from hf_detr.checkpoints.model_card import (
    DROPPED_ACTIVATIONS,
    ONLY_HERE,
    markdown_table,
    needs_hf_detr,
)

from ..tiny import SAMPLED, WITH_HEADS, class_of, tiny_config, tiny_detector

IMAGE = Path(__file__).parents[2] / "examples" / "images" / "garments.jpg"
AP = CardResults(
    {"AP": 42.0, "AP small": 20.5}, "COCO 2017 val", "coco", ("paper", "https://a.b/c")
)


def config_of(variant: str = "detr", kind: str = "ForObjectDetection", **options: Any) -> Any:
    """A tiny configuration with `architectures`, as after saving a model."""
    if kind == "ForSegmentation":  # the mask head's smallest sizes
        options |= {"d_model": 128, "encoder_attention_heads": 8}
    config = tiny_config(variant, **options)
    config.architectures = [class_of(variant, kind).__name__]
    return config


def write_model(config: Any, folder: Path, size: dict[str, int] | None = None) -> None:
    """Save a model with random weights and its image processor."""
    torch.manual_seed(0)
    architecture = config.architectures[0]
    getattr(hf_detr, architecture)(config).save_pretrained(folder)
    processor = class_of(config.model_type, "ImageProcessor")
    processor(size=size or {"shortest_edge": 64, "longest_edge": 96}).save_pretrained(folder)


def code_blocks(card: ModelCard) -> tuple[list[str], list[str]]:
    """A card's Python code for hf_detr, and for plain transformers."""
    blocks = re.findall(r"```python\n(.*?)```", card.text, re.DOTALL)
    plain = [block for block in blocks if "hf_detr import" not in block]
    plain = [block for block in plain if "import hf_detr" not in block]
    return [block for block in blocks if block not in plain], plain


def run_block(code: str) -> dict[str, Any]:
    """Run a card's code in the current folder and return its variables."""
    names: dict[str, Any] = {}
    exec(code, names)
    model = names["model"] if "model" in names else names["predict"].model
    assert type(model).__module__.startswith("hf_detr.")
    assert isinstance(names["predictions"], list)
    return names


def check_metadata(card: ModelCard) -> None:
    """Check the metadata that every card needs, and that reading doesn't change them."""
    assert str(ModelCard(str(card))) == str(card)
    data = card.data
    assert data.library_name in ("transformers", "hf_detr") and "hf_detr" in data.tags
    assert data.pipeline_tag in ("object-detection", "image-segmentation")
    for result in data.eval_results or []:
        assert result.task_type == data.pipeline_tag and result.metric_value >= 0
        assert (result.source_name is None) == (result.source_url is None)


@pytest.mark.parametrize(("variant", "kind"), WITH_HEADS)
def test_card_follows_from_the_configuration(variant: str, kind: str) -> None:
    """Library, task and code are the model's."""
    config = config_of(variant, kind)
    (architecture,) = config.architectures
    card = make_model_card(config, name="me/toy", description="A toy.")
    check_metadata(card)
    here, plain = code_blocks(card)
    assert len(here) == 2 and all("me/toy" in block for block in here)
    assert (
        card.data.pipeline_tag
        == {
            "ForObjectDetection": "object-detection",
            "ForSegmentation": "image-segmentation",
        }[kind]
    )
    if architecture in ONLY_HERE:
        assert card.data.library_name == "hf_detr" and not plain
        assert "needs hf_detr" in card.text and "pip install hf_detr" in card.text
    else:
        assert card.data.library_name == "transformers" and len(plain) == 1
        assert hasattr(transformers, architecture)


def test_backbones_that_transformers_changes() -> None:
    """The card of a model whose norms contain activations says that transformers drops them."""
    assert needs_hf_detr(tiny_detector()) == ""
    model = tiny_detector(backbone="test_efficientnet")
    assert needs_hf_detr(model) == DROPPED_ACTIVATIONS
    config = config_of("detr", "ForObjectDetection")
    card = make_model_card(config, name="toy", description="", only_here=needs_hf_detr(model))
    assert card.data.library_name == "hf_detr" and not code_blocks(card)[1]
    assert DROPPED_ACTIVATIONS in card.text


@pytest.mark.parametrize("variant", ["conditional_detr", "deformable_detr", "dino_detr"])
def test_code_of_models_that_need_the_package_runs(
    variant: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The code in cards of unpublished segmentation models runs."""
    levels = {"num_mask_levels": 1} if variant in SAMPLED else {}
    config = config_of(variant, "ForSegmentation", **levels)
    write_model(config, tmp_path / "toy")
    shutil.copy(IMAGE, tmp_path / "image.jpg")
    monkeypatch.chdir(tmp_path)
    for block in code_blocks(make_model_card(config, name="toy", description=""))[0]:
        run_block(block)


def test_configuration_shows_what_differs() -> None:
    """Exactly the fields that differ from the defaults are listed."""
    config = config_of("deformable_detr", with_box_refine=True, kernel="torch", num_labels=2)
    text = make_model_card(config, name="toy", description="").text
    for row in ("| `backbone` | `test_resnet` | `resnet50` |", "| `d_model` | `64` | `256` |"):
        assert row in text
    assert "| `with_box_refine` | `True` | `False` |" in text
    # Defaults, the kernel option and general fields.
    for name in ("two_stage", "num_labels", "kernel", "architectures", "backbone_config"):
        assert f"| `{name}` |" not in text
    default = hf_detr.DetrConfig(architectures=["DetrForObjectDetection"])
    assert (
        "The defaults of `hf_detr.DetrConfig`."
        in make_model_card(default, name="toy", description="").text
    )


def test_published_and_measured_results() -> None:
    """Published results have a source; in the metadata, measured results replace them."""
    measured = CardResults({"AP": 0.41}, "COCO 2017 val", "coco")
    own = CardResults({"AP50": 0.9}, "toys", "toys")
    arguments = {"name": "toy", "description": "", "evaluation": "On one CPU."}
    text = make_model_card(config_of(), results=[measured, AP, own], **arguments).text
    published, rest = text.split("## Published results")[1].split("## Measured results")
    assert "[paper](https://a.b/c)" in published and "| AP small | 20.5 |" in published
    assert "| AP | 0.41 |" in rest and "| AP50 | 0.9 |" in rest and "On one CPU." in rest

    data = make_model_card(config_of(), results=[measured, AP, own], **arguments).data
    assert [(one.metric_name, one.metric_value) for one in data.eval_results] == [
        ("AP", 0.41),
        ("AP50", 0.9),
    ]
    data = make_model_card(config_of(), results=[AP], **arguments).data
    assert [(one.metric_type, one.source_url) for one in data.eval_results] == [
        ("ap", "https://a.b/c"),
        ("ap_small", "https://a.b/c"),
    ]


def test_optional_parts() -> None:
    """Licence, base model, data and results are in the card only if given."""
    card = make_model_card(config_of(), name="toy", description="A toy.")
    for key in ("license", "base_model", "datasets", "model-index"):
        assert key not in card.data.to_dict()
    assert "No licence is given" in card.text and "results" not in card.text
    assert "at most 7 objects" in card.text
    card = make_model_card(
        config_of("deformable_detr", with_box_refine=True, two_stage=True),
        name="toy",
        description="",
        license="mit",
        base_model="facebook/detr-resnet-50",
        datasets=["toys"],
        training="By hand.",
        limits="Toys only.",
    )
    check_metadata(card)
    assert (card.data.license, card.data.base_model) == ("mit", "facebook/detr-resnet-50")
    assert card.data.datasets == ["toys"]
    assert "Toys only." in card.text
    assert "## Training\n\nBy hand.\n" in card.text


@pytest.mark.parametrize(
    ("variant", "kind", "options", "expected"),
    [
        ("detr", "ForObjectDetection", {"num_queries": 400}, 400),
        ("conditional_detr", "ForObjectDetection", {"num_queries": 300}, 100),
        ("conditional_detr", "ForSegmentation", {"num_queries": 300}, 300),
        ("deformable_detr", "ForObjectDetection", {"num_queries": 7, "num_labels": 5}, 35),
        (
            "deformable_detr",
            "ForSegmentation",
            {"with_box_refine": True, "two_stage": True, "two_stage_num_proposals": 500},
            500,
        ),
        ("dino_detr", "ForObjectDetection", {"num_queries": 900}, 300),
        ("dino_detr", "ForObjectDetection", {"num_queries": 40, "num_labels": 5}, 200),
    ],
)
def test_limit_is_what_post_processing_returns(
    variant: str, kind: str, options: dict[str, Any], expected: int
) -> None:
    """The card's number of objects is that of predictions, if these aren't more than queries."""
    config = config_of(variant, kind, **options)
    card = make_model_card(config, name="toy", description="")
    most = min(expected, config.queries_per_image)  # a query with several classes is one object
    assert f"at most {most} objects per image" in card.text
    assert ("`top_k`" in card.text) == (expected < config.queries_per_image)
    processor = class_of(variant, "ImageProcessor")()
    num_logits = 6 if variant == "detr" else config.num_labels
    outputs = SimpleNamespace(
        logits=torch.zeros(1, config.queries_per_image, num_logits),
        pred_boxes=torch.full((1, config.queries_per_image, 4), 0.5),
        pred_masks=torch.eye(config.queries_per_image)[None, :, None] * 100 - 50,
    )
    if kind == "ForSegmentation":
        (result,) = processor.post_process_instance_segmentation(outputs, 0.0, 0.1)
        found = result["segments_info"]
    else:
        found = processor.post_process_object_detection(outputs, 0.0)[0]["scores"]
    assert len(found) == expected


def test_tables_keep_their_columns() -> None:
    """A class called "a|b" is one cell."""
    table = markdown_table(("class", "AP"), [("a|b", 0.5)])
    assert table == "| class | AP |\n| --- | --- |\n| a\\|b | 0.5 |"


@pytest.mark.parametrize("architectures", [None, [], ["DetrModel"]])
def test_configuration_without_a_task(architectures: list[str] | None) -> None:
    """A configuration without a detector's class is rejected."""
    config = config_of()
    config.architectures = architectures
    with pytest.raises(ValueError, match="save the model first"):
        make_model_card(config, name="toy", description="")
