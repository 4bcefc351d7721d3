"""Settings and fixtures shared by all tests."""

import os
from collections import Counter

os.environ.setdefault("HF_HUB_OFFLINE", "1")

from pathlib import Path

import pytest
import torch

from hf_detr.models.deformable_detr import modeling_deformable_detr
from hf_detr.models.dino import modeling_dino

from .operator_cases import require_compiled
from .tiny import PREFIXES


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Start files with many slow tests first: none should be left for one process at the end."""
    slow = Counter(item.path for item in items if item.get_closest_marker("slow"))
    items.sort(key=lambda item: -slow[item.path])


@pytest.fixture(scope="session")
def reference_dir() -> Path:
    """Folder of reference cases beside the repository; skips the test if it doesn't exist."""
    path = Path(__file__).resolve().parents[2] / "shared" / "reference"
    if not path.is_dir():
        pytest.skip(f"{path} with the reference cases doesn't exist")
    return path


@pytest.fixture
def original_proposals(monkeypatch: pytest.MonkeyPatch) -> None:
    """Rank tokens that propose nothing as in the original code.

    Random weights, such as the recordings', may give them high scores.
    """
    for module in (modeling_deformable_detr, modeling_dino):
        monkeypatch.setattr(module, "without_proposals", lambda class_logits, valid: class_logits)


@pytest.fixture(params=PREFIXES)
def variant(request: pytest.FixtureRequest) -> str:
    """Model type of each variant."""
    return request.param


@pytest.fixture(scope="session", params=["required", "cuda"])
def compiled(request: pytest.FixtureRequest) -> str:
    """The compiled operator on each device, as `operator_cases.attend` calls it."""
    require_compiled(request.param)
    return request.param


@pytest.fixture(params=["required", "cuda", "embedding_bag", "grid_sample"])
def kernel(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """The operator's `kernel` argument: compiled, torch on CPU, and torch in exports."""
    if request.param in ("required", "cuda"):
        require_compiled(request.param)
        return request.param
    if request.param == "grid_sample":
        monkeypatch.setattr(torch.compiler, "is_exporting", lambda: True)
    return "torch"
