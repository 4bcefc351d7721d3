"""`hf-detr bench`: the report has all cases, and its numbers agree."""

import json
from pathlib import Path

import pytest

from hf_detr import DeformableDetrImageProcessor
from hf_detr.inference.latency import describe_backend
from hf_detr_command_line import main as run

from ..tiny import tiny_detector


def main(arguments: list[str]) -> int:
    """`hf-detr bench` with these arguments."""
    return run(["bench", *arguments])


def test_figures(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    """Every batch size has both steps; medians, tails and rates agree; stdout is JSON."""
    tiny_detector("deformable_detr").save_pretrained(tmp_path)
    processor = DeformableDetrImageProcessor(size={"shortest_edge": 64, "longest_edge": 96})
    processor.save_pretrained(tmp_path)
    given = ["--model", str(tmp_path), "--batch-size", "1", "2", "--rounds", "3", "--size", "40x50"]
    assert main([*given, "--json", "--dtype", "bfloat16"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["image_hw"] == [40, 50] and report["peak_memory_mib"] > 100
    backend = report["backends"][str(tmp_path)]
    assert "bfloat16" in backend and "deformable attention by" in backend
    rows = {(row["step"], row["batch_size"]): row for row in report["latencies"]}
    assert rows.keys() == {(step, n) for step in ("predict", "forward") for n in (1, 2)}
    for (_, batch_size), row in rows.items():
        assert 0 < row["median_ms"] <= row["p90_ms"]
        rate = 1000 * batch_size / row["median_ms"]
        assert row["images_per_second"] == pytest.approx(rate)
    assert main(["--model", "nobody/nothing"]) == 1
    assert capsys.readouterr().err.startswith("ERROR: ")


def test_backend_as_text() -> None:
    """The report says on what it was measured."""
    model = tiny_detector("deformable_detr", kernel="torch")
    text = describe_backend(model)
    assert text.startswith("cpu, ") and "float32, attention by sdpa" in text
    assert text.endswith("deformable attention by torch (kernel='torch')")
    assert "deformable" not in describe_backend(tiny_detector("detr"))
