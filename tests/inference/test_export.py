"""Exported files of every variant run at other sizes, or aren't written."""

import json
from pathlib import Path

import pytest
import torch
from timm.layers.pool2d_same import MaxPool2dSame
from torch import Tensor
from torch.testing import assert_close

from hf_detr import DetrImageProcessor
from hf_detr.inference.export import Graph, _largest_difference, export_model
from hf_detr_command_line import main as run

from ..tiny import padded_batch, tiny_detector

KINDS = {
    "detr": ("detr", {"encoder_layers": 1, "decoder_layers": 2}),
    "conditional": ("conditional_detr", {"encoder_layers": 1, "decoder_layers": 2}),
    "tables": ("table-transformer", {"encoder_layers": 1, "decoder_layers": 1}),
    "deformable": ("deformable_detr", {"encoder_layers": 1, "decoder_layers": 1}),
    "two-stage": (
        "deformable_detr",
        {
            "encoder_layers": 1,
            "decoder_layers": 1,
            "with_box_refine": True,
            "two_stage": True,
            "two_stage_num_proposals": 7,
        },
    ),
    "dino": ("dino_detr", {"encoder_layers": 1, "decoder_layers": 1}),
}


def main(arguments: list[str]) -> int:
    """`hf-detr export` with these arguments."""
    return run(["export", *arguments])


@torch.no_grad()
@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # of the exporters
@pytest.mark.parametrize("kind", KINDS)
def test_onnx_with_dynamic_sizes(kind: str, tmp_path: Path) -> None:
    """Batch, height and width are free, padding is masked, no custom operator (1e-3)."""
    pytest.importorskip("onnxscript", reason="ONNX export needs onnxscript")
    onnxruntime = pytest.importorskip("onnxruntime", reason="checking ONNX needs onnxruntime")
    variant, options = KINDS[kind]
    model, path = tiny_detector(variant, **options), tmp_path / "model.onnx"
    report = export_model(model, path, DetrImageProcessor(size={"height": 160, "width": 64}))
    assert report.largest_difference < 1e-3 and (1, 160, 64) in report.checked_shapes
    session = onnxruntime.InferenceSession(path)
    assert [one.name for one in session.get_outputs()] == list(report.outputs)
    pixel_values, pixel_mask = padded_batch(3, 131, 77)  # a size that the export didn't check
    inputs = {"pixel_values": pixel_values.numpy(), "pixel_mask": pixel_mask.numpy()}
    got = [torch.from_numpy(array) for array in session.run(None, inputs)]
    assert_close(got, list(Graph(model)(pixel_values, pixel_mask)), atol=1e-3, rtol=0)


@torch.no_grad()
@pytest.mark.slow
def test_torch_program_with_dynamic_sizes(tmp_path: Path) -> None:
    """`.pt2` files leave batch, height and width free too (1e-3)."""
    model, path = tiny_detector("detr", encoder_layers=1, decoder_layers=1), tmp_path / "model.pt2"
    assert export_model(model, path).largest_difference < 1e-3
    batch = padded_batch(3, 100, 131)
    got = torch.export.load(path).module()(*batch)
    assert_close(got, Graph(model)(*batch), atol=1e-3, rtol=0)


@torch.no_grad()
def test_half_precision_torch_program(tmp_path: Path) -> None:
    """`.pt2` files of models in half precision are compared in float32 (1e-3)."""
    model = tiny_detector("detr", encoder_layers=1, decoder_layers=1).bfloat16()
    path = tmp_path / "model.pt2"
    assert export_model(model, path, fixed_hw=(64, 96)).largest_difference < 1e-3


@torch.no_grad()
def test_other_channels_and_small_images(tmp_path: Path) -> None:
    """Images have the model's channels, and the check's padding leaves a part of small ones."""
    options = {"encoder_layers": 1, "decoder_layers": 1, "num_channels": 4}
    model, path = tiny_detector("detr", **options), tmp_path / "model.pt2"
    assert export_model(model, path, fixed_hw=(20, 14)).largest_difference < 1e-3
    batch = torch.ones(2, 4, 20, 14), torch.ones(2, 20, 14, dtype=torch.long)
    got = torch.export.load(path).module()(*batch)
    assert_close(got, Graph(model)(*batch), atol=1e-3, rtol=0)


