"""Runs of the demo: what can't be read is said in words."""

from pathlib import Path

import pytest

from hf_detr.inference.model_loading import embedded_model_folder
from hf_detr.plots.demo_run import look

from ..test_documentation import REPOSITORY

IMAGE = REPOSITORY / "examples" / "images" / "garments.jpg"


@pytest.mark.parametrize("content", ["no image", "half of one", "nothing"])
def test_unreadable_upload(tmp_path: Path, content: str) -> None:
    """The message has the file's name, but no folder of the server."""
    whole = IMAGE.read_bytes()
    upload = tmp_path / "my cat.jpg"
    upload.write_bytes({"no image": b"text", "nothing": b""}.get(content, whole[: len(whole) // 2]))
    run, said = look(str(embedded_model_folder()), str(upload))
    assert run is None and "my cat.jpg can't be read" in said
    assert str(tmp_path) not in said
