"""Tests the command: both directions, exit statuses and messages."""

import json
import runpy
import sys
from pathlib import Path

import pytest
import torch

import hf_detr
from hf_detr.checkpoint_conversion import main
from hf_detr.official_checkpoints import export_official_checkpoint

from .tiny import tiny_detector


@pytest.fixture(scope="module")
def bare_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Official weights without options, with an unpublished name."""
    folder = tmp_path_factory.mktemp("official")
    tiny_detector("detr", backbone="resnet18").save_pretrained(folder / "hub")
    export_official_checkpoint(folder / "hub", folder / "model.pth")
    weights = torch.load(folder / "model.pth", weights_only=True)["model"]
    torch.save({"model": weights}, folder / "model.pth")
    return folder / "model.pth"


def test_both_directions(bare_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    """Both directions, with options for dilation, heads and class names."""
    hub, back, labels = tmp_path / "hub", tmp_path / "back.pth", tmp_path / "labels.json"
    labels.write_text('["a", "b", "c", "d", "e"]')
    options = ["--no-dilation", "--num-heads", "4", "--labels", str(labels)]
    assert main([str(bare_file), str(hub), *options]) == 0
    out = capsys.readouterr().out
    assert "DetrForObjectDetection: resnet18 without dilation, 4 heads, 7 queries, 5 labels" in out
    assert json.loads((hub / "config.json").read_text())["id2label"]["4"] == "e"
    expected_files = ["README.md", "config.json", "model.safetensors", "preprocessor_config.json"]
    assert sorted(path.name for path in hub.iterdir()) == expected_files
    card = (hub / "README.md").read_text()
    assert "Converted by hf_detr from `model.pth`" in card and "Published results" not in card
    assert main(["--to-official", str(hub), str(back)]) == 0
    weights, expected = (torch.load(f, weights_only=True)["model"] for f in (back, bare_file))
    assert weights.keys() == expected.keys()
    assert all(torch.equal(weights[name], expected[name]) for name in weights)


def test_errors(bare_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    """Errors exit with status 1 and a message, and nothing is written."""
    source, target = str(bare_file), str(tmp_path / "hub")
    assert main([source, target]) == 1
    err = capsys.readouterr().err
    assert err.startswith("ERROR: Dilation of the backbone") and err.endswith(
        "Nothing was written.\n"
    )
    assert main([str(tmp_path), target]) == 1
    assert "is a folder; expected a .pth" in capsys.readouterr().err
    assert main([str(tmp_path / "none.pth"), target]) == 1
    assert "There is no file" in capsys.readouterr().err
    options = ["--no-dilation", "--num-heads", "4"]
    assert main([source, str(bare_file.parent), *options]) == 1
    assert "isn't empty" in capsys.readouterr().err
    assert main(["--to-official", str(tmp_path), source]) == 1
    for text in ("cat", "5", '{"first": "cat"}'):
        (tmp_path / "labels.json").write_text(text)
        assert main([source, target, *options, "--labels", str(tmp_path / "labels.json")]) == 1
        assert "labels.json doesn't name classes" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["labels.json"]


def test_runs_as_a_module(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> None:
    """`python -m` runs the module; Python would warn if the package imported it."""
    name = "hf_detr.checkpoint_conversion"
    assert ".checkpoint_conversion import" not in Path(hf_detr.__file__).read_text()
    monkeypatch.delitem(sys.modules, name)
    monkeypatch.setattr(sys, "argv", [name, "--help"])
    with pytest.raises(SystemExit) as ended:
        runpy.run_module(name, run_name="__main__")
    assert ended.value.code == 0
    assert "--to-official" in capsys.readouterr().out
