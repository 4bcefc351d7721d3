"""README.md and docs/: Python blocks run, commands exist, links work."""

import ast
import re
import shlex
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import transformers
from PIL import Image

import hf_detr
from hf_detr.inference.export import export_model
from hf_detr.ops.compiled_attention import find_operators

from .checkpoints.test_model_card import write_model
from .some_data import entry, write_coco
from .tiny import PREFIXES, tiny_config
from .transformers_differences import differences

REPOSITORY = Path(__file__).parents[1]
PAGES = [REPOSITORY / "README.md", *sorted((REPOSITORY / "docs").glob("*.md"))]
# It talks to the Hub, so it runs where there is one: in hub_checks.py.
ELSEWHERE = {"publishing.md"}
# Blocks that import these are skipped where they aren't installed.
OTHER_LIBRARIES = ("supervision", "trackers", "sahi", "onnxruntime")
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
    detr = write_folder(tmp_path / "facebook" / "detr-resnet-50", "detr", "ForObjectDetection")
    write_folder(tmp_path / "deformable", "deformable_detr", "ForObjectDetection")
    masks = {"d_model": 128, "encoder_attention_heads": 8, "decoder_attention_heads": 8}
    write_folder(tmp_path / "panoptic", "detr", "ForSegmentation", num_labels=91, **masks)
    shutil.copytree(REPOSITORY / "examples" / "images", tmp_path / "examples" / "images")
    for seed, split in enumerate(("train", "val")):
        write_coco(tmp_path / "data" / "mine" / split, [entry(1)], seed=100 * seed)
    segments = panoptic_samples(tmp_path / "panoptic_pngs")
    monkeypatch.chdir(tmp_path)
    images = [Image.new("RGB", (96, 64), "gray")]
    annotations = [{"image_id": 1, "annotations": [COCO]}]
    everywhere = {"batches": [(images, annotations)], "hf_detr": hf_detr}

    def names(block: str) -> dict[str, Any]:
        if "detr.onnx" in block:
            export_model(hf_detr.DetrForObjectDetection.from_pretrained(detr), "detr.onnx")
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
        for library in OTHER_LIBRARIES:
            if re.search(rf"^(from|import) {library}\b", block, re.MULTILINE):
                pytest.importorskip(library)
        names |= names_for(block)
        exec(compile(block, page.name, "exec"), names)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_commands_exist(page: Path) -> None:
    """Scripts and commands exist, and have the options that are given."""
    for line in "\n".join(blocks(page, "sh")).replace("\\\n", " ").splitlines():
        for command in line.split("&&"):
            check_command(shlex.split(command, comments=True))


def check_command(words: list[str]) -> None:
    paths = [
        REPOSITORY / (f"hf_detr/commands/{words[i + 1]}.py" if is_command else word)
        for i, word in enumerate(words)
        if (is_command := Path(word).name == "hf-detr") or word.startswith("examples/")
    ]
    source = "".join(source_with_imports(path) for path in paths if path.suffix == ".py")
    for word in words if source else []:
        if word.startswith("--") and word != "--num_processes":  # this one is accelerate's
            option = word[2:].split("=")[0]
            assert re.search(rf"\b{option}\b|\b{option.replace('-', '_')}\b", source), words


def source_with_imports(path: Path) -> str:
    """A file's text and that of the files beside it, or in its package, that it imports from."""
    source = path.read_text()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.ImportFrom) and node.module:
            folder = path.parents[max(node.level - 1, 0)]
            imported = folder / f"{node.module.replace('.', '/')}.py"
            source += imported.read_text() if imported.is_file() else ""
    return source


def test_readme_is_a_first_page() -> None:
    """It stays short, with one command for the tests, which CI reads from it."""
    lines = blocks(REPOSITORY / "README.md", "sh")
    commands = [line for line in "".join(lines).splitlines() if line.startswith("python3 -m venv")]
    assert len(commands) == 2 and sum(line.endswith("pytest") for line in commands) == 1
    assert len((REPOSITORY / "README.md").read_text().splitlines()) <= 150


def test_figures_are_the_cards() -> None:
    """Every figure in the README's table of models is on the card that it links to."""
    text = (REPOSITORY / "README.md").read_text()
    figures = re.findall(r"\[([\d.]+)\]\((model_cards/\S+?\.md)\)", text)
    cards = (REPOSITORY / "model_cards").glob("*.md")
    published = {card.name for card in cards if "## Published results" in card.read_text()}
    assert {Path(card).name for _, card in figures} == published
    for figure, card in figures:
        name = "PQ" if "panoptic" in card else "AP"
        assert f"| {name} | {figure} |" in (REPOSITORY / card).read_text(), card


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_pages_are_in_the_index(page: Path) -> None:
    """docs/README.md links to every page of docs/."""
    index = (REPOSITORY / "docs" / "README.md").read_text()
    assert page.name == "README.md" or f"]({page.name})" in index


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_work(page: Path) -> None:
    """Links within the repository lead to files, and to headings that are there."""
    for target in re.findall(r"\]\(([^)\s]+)\)", page.read_text()):
        if not target.startswith(("http://", "https://")):
            name, _, anchor = target.partition("#")
            path = page.parent / name if name else page
            assert path.exists(), target
            assert not anchor or anchor in anchors(path), target


def anchors(page: Path) -> set[str]:
    """GitHub's names of a page's headings."""
    headings = re.findall(r"^#+ (.+)$", page.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def test_differences_from_transformers_are_listed() -> None:
    """docs/moving.md has each difference of names, arguments and outputs, and no others."""
    page = (REPOSITORY / "docs" / "moving.md").read_text()
    start = page.index("| difference | instead |")
    listed = re.findall(r"^\| (.*?) \|", page[start : page.index("\n\n", start)], re.MULTILINE)[1:]
    found = differences()
    assert not [line for line in found if line not in listed]
    if f"version {'.'.join(transformers.__version__.split('.')[:2])}." in page:
        assert not [line for line in listed if line not in found]
