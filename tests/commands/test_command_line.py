"""The command `hf-detr`: its list, its commands, what it imports when."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from hf_detr_command_line import COMMANDS, main

REPOSITORY = Path(__file__).parents[2]


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_help(command: str, capsys: pytest.CaptureFixture) -> None:
    """Each shows its usage and its exit statuses."""
    with pytest.raises(SystemExit) as ended:
        main([command, "--help"])
    assert ended.value.code == 0
    out = " ".join(capsys.readouterr().out.split())  # lines break where the screen ends
    assert out.startswith(f"usage: hf-detr {command} ") and "exit status" in out.lower()


def test_mistakes_are_status_2(capsys: pytest.CaptureFixture) -> None:
    """An unknown command, or none."""
    for given in (["predicted"], []):
        with pytest.raises(SystemExit) as ended:
            main(given)
        assert ended.value.code == 2 and "COMMAND" in capsys.readouterr().err


WITHOUT_TORCH = """
import json, sys
from hf_detr_command_line import COMMANDS, main

for given in json.loads(sys.argv[1]):
    try:
        main(given)
    except SystemExit as ended:
        print("ENDED", ended.code, *sorted({"torch", "hf_detr"} & set(sys.modules)))
"""
MISTAKES = [
    ["predicted"],
    *([command, "--misspelt"] for command in COMMANDS),
    ["predict", "nowhere.jpg"],
    ["predict", "examples/images", "--model", "./nowhere"],
    ["video", "nowhere.mp4"],
    ["evaluate", "--data", "nowhere.json", "--images", "examples"],
    ["check", "--data", "./nowhere"],
    ["check", "--yolo", "nowhere"],
    ["convert", "nowhere.pth", "folder"],
    ["export", "model.pt2", "--model", "./nowhere"],
    ["export", "model.pt2", "--int8", "--calibration", "data"],
    ["bench", "--model", "./nowhere"],
    ["demo", "--model", "./nowhere"],
    ["predict", "--data", "./nowhere"],
    ["predict", "examples/images", "--format", "nonsense"],
]


def test_help_and_mistakes_wait_for_nothing() -> None:
    """Help, the version, misspelt options and missing files are answered without torch."""
    helps = [["--help"], ["--version"], *([command, "--help"] for command in COMMANDS)]
    given = json.dumps([*helps, *MISTAKES])
    command = [sys.executable, "-c", WITHOUT_TORCH, given]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    ended = [line for line in done.stdout.splitlines() if line.startswith("ENDED")]
    assert ended == ["ENDED 0"] * len(helps) + ["ENDED 2"] * len(MISTAKES)
    assert all(name in done.stdout for name in COMMANDS) and "\nhf_detr 0." in done.stdout
    assert done.stderr.count("nowhere") >= 7 and "Traceback" not in done.stderr


def test_commands_get_the_whole_package() -> None:
    """A command runs with the package as `import hf_detr` gives it."""
    code = (
        "import sys\nfrom hf_detr_command_line import main\nassert 'hf_detr' not in sys.modules\n"
        "status = main(['doctor', '--json'])\nimport hf_detr\n"
        "assert hf_detr.commands.doctor\nassert all(hasattr(hf_detr, n) for n in hf_detr.__all__)\n"
        "sys.exit(status)"
    )
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["settings"]["Auto classes return"] == "hf_detr's classes"


@pytest.mark.parametrize(
    "arguments",
    [
        ["check", "--headers_only", "--box_format=xyxy", "--num_queries", "9"],
        ["evaluate", "--max_detections", "20", "--num_workers=0"],
        ["predict", "--image_column", "photo"],
    ],
)
def test_options_with_underscores(arguments: list[str], capsys: pytest.CaptureFixture) -> None:
    """Options can be spelled as in transformers' scripts; a path keeps its underscores."""
    with pytest.raises(SystemExit):
        main([*arguments, "--data", "./no_where"])
    assert "no_where" in capsys.readouterr().err


def test_any_name_of_a_file_is_printed(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    """Names that aren't text in any encoding are printed with escapes."""
    image = REPOSITORY / "examples" / "images" / "garments.jpg"
    try:
        shutil.copy(image, os.fsencode(tmp_path) + b"/caf\xe9.jpg")
    except OSError:
        pytest.skip("this file system takes names in Unicode only")
    assert main(["predict", str(tmp_path), "--output", str(tmp_path / "output")]) == 0
    assert "caf\\udce9.jpg: " in capsys.readouterr().out
    report = json.loads((tmp_path / "output" / "predictions.json").read_text())
    assert os.fsencode(report["images"][0]["file"]).endswith(b"caf\xe9.jpg")


def test_closed_pipe() -> None:
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
    """`python -m hf_detr` predicts with the default model; stdout has only JSON."""
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