@torch.no_grad()
def test_command_writes_a_torch_program(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    """`.pt2` files load without this package; stdout has only the report."""
    model = tiny_detector("detr", encoder_layers=1, decoder_layers=1)
    model.save_pretrained(tmp_path / "model")
    DetrImageProcessor(size={"height": 64, "width": 96}).save_pretrained(tmp_path / "model")
    path = tmp_path / "sub" / "model.pt2"
    given = [str(path), "--model", str(tmp_path / "model"), "--size", "64x96", "--json"]
    assert main(given) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["largest_difference"] < 1e-3 and report["num_bytes"] == path.stat().st_size
    batch = padded_batch(4, 64, 96)
    got = torch.export.load(path).module()(*batch)
    assert_close(got, Graph(model)(*batch), atol=1e-3, rtol=0)
    assert main(given) == 1
    assert "exists; --overwrite" in capsys.readouterr().err


def test_wrong_files_are_not_kept(tmp_path: Path) -> None:
    """A graph that differs too much isn't written; an older file is unchanged."""
    path = tmp_path / "model.pt2"
    path.write_text("older")
    model = tiny_detector("detr", encoder_layers=1, decoder_layers=1)
    with pytest.raises(ValueError, match="outputs differ .* nothing was written"):
        export_model(model, path, fixed_hw=(64, 64), tolerance=-1.0, overwrite=True)
    assert path.read_text() == "older" and list(tmp_path.iterdir()) == [path]


@torch.no_grad()
@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # of the exporters
def test_half_precision_that_onnxruntime_cannot_run(
    tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    """A model saved in bfloat16 is refused with a message, and exported in float32."""
    pytest.importorskip("onnxscript", reason="ONNX export needs onnxscript")
    pytest.importorskip("onnxruntime", reason="checking ONNX needs onnxruntime")
    folder, path = tmp_path / "model", tmp_path / "files" / "model.onnx"
    tiny_detector("detr", encoder_layers=1, decoder_layers=1).bfloat16().save_pretrained(folder)
    DetrImageProcessor(size={"height": 64, "width": 96}).save_pretrained(folder)
    given = [str(path), "--model", str(folder), "--size", "64x96"]
    assert main(given) == 1
    assert "in torch.bfloat16" in capsys.readouterr().err
    assert not path.parent.exists()
    assert main([*given, "--dtype", "float32"]) == 0
    assert list(path.parent.iterdir()) == [path]


def test_refusals(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    """Models that can't be exported are refused before anything is computed."""
    model = tiny_detector("detr")
    model.pool = MaxPool2dSame(3, 2)  # as in some of timm's backbones
    with pytest.raises(ValueError, match="must end with .onnx or .pt2"):
        export_model(model, tmp_path / "model.pth")
    with pytest.raises(ValueError, match="padding depends on .*MaxPool2dSame.* --size"):
        export_model(model, tmp_path / "model.onnx")
    with pytest.raises(SystemExit) as ended:
        main([str(tmp_path / "model.pth")])
    assert ended.value.code == 2 and "must end with" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


@torch.no_grad()
def test_swapped_proposals_are_not_differences() -> None:
    """Protects models that rank proposals: a few other queries are rounding, many an error."""
    model = tiny_detector("dino_detr", num_queries=100)
    graph, shapes = Graph(model), ((1, 160, 160),)

    def altered(number: int) -> float:
        def run(*batch: Tensor) -> list[Tensor]:
            outputs = [output.clone() for output in graph(*batch)]
            outputs[0][:, :number] += 1
            return outputs

        return _largest_difference(graph, run, shapes)

    assert altered(4) < 1e-6 and altered(10) == pytest.approx(1, abs=1e-5)
    graph, shapes = Graph(tiny_detector("detr", num_queries=100)), ((1, 64, 64),)
    assert altered(1) == pytest.approx(1, abs=1e-5)
