"""Tests published checkpoints, the cards in model_cards/ and the model in the package."""

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from huggingface_hub import ModelCard
from PIL import Image
from safetensors.torch import load_file
from transformers import AutoConfig, AutoModelForObjectDetection, pipeline

from hf_detr import (
    ConditionalDetrForObjectDetection,
    ConditionalDetrImageProcessor,
    DeformableDetrForObjectDetection,
    embedded_model_folder,
)
from hf_detr.checkpoints.published_checkpoints import (
    PublishedCheckpoint,
    find_published_checkpoint,
    make_published_card,
    published_checkpoints,
)
from hf_detr.inference.record_attention import record_attention
from hf_detr.ops.box_ops import box_iou

from .test_model_card import IMAGE, check_metadata, code_blocks, config_of, run_block, write_model

REPOSITORY = Path(__file__).parents[2]
CARDS = REPOSITORY / "model_cards"
# The package's own models, and garments that each has to find
GARMENTS = {"deformable-detr-garments": {"coat"}, "conditional-detr-garments": {"trouser", "bag"}}
PUBLISHED = published_checkpoints()
# Objects in the image as (left, top, width, height).
EXPECTED_BOXES = {
    "coat": (197, 243, 64, 88),
    "trouser": (23, 55, 41, 92),
    "ankle boot": (370, 66, 85, 78),
    "t-shirt/top": (195, 62, 69, 88),
    "sneaker": (22, 222, 90, 43),
    "bag": (348, 229, 86, 99),
}
# Runs code blocks, each in its folder, in a process without hf_detr.
RUN_PLAIN = """
import json, os, sys
for folder, code in json.load(sys.stdin):
    os.chdir(folder)
    names = {}
    exec(code, names)
    model = (names.get("predict") or names["detector"]).model
    assert type(model).__module__.startswith("transformers."), type(model)
assert "hf_detr" not in sys.modules
"""


def needs_package(path: Path) -> bool:
    """Whether plain transformers can't load a card's model: DINO, and the garments' backbone."""
    return path.stem in GARMENTS or path.stem.startswith("dino-")


def card_file(checkpoint: PublishedCheckpoint) -> Path:
    return CARDS / f"{checkpoint.name.split('/')[-1]}.md"


def small_config(checkpoint: PublishedCheckpoint) -> Any:
    """The checkpoint's configuration with small sizes."""
    options = {name: value for name, value in checkpoint.options.items() if name != "backbone"}
    if "two_stage" in options:
        options["two_stage_num_proposals"] = 7
    kind = "ForSegmentation" if checkpoint.has_masks else "ForObjectDetection"
    num_labels = checkpoint.make_config().num_labels
    return config_of(checkpoint.family, kind, num_labels=num_labels, **options)


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a small model for the card of each published checkpoint."""
    folder = tmp_path_factory.mktemp("models")
    for checkpoint in PUBLISHED:
        write_model(small_config(checkpoint), folder / checkpoint.name)
    shutil.copy(IMAGE, folder / "image.jpg")
    return folder


def test_each_checkpoint_has_its_card() -> None:
    """The cards are exactly those that make_cards.py writes."""
    assert {path.stem for path in CARDS.glob("*.md")} == {
        *(card_file(checkpoint).stem for checkpoint in PUBLISHED),
        *(*GARMENTS, "README"),
    }
    for checkpoint in PUBLISHED:
        written = card_file(checkpoint).read_text(encoding="utf-8")
        assert written == str(make_published_card(checkpoint)), "run model_cards/make_cards.py"


@pytest.mark.parametrize("path", sorted(set(CARDS.glob("*.md")) - {CARDS / "README.md"}), ids=str)
def test_cards_are_complete(path: Path) -> None:
    """Every card has the metadata and sections it needs."""
    card = ModelCard.load(path)
    check_metadata(card)
    assert card.data.library_name == ("hf_detr" if needs_package(path) else "transformers")
    assert card.data.license == ("mit" if "table" in path.stem else "apache-2.0")
    has_results = "v1.1" not in path.stem  # whose authors published none
    assert card.data.datasets and bool(card.data.eval_results) == has_results
    plain = "The model needs hf_detr" if needs_package(path) else "In plain transformers"
    for part in ("import hf_detr", plain, "## Limits", "## Licence", "config"):
        assert part in card.text


@pytest.mark.parametrize("checkpoint", PUBLISHED, ids=lambda checkpoint: checkpoint.name)
def test_code_runs(
    checkpoint: PublishedCheckpoint, models: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The code in cards runs offline with small models of the same architecture."""
    file = card_file(checkpoint)
    here, plain = code_blocks(ModelCard.load(file))
    assert len(here) == 2 and len(plain) == (not needs_package(file))
    monkeypatch.chdir(models)
    for block in here:
        run_block(block)


