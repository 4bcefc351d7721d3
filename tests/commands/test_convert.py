"""`hf-detr convert`: both directions, exit statuses, messages."""

import json
from pathlib import Path

import pytest
import torch

from hf_detr.checkpoints.official_checkpoints import export_official_checkpoint
from hf_detr_command_line import main as run

from ..tiny import tiny_detector


def main(arguments: list[str]) -> int:
    """`hf-detr convert` with these arguments."""
    return run(["convert", *arguments])


@pytest.fixture(scope="module")
def bare_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Official weights without options, with a name that doesn't tell them."""
    folder = tmp_path_factory.mktemp("official")
    tiny_detector("detr", backbone="resnet18").save_pretrained(folder / "hub")
    export_official_checkpoint(folder / "hub", folder / "model.pth")
    weights = torch.load(folder / "model.pth", weights_only=True)["model"]
    torch.save({"model": weights}, folder / "model.pth")
    return folder / "model.pth"


def test_there_and_back(bare_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    """Both directions, with options that weights don't show and class names."""
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


def test_refusals(bare_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    """Failures have status 1 or 2, a message, and write nothing."""
    source, target = str(bare_file), str(tmp_path / "hub")
    assert main([source, target]) == 1
    err = capsys.readouterr().err
    assert err.startswith("ERROR: Dilation of the backbone") and err.count("\n") == 1
    assert main([str(tmp_path), target]) == 1
    assert "is a folder; expected a .pth" in capsys.readouterr().err
    told = ["--no-dilation", "--num-heads", "4"]
    assert main([source, str(bare_file.parent), *told]) == 1
    assert "exists; choose another name" in capsys.readouterr().err
    assert main(["--to-official", str(tmp_path), source]) == 1
    for text in ("cat", "5", '{"first": "cat"}'):
        (tmp_path / "labels.json").write_text(text)
        labels = str(tmp_path / "labels.json")
        check_mistake([source, target, "--labels", labels], "doesn't contain class names", capsys)
    check_mistake([str(tmp_path / "none.pth"), target], "none.pth doesn't exist", capsys)
    check_mistake([source, target, "--num-heads", "0"], "isn't an integer of at least 1", capsys)
    assert [path.name for path in tmp_path.iterdir()] == ["labels.json"]


def check_mistake(given: list[str], message: str, capsys: pytest.CaptureFixture) -> None:
    with pytest.raises(SystemExit) as ended:
        main(given)
    assert ended.value.code == 2 and message in capsys.readouterr().err
