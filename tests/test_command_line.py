"""The command `hf-detr`: its list, its commands, its speed."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from hf_detr_command_line import COMMANDS, main

REPOSITORY = Path(__file__).parents[1]


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_help(command: str, capsys: pytest.CaptureFixture) -> None:
    """Each names itself as it is called, and tells its exit statuses."""
    with pytest.raises(SystemExit) as ended:
        main([command, "--help"])
    assert ended.value.code == 0
    out = " ".join(capsys.readouterr().out.split())  # lines break where the screen ends
    assert out.startswith(f"usage: hf-detr {command} ") and "exit status" in out.lower()


def test_mistakes_are_status_2(capsys: pytest.CaptureFixture) -> None:
    """A command that isn't there, or none."""
    for given in (["predicted"], []):
        with pytest.raises(SystemExit) as ended:
            main(given)
        assert ended.value.code == 2 and "COMMAND" in capsys.readouterr().err


def test_list_of_commands_waits_for_nothing() -> None:
    """`hf-detr --help` imports neither torch nor this package."""
    code = (
        "import sys\nfrom hf_detr_command_line import main\n"
        "try: main(['--help'])\nexcept SystemExit: pass\n"
        "assert not {'torch', 'transformers', 'hf_detr'} & set(sys.modules)"
    )
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert all(name in done.stdout for name in COMMANDS)


def test_any_name_of_a_file_is_printed(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    """Names that are no text in any encoding are told with escapes, and stop nothing."""
    image = REPOSITORY / "examples" / "images" / "garments.jpg"
    try:
        shutil.copy(image, os.fsencode(tmp_path) + b"/caf\xe9.jpg")
    except OSError:
        pytest.skip("this file system takes names in Unicode only")
    assert main(["predict", str(tmp_path), "--output", str(tmp_path / "output")]) == 0
    assert "caf\\udce9.jpg: " in capsys.readouterr().out
    report = json.loads((tmp_path / "output" / "predictions.json").read_text())
    assert os.fsencode(report["images"][0]["file"]).endswith(b"caf\xe9.jpg")


def test_reader_that_went_away() -> None:
    """A closed pipe is one line on stderr, and status 1."""
    command = [sys.executable, "-m", "hf_detr", "doctor", "--json"]
    read, write = os.pipe()
    os.close(read)
    done = subprocess.run(command, cwd=REPOSITORY, stdout=write, stderr=subprocess.PIPE, text=True)
    os.close(write)
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1] == "ERROR: [Errno 32] Broken pipe"
    assert "Traceback" not in done.stderr and "Exception ignored" not in done.stderr


def test_runs_as_a_program(tmp_path: Path) -> None:
    """`python -m hf_detr` predicts with the embedded model; nothing but JSON is on stdout."""
    image = REPOSITORY / "examples" / "images" / "garments.jpg"
    command = [sys.executable, "-m", "hf_detr", "predict", image, "--output", tmp_path, "--json"]
    done = subprocess.run(
        [str(part) for part in command],
        cwd=REPOSITORY,
        env={**os.environ, "HF_HUB_OFFLINE": "1"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    objects = json.loads(done.stdout)["images"][0]["objects"]
    assert {"bag", "trouser", "coat"} < {one["label"] for one in objects}
    assert (tmp_path / "garments.png").is_file()