@pytest.mark.parametrize("card", GARMENTS)
def test_code_of_our_own_models_runs(card: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The code in the cards of the package's models detects a garment."""
    (block,), () = code_blocks(ModelCard.load(CARDS / f"{card}.md"))
    monkeypatch.chdir(REPOSITORY)
    names: dict[str, Any] = {}
    exec(block, names)
    assert {found["label"] for found in names["detections"]} >= GARMENTS[card]


def test_plain_code_runs(models: Path) -> None:
    """The code in cards for plain transformers runs without hf_detr."""
    cards = [file for file in map(card_file, PUBLISHED) if not needs_package(file)]
    jobs = [(str(models), *code_blocks(ModelCard.load(card))[1]) for card in cards]
    result = subprocess.run(
        [sys.executable, "-c", RUN_PLAIN], input=json.dumps(jobs), capture_output=True, text=True
    )
    assert result.returncode == 0, result.stderr


@pytest.mark.slow
def test_code_runs_on_the_real_size(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The code of one card runs with the full model and the paper's image size."""
    checkpoint = PUBLISHED[0]
    size = {"shortest_edge": 800, "longest_edge": 1333}
    write_model(checkpoint.make_config(), tmp_path / checkpoint.name, size)
    shutil.copy(IMAGE, tmp_path / "image.jpg")
    monkeypatch.chdir(tmp_path)
    for block in code_blocks(ModelCard.load(card_file(checkpoint)))[0]:
        run_block(block)


def test_files_are_found_by_name() -> None:
    """File names identify published checkpoints."""
    files = [checkpoint.file for checkpoint in PUBLISHED]
    assert len(set(files)) == len(files) == 31
    for checkpoint in PUBLISHED:
        assert find_published_checkpoint(Path("some/folder") / checkpoint.file) == checkpoint
    assert find_published_checkpoint("detr-r50.pth") is None


def test_repositories_and_folders_are_found(tmp_path: Path) -> None:
    """A name on the Hub, or a folder with the repository's name; not somebody else's repository."""
    for checkpoint in PUBLISHED:
        assert find_published_checkpoint(checkpoint.name) == checkpoint
    folder = tmp_path / "detr-resnet-50"
    assert find_published_checkpoint(folder) is None
    folder.mkdir()
    assert find_published_checkpoint(folder) == PUBLISHED[0]
    assert find_published_checkpoint("someone/detr-resnet-50") is None
    assert find_published_checkpoint("detr-resnet-50") is None


def test_what_is_compared() -> None:
    """Detectors by AP and panoptic models by PQ, if the figure is on COCO."""
    metrics = {one.name: one.main_metric for one in PUBLISHED if one.is_on_coco}
    assert metrics["facebook/detr-resnet-50"] == "AP"
    assert metrics["facebook/detr-resnet-50-panoptic"] == "PQ"
    assert not any("table" in name for name in metrics) and len(metrics) == 26


def test_card_of_a_conversion(tmp_path: Path) -> None:
    """A converted file has the published results and recipe, but its own configuration."""
    checkpoint = PUBLISHED[0]
    checkpoint.make_config().save_pretrained(tmp_path)
    config = AutoConfig.from_pretrained(tmp_path)
    config.dropout = 0.3
    card = make_published_card(checkpoint, config, name="me/detr")
    published = make_published_card(checkpoint)
    assert "converted by hf_detr" in card.text and "me/detr" in card.text
    assert checkpoint.name not in card.text and "| `dropout` | `0.3` | `0.1` |" in card.text
    for part in ("## Training", "## Published results", "## Measured results"):
        assert (
            card.text.split(part)[1].split("##")[0] == published.text.split(part)[1].split("##")[0]
        )


@pytest.mark.parametrize(
    "checkpoint", [one for one in PUBLISHED if one.recorded], ids=lambda checkpoint: checkpoint.name
)
def test_configurations_are_the_official_ones(
    checkpoint: PublishedCheckpoint, reference_dir: Path
) -> None:
    """Configurations equal the official ones of the recorded cases."""
    config = checkpoint.make_config()
    file = reference_dir / "official" / checkpoint.recorded / "case.json"
    official = json.loads(file.read_text())["architecture"]
    ours = {
        "backbone": config.backbone,
        "dilation": config.dilation,
        "num_queries": config.num_queries,
        "num_classes": config.num_labels,
        "dropout": config.dropout,
        "dim_feedforward": config.encoder_ffn_dim,
        "set_cost_class": config.class_cost,
    }
    for name in ("num_feature_levels", "with_box_refine", "two_stage"):
        if hasattr(config, name):
            ours[name] = getattr(config, name)
    assert ours == {name: official[name] for name in ours}


def test_package_model_detects_garments() -> None:
    """A pipeline with the package's model detects classes and boxes."""
    detect = pipeline("object-detection", model=str(embedded_model_folder()))
    assert type(detect.model) is DeformableDetrForObjectDetection
    detections = detect(Image.open(IMAGE), threshold=0.5)
    assert {detection["label"] for detection in detections} == set(EXPECTED_BOXES)
    for detection in detections:
        left, top, width, height = EXPECTED_BOXES[detection["label"]]
        true = torch.tensor([left, top, left + width, top + height]).float()
        iou, _ = box_iou(torch.tensor(list(detection["box"].values())).float(), true)
        assert iou > 0.7, detection


@pytest.mark.parametrize("attention", [False, True])
def test_package_models_load_in_float32(attention: bool) -> None:
    """Their files have float16 weights, for their size; without a dtype they aren't used in it."""
    folder = embedded_model_folder(attention)
    weights = load_file(folder / "model.safetensors").values()
    assert {weight.dtype for weight in weights} == {torch.float16}
    for options in ({}, {"dtype": "auto"}):
        model = AutoModelForObjectDetection.from_pretrained(folder, **options)
        assert {weight.dtype for weight in model.state_dict().values()} == {torch.float32}


def test_package_models_are_small() -> None:
    """Those in every installation have at most 15 MB together."""
    folders = [embedded_model_folder(attention) for attention in (False, True)]
    for folder in folders:
        names = {path.name for path in folder.iterdir()}
        assert names == {"config.json", "model.safetensors", "preprocessor_config.json"}
    assert sum((folder / "model.safetensors").stat().st_size for folder in folders) <= 15e6


def test_attention_of_the_package_model_is_on_objects() -> None:
    """What the demo shows without a network: queries attend to the objects that they find."""
    folder = embedded_model_folder(attention=True)
    model = ConditionalDetrForObjectDetection.from_pretrained(folder)
    processor = ConditionalDetrImageProcessor.from_pretrained(folder)
    [record] = record_attention(model, processor, str(IMAGE))
    found = record.best_queries(0.3)
    assert float(record.scores[found].min()) > 0.3 and len(found) >= 3
    sides = torch.tensor(record.query_maps(found).shape[:1:-1])  # (width, height) in cells
    for query, attention in zip(found, record.query_maps(found).mean(1), strict=True):
        box = record.boxes_xyxy[query] * (sides / record.size_wh).repeat(2)
        left, top = box[:2].floor().clamp(min=0).int().tolist()
        right, bottom = box[2:].ceil().int().tolist()
        inside = attention[top:bottom, left:right]
        share = inside.numel() / attention.numel()
        assert float(inside.sum() / attention.sum()) > 2 * share, record.name(query)
