"""`hf-detr doctor` shows what is installed, and names what is wrong."""

import json
from pathlib import Path

import pytest
import torch

from hf_detr.commands.doctor import diagnose
from hf_detr.ops.compiled_attention import find_operators
from hf_detr.ops.kernel_build import compiler_identity
from hf_detr.ops.kernel_loader import cache_folder
from hf_detr_command_line import main as run


def main(arguments: list[str]) -> int:
    """`hf-detr doctor` with these arguments."""
    return run(["doctor", *arguments])


def install(folder: Path, *requirements: str) -> None:
    """Write the metadata of an installed hf_detr with these requirements."""
    info = folder / "hf_detr-0.0.dist-info"
    info.mkdir()
    lines = ["Metadata-Version: 2.1", "Name: hf_detr", "Version: 0.0"]
    lines += [f"Requires-Dist: {requirement}" for requirement in requirements]
    (info / "METADATA").write_text("\n".join(lines) + "\n")


def test_working_machine(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    """Status 0, only JSON on stdout, and the operator's state as the package reports it."""
    install(tmp_path, "torch>=2", "numpy", 'no-such-package>=3; extra == "train"')
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setenv("HF_DETR_REGISTER", "1")
    assert main(["--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["packages"]["torch"] == torch.__version__.split("+")[0]
    assert found["optional_packages"] == {"no-such-package": "not installed"}
    namespace, reason = find_operators("cpu")
    operator = found["operator"]["cpu"]
    assert operator.startswith("works (") if namespace else operator.endswith(reason)
    assert found["operator"]["C++ compiler"] == (compiler_identity("cpu") or "none found")
    assert found["settings"]["Auto classes return"] == "hf_detr's classes"
    assert found["settings"]["offline"].startswith("yes")
    assert found["settings"]["HF_DETR_REGISTER"] == "1"
    assert found["folders"]["compiled operators"].startswith(str(cache_folder()))


def test_what_is_missing_or_too_old(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    """Status 1, and a command that fixes it."""
    install(tmp_path, "torch>=999", "no-such-package", 'numpy<1; extra == "train"')
    monkeypatch.syspath_prepend(tmp_path)
    problems = diagnose()["problems"]
    assert [problem.split(":")[0] for problem in problems] == ["torch", "no-such-package", "numpy"]
    assert "pip install 'torch>=999'" in problems[0]
    assert main([]) == 1
    assert "PROBLEM: no-such-package: not installed" in capsys.readouterr().out
