"""Settings and fixtures that all tests share."""

import os

os.environ.setdefault("HF_HUB_OFFLINE", "1")

from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def reference_dir() -> Path:
    """Golden cases beside the repository; a test that needs them is skipped where they lack."""
    path = Path(__file__).resolve().parents[2] / "shared" / "reference"
    if not path.is_dir():
        pytest.skip(f"the reference cases are not at {path}")
    return path


@pytest.fixture(params=["detr", "conditional_detr", "deformable_detr"])
def variant(request: pytest.FixtureRequest) -> str:
    """Every variant in turn, by its model type."""
    return request.param
