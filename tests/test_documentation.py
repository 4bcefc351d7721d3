"""README.md and docs/: Python blocks run, commands exist, links lead somewhere."""

import re
import shlex
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import hf_detr
from hf_detr.compiled_attention import find_operators
from hf_detr_command_line import COMMANDS

from .test_model_card import write_model
from .tiny import PREFIXES, tiny_config

REPOSITORY = Path(__file__).parents[1]
PAGES = [REPOSITORY / "README.md", *sorted((REPOSITORY / "docs").glob("*.md"))]
# It talks to the Hub, so it runs where there is one: in hub_checks.py.
ELSEWHERE = {"publishing.md"}
COCO = {"image_id": 1, "bbox": [10, 20, 30, 40], "category_id": 1, "area": 1200, "iscrowd": 0}


def blocks(page: Path, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", page.read_text(), re.DOTALL | re.MULTILINE)


def write_folder(
    folder: Path, variant: str, kind: str = "ForObjectDetection", **changes: Any
) -> Path:
    """A small model and its processor, where a page looks for them."""
    config = tiny_config(variant, architectures=[PREFIXES[variant] + kind], **changes)
    write_model(config, folder)
    return folder


def panoptic_samples(folder: Path) -> tuple[list[Image.Image], list[dict]]:
    """Two images with panoptic annotations; their PNGs are in `folder`."""
    folder.mkdir()
    annotations = []
    for number in range(2):
        segment_ids = np.zeros((48, 64, 3), np.uint8)
        segment_ids[8:40, 8:40, 0] = 1
        Image.fromarray(segment_ids).save(folder / f"{number}.png")
        segment = {"id": 1, "category_id": 1, "bbox": [8, 8, 32, 32], "area": 1024, "iscrowd": 0}
        annotations.append(
            {"image_id": number, "file_name": f"{number}.png", "segments_info": [segment]}
        )
    return [Image.new("RGB", (64, 48), "gray") for _ in range(2)], annotations


@pytest.fixture
def names_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], dict[str, Any]]:
    """A folder with what blocks load, and for each block the names that the text takes as given."""
    write_folder(tmp_path / "facebook" / "detr-resnet-50", "detr", "ForObjectDetection")
    write_folder(tmp_path / "deformable", "deformable_detr", "ForObjectDetection")
    masks = {"d_model": 128, "encoder_attention_heads": 8, "decoder_attention_heads": 8}
    write_folder(tmp_path / "panoptic", "detr", "ForSegmentation", num_labels=91, **masks)
    shutil.copytree(REPOSITORY / "examples" / "images", tmp_path / "examples" / "images")
    segments = panoptic_samples(tmp_path / "panoptic_pngs")
    monkeypatch.chdir(tmp_path)
    images = [Image.new("RGB", (96, 64), "gray")]
    annotations = [{"image_id": 1, "annotations": [COCO]}]
    everywhere = {"batches": [(images, annotations)], "hf_detr": hf_detr}

    def names(block: str) -> dict[str, Any]:
        if "panoptic" in block:
            model = hf_detr.DetrForSegmentation.from_pretrained("panoptic").train()
            given = {"folder": "panoptic", "model": model, **vars_of(*segments)}
        else:
            given = {"folder": "deformable", **vars_of(images, annotations)}
        return {**everywhere, **given}

    return names


def vars_of(images: list[Image.Image], annotations: list[dict]) -> dict[str, Any]:
    return {"images": images, "annotations": annotations}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_python_runs(page: Path, names_for: Callable[[str], dict[str, Any]]) -> None:
    """Protects readers from code that doesn't run; a page's blocks build on each other."""
    names: dict[str, Any] = {}
    for block in blocks(page, "python") if page.name not in ELSEWHERE else []:
        if '"required"' in block and find_operators("cpu")[0] is None:
            continue  # there is no compiler on this machine
        names |= names_for(block)
        exec(compile(block, page.name, "exec"), names)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_commands_exist(page: Path) -> None:
    """Scripts and modules in commands are there, and know the options that they are given."""
    for line in "\n".join(blocks(page, "sh")).replace("\\\n", " ").splitlines():
        for command in line.split("&&"):
            check_command(shlex.split(command, comments=True))


def check_command(words: list[str]) -> None:
    scripts = [word for word in words if word.startswith("examples/") and word.endswith(".py")]
    modules = [word for word in words if word.startswith("hf_detr.")]
    if words[:1] == ["hf-detr"]:
        words = [COMMANDS[words[1]][0], *words[2:]]
        modules = words[:1]
    if not scripts and not modules:
        return
    name = (scripts + modules)[0]
    path = REPOSITORY / (name if scripts else f"{name.replace('.', '/')}.py")
    source = path.read_text()
    for further in ("training_options", "command_options", "data_formats"):
        if further in source:
            source += (path.parent / f"{further}.py").read_text()
    for word in words[words.index(name) :]:
        if word.startswith("--"):
            option = word[2:].split("=")[0]
            assert re.search(rf"\b{option}\b|\b{option.replace('-', '_')}\b", source), (name, word)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path) -> None:
    """Links within the repository, pictures included."""
    for target in re.findall(r"\]\(([^)\s]+)\)", page.read_text()):
        if not target.startswith(("http://", "https://", "#")):
            assert (page.parent / target.split("#")[0]).exists(), target
